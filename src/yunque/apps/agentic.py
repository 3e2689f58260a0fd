"""Answers by an agent: the app's model with its tools, within its limits."""

import hashlib
from pathlib import Path
from typing import Any

from yunque.apps.agents import Agent, AgentAnswer, AgentRunner, AgentTool
from yunque.apps.agents.journal import RunRecord
from yunque.apps.agents.reading import read_tools
from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.checks import Exchange
from yunque.apps.definition import AppDefinition
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
        # The agent takes personal data out itself, into the same marks.
        question = exchange.restore(_with_history(asked))
        agent = self._agent(asked)
        return _drafted(self._runner.run(agent, question, exchange, language=asked.language), exchange)

    def waiting(self) -> list[RunRecord]:
        """The runs that wait for a person, the oldest first."""
        runs = self._runner.runs(self.definition.name, _MOST_RUNS)
        return [run for run in reversed(runs) if run.status == "paused" and run.parent is None]

    def question_of(self, run: str) -> str:
        """What a run was asked; raises UserError where there is none of this app."""
        record = self._runner.journal.run(run)
        if record.agent != self.definition.name:
            raise UserError(f"run {run}: is one of the app {record.agent}, not of {self.definition.name}")
        return str(record.begun["question"])

    def decide(self, run: str, yes: bool, asked: Asked, exchange: Exchange) -> Drafted:
        """Say whether the call that a run waits with may be made, and go on with it; raises UserError where it waits
        with none."""
        record = self._runner.journal.run(run)
        if record.pending is None:
            raise UserError(f"run {run}: waits for nobody (it is {record.status})")
        self._runner.decide(run, record.pending["call"], yes)
        return _drafted(self._runner.resume(self._agent(asked), run, exchange), exchange)

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: what the tools said is not for the user's eyes as it is."""
        del asked, blocked
        return None

    def _agent(self, asked: Asked) -> Agent:
        settings, system = self.definition.agent, self.definition.prompt.system
        return Agent(
            self.definition.name,
            self._asking.model(asked),
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
        return read_tools([tool], where, folder, search=self._found if self._index else None)

    def _found(self, words: str, k: int) -> list[Hit]:
        assert self._index is not None
        return self._index.search(words, k)


def _drafted(answer: AgentAnswer, exchange: Exchange) -> Drafted:
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
        note=answer.note,
        model=answer.model,
        usage=answer.spent.usage,
        cost=answer.spent.cost,
        # What was found in the question was told before.
        verdicts=tuple(one for one in answer.verdicts if one.stage != "input"),
        details=tuple(details),
    )
    return Drafted(made, hashlib.sha256(f"agent\0{answer.run}".encode()).hexdigest())


def _with_history(asked: Asked) -> str:
    """The question, with the earlier turns before it."""
    if not asked.history:
        return asked.question
    turns = "\n".join(_told(message, asked.language) for message in asked.history)
    return _EARLIER[asked.language].format(turns=turns, question=asked.question)


def _told(message: Message, language: Language) -> str:
    return f"{_WHO[language][message.role]}: {message.content}"
