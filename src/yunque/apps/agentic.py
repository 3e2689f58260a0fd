"""Answers by an agent: the app's model with its tools, within its limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yunque.apps.agents import Agent, AgentAnswer, AgentRunner, AgentTool
from yunque.apps.agents.journal import RunRecord
from yunque.apps.agents.reading import read_tool
from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.checks import Checked, Exchange
from yunque.apps.definition import AppDefinition
from yunque.apps.heard import Heard
from yunque.apps.retrieval.index import Hit, Index
from yunque.apps.retrieval.words import Language
from yunque.errors import UserError
from yunque.llm.face import Message, ModelUnavailable
from yunque.workspace import Workspace

_MOST_RUNS = 10_000
_EARLIER = {
    "es": "Lo que se dijo antes:\n{turns}\n\nAhora: {question}",
    "en": "What was said before:\n{turns}\n\nNow: {question}",
}
_WHO: dict[Language, dict[str, str]] = {
    "es": {"user": "La persona", "assistant": "Tú"},
    "en": {"user": "The person", "assistant": "You"},
}


class FromAgent:
    """Runs the app's agent. A call that a person must agree to pauses the run; `resume` goes on with it."""

    def __init__(
        self,
        workspace: Workspace,
        definition: AppDefinition,
        folder: Path,
        asking: Asking,
        index: Index | None,
    ) -> None:
        """`folder` has the functions and documents that the tools name."""
        self.definition, self._asking = definition, asking
        self.index: str | None = index.ref if index else None
        self._index = index
        self._runner = AgentRunner(workspace)
        self._tools = [
            made
            for number, tool in enumerate(definition.tools)
            for made in self._tool(tool, f"{asking.ref}: tools.{number}", folder)
        ]

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """What the agent answers, or that it waits for a person, or which limit it reached."""
        heard = Heard()
        # The agent takes personal data out itself, into the same marks.
        question = exchange.restore(_with_history(asked))
        answer = self._runner.run(
            self._agent(asked, heard),
            question,
            _Checked(exchange),
            language=asked.language,
            subject=asked.subject,
            origin=f"{self._asking.ref} {asked.conversation}".strip(),
        )
        return _drafted(answer, heard, exchange)

    def waiting(self) -> list[RunRecord]:
        """The runs that wait for a person, the oldest first."""
        runs = self._runner.runs(self.definition.name, _MOST_RUNS)
        return [run for run in reversed(runs) if run.status == "paused" and run.parent is None]

    def run_of(self, run: str) -> RunRecord:
        """A run of this app; raises UserError where there is none."""
        record = self._runner.journal.run(run)
        if record.agent != self.definition.name:
            raise UserError(f"run {run}: is one of the app {record.agent}, not of {self.definition.name}")
        return record

    def decide(self, run: str, call: str, yes: bool) -> None:
        """Say whether the call that a run waits with may be made; raises UserError where it waits with another one,
        or with none."""
        waits = (self.run_of(run).pending or {}).get("call")
        if waits != call:
            raise UserError(
                f"run {run}: waits with the call {waits}, not with {call}"
                if waits
                else f"run {run}: waits for nobody"
            )
        self._runner.decide(run, call, yes)

    def resume(self, run: str, asked: Asked, exchange: Exchange) -> Drafted:
        """Go on with a run that was decided, or broken off."""
        heard = Heard()
        answer = self._runner.resume(self._agent(asked, heard), run, _Checked(exchange))
        return _drafted(answer, heard, exchange)

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: what the tools said is not for the user's eyes as it is."""
        del asked, blocked
        return None

    def _agent(self, asked: Asked, heard: Heard) -> Agent:
        settings, system = self.definition.agent, self.definition.prompt.system
        return Agent(
            self.definition.name,
            heard.listening(self._asking.model(asked)),
            self._tools,
            system.get(asked.language) or next(iter(system.values()), ""),
            settings.limits,
            settings.plan,
            settings.check,
            generation=self.definition.generation,
        )

    def _tool(self, tool: dict[str, Any], where: str, folder: Path) -> list[AgentTool]:
        if isinstance(database := tool.get("sql"), str):
            # It is not kept with the app: the tool asks the one that lies where it lay.
            tool, folder = {**tool, "sql": Path(database).name}, Path(database).parent
        return read_tool(tool, where, folder, search=self._found if self._index else None)

    def _found(self, words: str, k: int) -> list[Hit]:
        assert self._index is not None
        return self._index.search(words, k)


class _Checked:
    """The checks of an exchange whose question was checked before: the agent's text holds the earlier turns, too."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def input(self, text: str) -> Checked:
        """Not measured, nor what the answer is held against: that is the question alone."""
        return self._exchange.earlier(text)

    def earlier(self, text: str) -> Checked:
        """See `yunque.apps.checks.Exchange`, here and below."""
        return self._exchange.earlier(text)

    def context(self, text: str) -> Checked:
        """A tool's result."""
        return self._exchange.context(text)

    def output(self, text: str, sources: Sequence[str] = ()) -> Checked:
        """The answer."""
        return self._exchange.output(text, sources)

    def for_the_log(self, text: str) -> str:
        """Without personal data."""
        return self._exchange.for_the_log(text)

    def restore(self, text: str) -> str:
        """With it."""
        return self._exchange.restore(text)


def _drafted(answer: AgentAnswer, heard: Heard, exchange: Exchange) -> Drafted:
    if answer.status == "failed":
        raise ModelUnavailable(answer.text)
    details: list[tuple[str, Any]] = [
        ("run", answer.run),
        ("status", answer.status),
        ("checked", answer.checked),
    ]
    details.append(("tools", [record.tool for record in answer.results]))
    if answer.pending:
        # For the person who decides: what the tool would be called with.
        details.append(("pending", answer.pending.as_dict()))
    if answer.limit:
        details.append(("limit", answer.limit))
    made = AppAnswer(
        # Marks again, for the checks that follow and for the log.
        exchange.for_the_log(answer.text),
        answer.language,
        known=answer.status == "answered",
        note=" ".join(filter(None, (heard.note(answer.language), answer.note))),
        model=heard.models or answer.model,
        usage=answer.spent.usage,
        cost=answer.spent.cost,
        # What was found in the question was told before.
        verdicts=tuple(one for one in answer.verdicts if one.stage != "input"),
        details=tuple(details),
    )
    return Drafted(made, heard.prompt_hash)


def _with_history(asked: Asked) -> str:
    """The question, with the earlier turns before it."""
    if not asked.history:
        return asked.question
    turns = "\n".join(_told(message, asked.language) for message in asked.history)
    return _EARLIER[asked.language].format(turns=turns, question=asked.question)


def _told(message: Message, language: Language) -> str:
    return f"{_WHO[language][message.role]}: {message.content}"
