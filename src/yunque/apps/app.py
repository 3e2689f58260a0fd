"""An app at work: a question in, a cited answer out, the guard on both sides and a line in the call log."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from yunque.apps.checks import Checked, Exchange, Guard, Verdict
from yunque.apps.definition import AppDefinition, load_definition
from yunque.apps.retrieval.extractive import Candidate, Finder
from yunque.apps.retrieval.grounding import cited_numbers, is_supported, without_invented
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.passages import RECORD, Passage
from yunque.apps.retrieval.question import Question
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import Language, language_of
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, LanguageModel, Message, ModelUnavailable, Usage
from yunque.workspace import Artifact, Call, Workspace

EXTRACTIVE = "extractive"
"""The name under which an answer that no model wrote is logged."""

_MARK = re.compile(r"\[[A-Z_]+-\d+\]")
"""What stands in a question for personal data; it is nothing to look for."""

NO_TOKENS = Usage(0, 0)
SHORTEST_ANSWER = 32
"""A model that has room for fewer tokens than this is given fewer passages instead."""
OpenModel = Callable[[str], LanguageModel]

_EXTRACTIVE_NOTE = {
    "es": "Respuesta extractiva: citas literales de los documentos.",
    "en": "Extractive answer: quoted word for word from the documents.",
}
_NO_MODEL_NOTE = {
    "es": "El modelo {model} no está disponible.",
    "en": "The model {model} is not available.",
}
_TOO_SHORT_NOTE = {
    "es": "La pregunta con sus pasajes no cabe en el contexto del modelo {model}.",
    "en": "The question with its passages does not fit in the context of the model {model}.",
}
_UNSUPPORTED_NOTE = {
    "es": "La respuesta del modelo no se apoyaba en los documentos y se ha sustituido.",
    "en": "The model's answer was not borne out by the documents and was replaced.",
}
_LEAKED_NOTE = {
    "es": "La respuesta del modelo no pasó los controles y se ha sustituido.",
    "en": "The model's answer did not pass the checks and was replaced.",
}


@dataclass(frozen=True)
class Citation:
    """Where a part of an answer comes from; `number` is the [n] in its text, `quote` the document's own words."""

    number: int
    file: str
    locator: str
    row_id: str
    quote: str


@dataclass(frozen=True)
class AppAnswer:
    """An answer. `known` is False when the documents do not say or the guard stopped it; `note` says how it was
    made when that matters; `call_id` is its number in the call log."""

    text: str
    language: Language
    citations: tuple[Citation, ...] = ()
    known: bool = True
    extractive: bool = False
    note: str = ""
    model: str = EXTRACTIVE
    usage: Usage = NO_TOKENS
    verdicts: tuple[Verdict, ...] = ()
    call_id: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class AppPiece:
    """A piece of a streamed answer; the last one has no text and carries the whole answer."""

    text: str
    answer: AppAnswer | None = None


@dataclass(frozen=True)
class _Drafted:
    """An answer before the output checks, with the hash of the prompt that made it and the passages in that."""

    answer: AppAnswer
    prompt_hash: str = ""
    passages: tuple[Passage, ...] = ()


class App:
    """A definition with its index, its guard and a way to open models."""

    def __init__(
        self,
        workspace: Workspace,
        definition: AppDefinition,
        artifact: Artifact,
        guard: Guard,
        open_model: OpenModel | None = None,
        model: LanguageModel | str | None = None,
    ) -> None:
        self.workspace, self.definition, self.ref, self.guard = workspace, definition, artifact.ref, guard
        self._open_model = open_model
        self._model = model if model is not None else definition.model
        self.finder: Finder | None = None
        if definition.knowledge:
            # The index that the app was made with: a newer one is another app's version, or lineage would not hold.
            kept = next(parent for parent in artifact.parents if parent.startswith("index/"))
            index = Index.open(workspace, kept)
            synonyms = Synonyms(definition.knowledge.synonyms)
            self.finder = Finder(index, synonyms, definition.knowledge.relevance)

    def answer(self, question: str, model: LanguageModel | str | None = None) -> AppAnswer:
        """Answer a question, guarded and logged; `model` replaces the app's own for this once."""
        started = time.monotonic()
        question = question.strip()
        if not question:
            raise UserError("the question is empty")
        language = self._language(question)
        exchange = self.guard.exchange(self._protected(), self._public())
        asked = exchange.input(question)
        if asked.blocked:
            drafted = _Drafted(self._blocked(language))
        else:
            drafted = self._draft(asked.text, language, exchange, model if model is not None else self._model)
        answer, verdicts = self._checked(drafted.answer, asked.text, language, exchange)
        answer = replace(answer, verdicts=(*asked.verdicts, *answer.verdicts, *verdicts))
        call = self._log(question, answer, drafted.prompt_hash, exchange, time.monotonic() - started)
        return replace(
            answer,
            text=exchange.restore(answer.text),
            citations=tuple(replace(c, quote=exchange.restore(c.quote)) for c in answer.citations),
            call_id=call,
        )

    def stream(self, question: str, model: LanguageModel | str | None = None) -> Iterator[AppPiece]:
        """The same answer in pieces. They start when the whole has passed the output checks: a leak or a citation
        that does not hold can only be seen at the end, and what was sent cannot be called back."""
        answer = self.answer(question, model)
        for start in range(0, len(answer.text), 24):
            yield AppPiece(answer.text[start : start + 24])
        yield AppPiece("", answer)

    def _language(self, question: str) -> Language:
        languages = self.definition.languages
        spoken = language_of(question, languages[0])
        return spoken if spoken in languages else languages[0]

    def _protected(self) -> list[str]:
        prompt = self.definition.prompt
        return [*prompt.system.values(), *prompt.user.values()]

    def _public(self) -> list[str]:
        definition = self.definition
        texts = [*definition.unknown.values(), *definition.blocked.values(), *definition.description.values()]
        return [*texts, *(definition.unknown_answer(language) for language in definition.languages)]

    def _blocked(self, language: Language) -> AppAnswer:
        return AppAnswer(self.definition.blocked_answer(language), language, known=False)

    def _draft(
        self, question: str, language: Language, exchange: Exchange, model: LanguageModel | str | None
    ) -> _Drafted:
        if self.finder is None:
            if model is None:
                raise UserError(f"{self.ref}: needs a model, and names none: say which with --model")
            return self._complete(question, language, [], model)
        taken = self.finder.question(_MARK.sub(" ", question), language)
        found = self.finder.answer(taken)
        if not found:
            return _Drafted(AppAnswer(self.definition.unknown_answer(language), language, known=False))
        if model is None:
            return _Drafted(self._extractive(found, language))
        drafted = self._complete(question, language, self._passages(taken, found, exchange), model)
        answer, passages = drafted.answer, drafted.passages
        if not answer.known:
            return replace(drafted, answer=self._extractive(found, language, answer.note, answer))
        if answer.text.strip().rstrip(".") == self.definition.unknown_answer(language).strip().rstrip("."):
            return replace(drafted, answer=replace(answer, known=False, citations=()))
        text = without_invented(answer.text, len(passages))
        if not is_supported(text, [(passage.text, passage.language) for passage in passages]):
            return replace(
                drafted, answer=self._extractive(found, language, _UNSUPPORTED_NOTE[language], answer)
            )
        citations = [
            _citation(number, passages[number - 1], passages[number - 1].text)
            for number in cited_numbers(text)
        ]
        return replace(drafted, answer=replace(answer, text=text, citations=tuple(citations)))

    def _passages(self, question: Question, found: Sequence[Candidate], exchange: Exchange) -> list[Passage]:
        """What a model is given: the best sentences' passages first, those that the guard stops left out."""
        assert self.finder is not None and self.definition.knowledge is not None
        ranked = [*found, *self.finder.candidates(question)]
        passages = list(dict.fromkeys(candidate.passage for candidate in ranked))[
            : self.definition.knowledge.top_k
        ]
        checked = [(passage, exchange.context(passage.text)) for passage in passages]
        return [replace(passage, text=safe.text) for passage, safe in checked if not safe.blocked]

    def _complete(
        self,
        question: str,
        language: Language,
        passages: Sequence[Passage],
        model: LanguageModel | str | None,
    ) -> _Drafted:
        """Ask the model, then the fallbacks; `known` is False in the answer when none could."""
        notes: list[str] = []
        for candidate in (model, *self.definition.fallbacks):
            if candidate is None:
                continue
            opened = candidate if not isinstance(candidate, str) else self._opened(candidate)
            try:
                return self._asked(opened, question, language, passages)
            except ModelUnavailable:
                notes.append(_NO_MODEL_NOTE[language].format(model=opened.name))
            except ContextOverflow:
                if self.finder is None:
                    raise
                notes.append(_TOO_SHORT_NOTE[language].format(model=opened.name))
        if self.finder is None:
            raise ModelUnavailable(" ".join(notes))
        return _Drafted(AppAnswer("", language, known=False, note=" ".join(notes)))

    def _asked(
        self, model: LanguageModel, question: str, language: Language, passages: Sequence[Passage]
    ) -> _Drafted:
        """The model's answer; what does not fit in its context is cut, the answer's length first, then passages."""
        config = self.definition.generation
        while True:
            messages = self._messages(question, language, passages)
            try:
                completion = model.chat(messages, config)
                break
            except ContextOverflow as overflow:
                if SHORTEST_ANSWER <= overflow.room < config.max_new_tokens:
                    config = config.model_copy(update={"max_new_tokens": overflow.room})
                elif len(passages) > 1:
                    passages = passages[: len(passages) // 2]
                else:
                    raise
        digest = hashlib.sha256("\0".join(f"{m.role}\0{m.content}" for m in messages).encode()).hexdigest()
        answer = AppAnswer(completion.text.strip(), language, model=completion.model, usage=completion.usage)
        return _Drafted(answer, digest, tuple(passages))

    def _opened(self, name: str) -> LanguageModel:
        if self._open_model is None:
            raise UserError(f"{self.ref}: was opened without a way to open the model {name!r}")
        return self._open_model(name)

    def _messages(self, question: str, language: Language, passages: Sequence[Passage]) -> list[Message]:
        """The filled templates. What the user wrote is a value in them, never a part of a template."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(autoescape=False, keep_trailing_newline=False)
        values = {
            "question": question,
            "passages": passages,
            "unknown": self.definition.unknown_answer(language),
        }
        prompt, messages = self.definition.prompt, list[Message]()
        if system := prompt.system.get(language) or next(iter(prompt.system.values()), ""):
            messages.append(Message("system", environment.from_string(system).render(values)))
        user = prompt.user.get(language) or next(iter(prompt.user.values()))
        messages.append(Message("user", environment.from_string(user).render(values)))
        return messages

    def _extractive(
        self, found: Sequence[Candidate], language: Language, note: str = "", model: AppAnswer | None = None
    ) -> AppAnswer:
        """Sentences word for word, each with the number of its citation."""
        citations: list[Citation] = []
        numbers: dict[tuple[str, int], int] = {}
        parts: list[str] = []
        for candidate in found:
            quote = candidate.passage.quote(candidate.unit)
            key = (candidate.passage.row_id, candidate.passage.start)
            if key in numbers:
                kept = citations[numbers[key] - 1]
                citations[kept.number - 1] = replace(kept, quote=f"{kept.quote} … {quote}")
            else:
                numbers[key] = len(citations) + 1
                citations.append(_citation(numbers[key], candidate.passage, quote))
            parts.append(f"{quote} [{numbers[key]}]")
        # Lines of a table have no full stop to part them.
        between = "\n" if any(RECORD.match(c.passage.quote(c.unit)) for c in found) else " "
        said = f"{note} {_EXTRACTIVE_NOTE[language]}".strip()
        return AppAnswer(
            between.join(parts), language, tuple(citations), extractive=True, note=said,
            usage=model.usage if model else NO_TOKENS,
        )  # fmt: skip

    def _checked(
        self, answer: AppAnswer, question: str, language: Language, exchange: Exchange
    ) -> tuple[AppAnswer, tuple[Verdict, ...]]:
        """The answer after the output checks; a blocked one gives way to quotations, or to the fixed refusal."""
        checked: Checked = exchange.output(answer.text, [citation.quote for citation in answer.citations])
        if not checked.blocked:
            return replace(answer, text=checked.text), checked.verdicts
        if self.finder and not answer.extractive:
            found = self.finder.answer(self.finder.question(_MARK.sub(" ", question), language))
            quoted = self._extractive(found, language, _LEAKED_NOTE[language], answer)
            again = exchange.output(quoted.text, [citation.quote for citation in quoted.citations])
            if found and not again.blocked:
                return replace(quoted, text=again.text), (*checked.verdicts, *again.verdicts)
        return replace(self._blocked(language), model=answer.model, usage=answer.usage), checked.verdicts

    def _log(
        self, question: str, answer: AppAnswer, prompt_hash: str, exchange: Exchange, seconds: float
    ) -> int:
        details: dict[str, Any] = {
            "citations": [
                {"number": c.number, "file": c.file, "locator": c.locator, "row_id": c.row_id}
                for c in answer.citations
            ],
            "index": self.finder.index.ref if self.finder else None,
            "verdicts": [verdict.as_dict() for verdict in answer.verdicts],
            "known": answer.known,
            "extractive": answer.extractive,
            "language": answer.language,
        }
        call = Call(
            target=self.ref,
            model=answer.model,
            question=exchange.for_the_log(question),
            answer=exchange.for_the_log(answer.text),
            prompt_hash=prompt_hash or hashlib.sha256(exchange.for_the_log(question).encode()).hexdigest(),
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            seconds=round(seconds, 3),
            details=details,
        )
        return self.workspace.log_call(call)


def _citation(number: int, passage: Passage, quote: str) -> Citation:
    return Citation(number, passage.file, passage.locator, passage.row_id, quote)


def load_app(
    workspace: Workspace,
    ref: str,
    make_guard: Callable[[AppDefinition], Guard],
    open_model: OpenModel | None = None,
    model: LanguageModel | str | None = None,
) -> App:
    """The app artifact called `ref`, with the guard that its definition asks for."""
    definition, artifact = load_definition(workspace, ref)
    return App(workspace, definition, artifact, make_guard(definition), open_model, model)
