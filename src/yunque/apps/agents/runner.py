"""Running agents: a question in, an honest answer out; what was done is kept, can go on after a kill or a person's
word, and can be replayed."""

import secrets
from dataclasses import dataclass, replace

from yunque.apps.agents.agent import Agent, AgentAnswer
from yunque.apps.agents.journal import Journal, RunRecord, StepRecord
from yunque.apps.agents.limits import LimitReached
from yunque.apps.agents.privacy import Privacy
from yunque.apps.agents.session import Approve, Paused, Price, Session, Setting
from yunque.apps.agents.tape import Difference, Tape, TapeEnds
from yunque.apps.agents.thinking import Draft, Thinking
from yunque.apps.agents.wording import BLOCKED, FAILED, LIMIT, PAUSED, SO_FAR, Language
from yunque.apps.checks import Exchange, Verdict
from yunque.apps.keeping.holding import Held
from yunque.apps.retrieval.words import language_of
from yunque.errors import UserError
from yunque.llm.face import ModelUnavailable
from yunque.workspace import Workspace


@dataclass(frozen=True)
class Replay:
    """A run done again with what was recorded: where it differs, and what it answers now."""

    run: str
    steps: int
    differences: tuple[Difference, ...]
    text: str | None
    recorded: str | None

    @property
    def same(self) -> bool:
        """Whether everything went as it did then."""
        return not self.differences and self.text == self.recorded


class AgentRunner:
    """Runs agents in a workspace, which keeps what they did in `agents.db`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.journal = Journal(workspace)

    def run(
        self,
        agent: Agent,
        question: str,
        exchange: Exchange | None = None,
        approve: Approve | None = None,
        language: Language | None = None,
        subject: str = "",
        id: str | None = None,
        parent: str | None = None,
        origin: str = "",
    ) -> AgentAnswer:
        """Answer a question. Without `approve` a call that needs a person's approval pauses the run: `decide`, then
        `resume`. A run whose `id` is there already goes on. `origin` says where the agent can be found again, such as
        an app with its version; it is kept in the run's record. Raises UserError for what the caller did wrongly;
        whatever models and tools do ends in an answer."""
        if not question.strip():
            raise UserError("the question is empty")
        begun = {
            "question": question.strip(),
            "language": language or ("en" if language_of(question) == "en" else "es"),
            "nonce": secrets.token_hex(8),
            "origin": origin,
        }
        record = self.journal.begin(agent.name, begun, subject, id, parent)
        if record.begun["question"] != question.strip():
            raise UserError(f"run {record.id}: was asked something else; take another id")
        return self._held(agent, record, exchange, approve)

    def resume(
        self, agent: Agent, run: str, exchange: Exchange | None = None, approve: Approve | None = None
    ) -> AgentAnswer:
        """Go on with a run that was paused, killed, or whose model was away; one that is done gives its answer."""
        return self._held(agent, self.journal.run(run), exchange, approve)

    def decide(self, run: str, call: str, yes: bool) -> None:
        """Say whether a call that a paused run waits with may be made; then `resume`. Raises UserError where it waits
        with no such call, or where it was decided otherwise before."""
        waits = self.journal.run(run).pending or {}
        if waits.get("call") == call:
            # It may be a call of another agent that works for this one.
            run = waits["run"]
        elif self.journal.decision(run, call) is None:
            raise UserError(f"run {run}: waits with no call {call!r}")
        self.journal.decide(run, call, yes)

    def replay(self, agent: Agent, run: str, exchange: Exchange | None = None) -> Replay:
        """Do a run again with the recorded answers and results: no model is asked, no tool called, nothing kept."""
        record, steps = self.journal.run(run), self.journal.steps(run)
        tape = Tape(self.journal, run, steps, replayed=True)
        answer: AgentAnswer | None = None
        try:
            answer = self._worked(agent, record, exchange, None, tape)
        except TapeEnds:
            pass
        else:
            if tape.recorded and answer.status != "paused":
                tape.differences.append(
                    Difference(tape.position, "ends before the record does", steps[tape.position].kind, None)
                )
        text = answer.text if answer else None
        return Replay(run, tape.position, tuple(tape.differences), text, record.answer)

    def runs(self, agent: str | None = None, limit: int = 50) -> list[RunRecord]:
        """The newest runs, newest first."""
        return self.journal.runs(agent, limit)

    def steps(self, run: str) -> list[StepRecord]:
        """All that a run did, in order."""
        self.journal.run(run)
        return self.journal.steps(run)

    def delete(self, run: str) -> bool:
        """Delete a run for good, with its key; see `Journal.delete`."""
        return self.journal.delete([run])

    def forget(self, subject: str) -> int:
        """Delete all runs about a person; returns how many."""
        runs = self.journal.of_subject(subject)
        self.journal.delete(runs)
        return len(runs)

    def _held(
        self, agent: Agent, record: RunRecord, exchange: Exchange | None, approve: Approve | None
    ) -> AgentAnswer:
        if record.agent != agent.name:
            raise UserError(f"run {record.id}: is one of the agent {record.agent}, not of {agent.name}")
        try:
            with self.journal.hold(record.id):
                tape = Tape(self.journal, record.id, self.journal.steps(record.id))
                answer = self._worked(agent, record, exchange, approve, tape)
                pending = answer.pending.as_dict() if answer.pending else None
                self.journal.mark(record.id, answer.status, pending, answer.text)
                return answer
        except Held:
            raise UserError(f"run {record.id}: another process is working on it; wait for it") from None

    def _worked(
        self, agent: Agent, record: RunRecord, exchange: Exchange | None, approve: Approve | None, tape: Tape
    ) -> AgentAnswer:
        """Do a run from its beginning: what is kept is taken, what is not is done."""
        language: Language = record.begun["language"]
        privacy = Privacy(exchange, agent.model.local)
        asked = privacy.question(record.begun["question"])
        setting = Setting(
            record.id,
            record.begun["nonce"],
            agent.model,
            {tool.name: tool for tool in agent.tools},
            agent.limits,
            agent.generation,
            agent.most_characters,
            approve,
            _price(agent),
            self,
        )
        session = Session(setting, privacy, tape, self.journal)
        ended = AgentAnswer("", "answered", record.id, language, session.spent, verdicts=asked.verdicts)
        if asked.blocked:
            return replace(ended, text=BLOCKED[language], status="blocked")
        thinking = Thinking(agent, session, language, asked.text)
        try:
            draft = thinking.answer()
        except Paused as paused:
            said = PAUSED[language].format(tool=paused.pending.tool)
            ended = replace(ended, text=said, status="paused", pending=paused.pending)
            return _with(ended, session, thinking.draft)
        except LimitReached as reached:
            said = _stopped(reached, language, thinking.draft.text)
            return self._guarded(
                replace(ended, status="limit", limit=reached.limit),
                replace(thinking.draft, text=said),
                session,
            )
        except ModelUnavailable as error:
            return _with(
                replace(ended, text=FAILED[language].format(reason=error), status="failed"),
                session,
                thinking.draft,
            )
        return self._guarded(ended, draft, session)

    def _guarded(self, answer: AgentAnswer, draft: Draft, session: Session) -> AgentAnswer:
        """The answer after the guard's last stage, with the personal data back in it."""
        sources = [record.text for record in session.records if not record.failed]
        checked = session.privacy.output(draft.text, sources)
        verdicts: tuple[Verdict, ...] = (*answer.verdicts, *checked.verdicts)
        answer = _with(replace(answer, verdicts=verdicts), session, draft)
        if checked.blocked:
            return replace(answer, text=BLOCKED[answer.language], status="blocked")
        return replace(answer, text=session.privacy.restored(checked.text))


def _with(answer: AgentAnswer, session: Session, draft: Draft) -> AgentAnswer:
    return replace(
        answer,
        spent=session.spent,
        plan=tuple(session.privacy.restored(list(draft.plan))),
        results=tuple(session.records),
        checked=draft.checked,
        note=session.privacy.restored(draft.note),
        model=session.setting.model.name,
    )


def _stopped(reached: LimitReached, language: Language, found: str) -> str:
    said = LIMIT[language][reached.limit].format(allowed=reached.allowed)
    return f"{said} {SO_FAR[language].format(text=found)}" if found else said


def _price(agent: Agent) -> Price | None:
    """Dollars of a call from its tokens, where money is limited; raises UserError where no price is known."""
    if agent.limits.usd is None or agent.price or agent.model.local:
        return agent.price
    from yunque.llm.prices import list_price

    listed = list_price(agent.model.name)
    if listed is None:
        raise UserError(
            f"agent {agent.name}: limits.usd cannot be kept, for the price of {agent.model.name} is not known; limit"
            " its tokens instead, or give its price"
        )
    read, written = listed.input / 1e6, listed.output / 1e6
    return lambda usage: usage.prompt_tokens * read + usage.completion_tokens * written
