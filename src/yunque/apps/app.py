"""An app at work: a question in, a cited answer out, the guard on both sides and a line in the call log."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from yunque.apps.answer import Answering, AppAnswer, AppPiece, Asked, Drafted, sources_of
from yunque.apps.asking import Asking, OpenModel
from yunque.apps.checks import Checked, Exchange, Guard, Verdict
from yunque.apps.definition import AppDefinition
from yunque.apps.documents import FromDocuments
from yunque.apps.kept import load_definition
from yunque.apps.prompted import FromPrompt
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.words import Language, language_of
from yunque.errors import UserError
from yunque.llm.face import LanguageModel, Message
from yunque.workspace import Artifact, Call, Workspace


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
        self._model = model
        self._answering = _answering(workspace, definition, artifact, open_model)

    def answer(
        self,
        question: str,
        model: LanguageModel | str | None = None,
        history: Sequence[Message] = (),
    ) -> AppAnswer:
        """Answer a question, guarded and logged.

        `model` replaces the app's own for this once; `history` are the earlier turns of the conversation.
        """
        started = time.monotonic()
        question = question.strip()
        if not question:
            raise UserError("the question is empty")
        language = self._language(question)
        exchange = self.guard.exchange(self._protected(), self._public())
        checked = exchange.input(question)
        asked = Asked(
            checked.text,
            language,
            tuple(_checked_history(history, exchange)),
            model if model is not None else self._model,
        )
        refused = Drafted(self._blocked(language))
        drafted = refused if checked.blocked else self._answering.draft(asked, exchange)
        answer, verdicts = self._checked(drafted.answer, asked, exchange)
        answer = replace(answer, verdicts=(*checked.verdicts, *answer.verdicts, *verdicts))
        call = self._log(question, answer, drafted.prompt_hash, exchange, time.monotonic() - started)
        return replace(
            answer,
            text=exchange.restore(answer.text),
            citations=tuple(replace(c, quote=exchange.restore(c.quote)) for c in answer.citations),
            call_id=call,
        )

    def stream(
        self,
        question: str,
        model: LanguageModel | str | None = None,
        history: Sequence[Message] = (),
    ) -> Iterator[AppPiece]:
        """The same answer in pieces. They start when the whole has passed the output checks: a leak or a citation
        that does not hold can only be seen at the end, and what was sent cannot be called back."""
        answer = self.answer(question, model, history)
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

    def _checked(
        self, answer: AppAnswer, asked: Asked, exchange: Exchange
    ) -> tuple[AppAnswer, tuple[Verdict, ...]]:
        """The answer after the output checks; a blocked one gives way to quotations, or to the fixed refusal."""
        checked: Checked = exchange.output(answer.text, sources_of(answer))
        if not checked.blocked:
            return replace(answer, text=checked.text), checked.verdicts
        if other := self._answering.instead(asked, answer):
            again = exchange.output(other.text, sources_of(other))
            if not again.blocked:
                return replace(other, text=again.text), (*checked.verdicts, *again.verdicts)
        refusal = replace(
            self._blocked(asked.language), model=answer.model, usage=answer.usage, cost=answer.cost
        )
        return refusal, checked.verdicts

    def _log(
        self, question: str, answer: AppAnswer, prompt_hash: str, exchange: Exchange, seconds: float
    ) -> int:
        details: dict[str, Any] = {
            "citations": [
                {"number": c.number, "file": c.file, "locator": c.locator, "row_id": c.row_id}
                for c in answer.citations
            ],
            "index": self._answering.index,
            "verdicts": [verdict.as_dict() for verdict in answer.verdicts],
            "known": answer.known,
            "extractive": answer.extractive,
            "language": answer.language,
            "cost_usd": answer.cost.usd if answer.cost else None,
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


def _answering(
    workspace: Workspace, definition: AppDefinition, artifact: Artifact, open_model: OpenModel | None
) -> Answering:
    """The way in which an app answers."""
    asking = Asking(definition, artifact.ref, open_model)
    if not definition.knowledge:
        return FromPrompt(asking)
    # The index that the app was made with: a newer one is another app's version, or lineage would not hold.
    kept = next(parent for parent in artifact.parents if parent.startswith("index/"))
    return FromDocuments(definition, Index.open(workspace, kept), asking)


def _checked_history(history: Sequence[Message], exchange: Exchange) -> Iterator[Message]:
    """The earlier turns as a model may see them; what the checks stop is left out."""
    for message in history:
        if message.role in ("user", "assistant") and message.content.strip():
            checked = exchange.input(message.content)
            if not checked.blocked:
                yield Message(message.role, checked.text)


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
