"""An app at work: a question in, a cited answer out, the guard on both sides and a line in the call log."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from yunque.apps.answer import Answering, AppAnswer, AppPiece, Asked, Drafted, sources_of
from yunque.apps.asking import Asking
from yunque.apps.checks import Checked, Exchange, Guard, Verdict
from yunque.apps.definition import AppDefinition
from yunque.apps.documents import FromDocuments
from yunque.apps.kept import load_definition, unpacked
from yunque.apps.models import AppModels, OpenModel
from yunque.apps.prompted import FromPrompt
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.words import Language, language_of
from yunque.errors import UserError
from yunque.llm.face import LanguageModel, Message, ModelUnavailable
from yunque.workspace import Artifact, Call, Workspace

if TYPE_CHECKING:
    from yunque.apps.agentic import FromAgent
    from yunque.apps.remembering import Remembering


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
        self._models = AppModels(workspace, definition, artifact.ref, open_model)
        self._answering = _answering(workspace, definition, artifact, self._models)
        self._remembering = _remembering(workspace, definition)

    def answer(
        self,
        question: str,
        model: LanguageModel | str | None = None,
        history: Sequence[Message] = (),
        who: Sequence[str] = (),
        subject: str = "",
        conversation: str | None = None,
    ) -> AppAnswer:
        """Answer a question, guarded and logged.

        `model` replaces the app's own for this once; `history` are the earlier turns of the conversation, where the
        app keeps none or the caller has them; `who` pays for it besides the app (`key/ID`); what is kept of it can be
        found, and forgotten, by its `subject`. An app with a memory goes on with `conversation`, or begins one, whose
        id is in the answer's details. Raises UserError.
        """
        question = question.strip()
        if not question:
            raise UserError("the question is empty")
        asked = Asked(
            question, self._language(question), tuple(history), model or self._model, tuple(who), subject
        )
        if self._remembering is None:
            if conversation is not None:
                raise UserError(f"{self.ref}: keeps no conversations (memory: in its file)")
            return self._answered(asked, self._answering.draft)
        asked = replace(asked, conversation=self._remembering.begun(conversation, subject))
        if not history:
            shown = self._remembering.shown(
                asked.conversation, asked.language, partial(self._summarizing, asked)
            )
            asked = replace(asked, history=tuple(shown))
        answer = self._answered(asked, self._answering.draft)
        if not any(one.stage == "input" and one.outcome == "block" for one in answer.verdicts):
            self._remembering.add(asked.conversation, question, answer.text)
        return replace(answer, details=(*answer.details, ("conversation", asked.conversation)))

    def _summarizing(self, asked: Asked) -> LanguageModel | None:
        """The model that summarizes what a conversation's window has no room for."""
        name = asked.model or self.definition.model
        return self._models.routed(name, asked.who, asked.subject) if name is not None else None

    def waiting(self) -> list[dict[str, Any]]:
        """What waits for a person: runs of the app's agent with the call that each would make, oldest first."""
        return [
            {"run": run.id, "since": run.updated, **(run.pending or {})} for run in self._agent().waiting()
        ]

    def decide(
        self,
        run: str,
        call: str,
        yes: bool,
        model: LanguageModel | str | None = None,
        who: Sequence[str] = (),
    ) -> AppAnswer:
        """Say whether the call that a run waits with may be made, and go on with it. The word is audited before.

        Raises UserError where the app has no such run, or it waits with another call or none.
        """
        self._agent().decide(run, call, yes)
        self.workspace.record("app.decide", self.ref, run=run, call=call, allowed=yes)
        return self.resume(run, model, who)

    def resume(
        self, run: str, model: LanguageModel | str | None = None, who: Sequence[str] = ()
    ) -> AppAnswer:
        """Go on with a run of the app's agent that was decided, or broken off."""
        agent = self._agent()
        record = agent.run_of(run)
        question = str(record.begun["question"])
        asked = Asked(question, self._language(question), (), model or self._model, tuple(who))
        answer = self._answered(asked, partial(agent.resume, run), again=True)
        _, _, conversation = record.origin.partition(" ")
        if self._remembering and conversation:
            self._remembering.add(self._remembering.begun(conversation), "", answer.text)
        return answer

    def _agent(self) -> "FromAgent":
        from yunque.apps.agentic import FromAgent

        if not isinstance(self._answering, FromAgent):
            raise UserError(f"{self.ref}: has no tools, so nothing waits for a person")
        return self._answering

    def _answered(
        self, asked: Asked, draft: Callable[[Asked, Exchange], Drafted], again: bool = False
    ) -> AppAnswer:
        """The answer to a question as it was written; one that is asked `again` was checked before."""
        started, question = time.monotonic(), asked.question
        exchange = self.guard.exchange(self._protected(), self._public())
        # The question last: it is what an answer is held against.
        history = tuple(_checked_history(asked.history, exchange))
        checked = exchange.earlier(question) if again else exchange.input(question)
        asked = replace(asked, question=checked.text, history=history)
        try:
            refused = Drafted(self._blocked(asked.language))
            drafted = refused if checked.blocked else draft(asked, exchange)
        except (ModelUnavailable, UserError):
            failed = AppAnswer("", asked.language, known=False, verdicts=checked.verdicts)
            self._log(question, failed, "", exchange, time.monotonic() - started, failed=True)
            raise
        answer, verdicts = self._checked(drafted.answer, asked, exchange)
        answer = replace(answer, verdicts=(*checked.verdicts, *answer.verdicts, *verdicts))
        call = self._log(question, answer, drafted.prompt_hash, exchange, time.monotonic() - started)
        text = exchange.restore(answer.text)
        return replace(
            answer,
            text=text,
            data=_data_of(text) if answer.data is not None else None,
            citations=tuple(replace(c, quote=exchange.restore(c.quote)) for c in answer.citations),
            call_id=call,
        )

    def stream(
        self,
        question: str,
        model: LanguageModel | str | None = None,
        history: Sequence[Message] = (),
        who: Sequence[str] = (),
        subject: str = "",
        conversation: str | None = None,
    ) -> Iterator[AppPiece]:
        """The same answer in pieces. They start when the whole has passed the output checks: a leak or a citation
        that does not hold can only be seen at the end, and what was sent cannot be called back."""
        answer = self.answer(question, model, history, who, subject, conversation)
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
        self,
        question: str,
        answer: AppAnswer,
        prompt_hash: str,
        exchange: Exchange,
        seconds: float,
        failed: bool = False,
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
            "failed": failed,
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
    workspace: Workspace, definition: AppDefinition, artifact: Artifact, models: AppModels
) -> Answering:
    """The way in which an app answers."""
    asking = Asking(definition, artifact.ref, models)
    if definition.kind == "chain":
        # Loaded here, as the agent is: most apps are neither.
        from yunque.apps.chained import FromChain

        return FromChain(workspace, definition, unpacked(workspace, artifact), asking)
    # The index that the app was made with: a newer one is another app's version, or lineage would not hold.
    kept = next((parent for parent in artifact.parents if parent.startswith("index/")), None)
    groups = frozenset(definition.knowledge.groups) if definition.knowledge else frozenset[str]()
    index = Index.open(workspace, kept).narrowed(groups) if kept else None
    if definition.kind == "agent":
        from yunque.apps.agentic import FromAgent

        return FromAgent(workspace, definition, unpacked(workspace, artifact), asking, index)
    return FromDocuments(definition, index, asking) if index else FromPrompt(asking)


def _remembering(workspace: Workspace, definition: AppDefinition) -> "Remembering | None":
    if definition.memory == "none":
        return None
    from yunque.apps.remembering import Remembering

    return Remembering(workspace, definition)


def _data_of(text: str) -> Any:
    """What an answer with a form holds after the checks, which may have changed its text."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _checked_history(history: Sequence[Message], exchange: Exchange) -> Iterator[Message]:
    """The earlier turns as a model may see them; what the checks stop is left out."""
    for message in history:
        if message.role in ("user", "assistant") and message.content.strip():
            checked = exchange.earlier(message.content)
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
