"""Running a chain: each step's result is kept as soon as it is there, and no step whose result is kept runs again.

What holds after a kill at any moment: a step whose result was kept is never run again in that run; the one that was
under way runs again with the same key (at least once), or, marked `once`, not before a person says so (at most once).
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from yunque.apps.chains.chain import Chain
from yunque.apps.chains.context import OpenModel, Recall
from yunque.apps.chains.paths import comes_before, start_of
from yunque.apps.chains.state_rows import RunRow
from yunque.apps.chains.states import RunDeleted, Spent, States, new_run_id
from yunque.apps.chains.work import LONGEST_ERROR, Place, StepFailed, Stop, Work, key_of
from yunque.apps.keeping.holding import Held
from yunque.apps.keeping.json_values import NotJson, to_text
from yunque.errors import UserError
from yunque.llm.face import Cost, LanguageModel, Usage
from yunque.progress import Progress, silent


@dataclass(frozen=True)
class RunResult:
    """What a run gave, and what it took of models; what it shares with another run is not counted again."""

    run: str
    value: Any
    usage: Usage
    cost: Cost | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class ChainRunner:
    """Runs chains and keeps their states. `open_model` opens the models that steps name, `recall` looks states up."""

    def __init__(
        self, states: States, open_model: OpenModel | None = None, recall: Recall | None = None
    ) -> None:
        self.states, self.recall = states, recall
        self._open = open_model
        self._models: dict[str, LanguageModel] = {}
        self._opening = threading.Lock()

    def run(
        self,
        chain: Chain,
        value: Any,
        subject: str | Sequence[str] = (),
        progress: Progress = silent,
        id: str | None = None,
    ) -> RunResult:
        """Run a chain on a JSON value. `subject` are the people that it is about, by whom it can be forgotten.

        Raises StepFailed when a step fails, UserError for an input that does not fit.
        """
        subjects = (subject,) if isinstance(subject, str) and subject else tuple(subject)
        kept = self.states.begin(
            RunRow(id or new_run_id(), chain.name, chain.outline, _json(value, "the input"), dict(chain.source),
                   subjects=subjects)
        )  # fmt: skip
        return self._held(chain, kept, progress, frozenset())

    def resume(
        self, chain: Chain, run: str, again: Iterable[str] = (), progress: Progress = silent
    ) -> RunResult:
        """Go on with a run that was broken off or failed; one that is done gives its result.

        `again` are paths of `once` steps that may be run again although they may have acted. Raises UserError where
        the chain has other steps than the one that the run began with.
        """
        kept = self.states.run(run)
        if kept.outline != chain.outline:
            raise UserError(
                f"run {kept.id}: its chain {kept.chain} has other steps by now; go on from a step of the new one"
                " (--from STEP)"
            )
        return self._held(chain, kept, progress, frozenset(again))

    def branch(
        self,
        chain: Chain,
        run: str,
        from_step: str,
        edits: Mapping[str, Any] | None = None,
        progress: Progress = silent,
    ) -> RunResult:
        """A new run that does `from_step` and all after it again, and shares what came before.

        `edits` replace results of earlier steps in the new run, by path. The chain may be another one by now, as long
        as it has the step.
        """
        old = self.states.run(run)
        start = start_of(chain, from_step)
        shared = [
            state.path
            for state in self.states.states(old.id)
            if state.done and comes_before(chain, state.path, start)
        ]
        for path in edits or {}:
            if path not in shared:
                raise UserError(
                    f"run {old.id}: has no result at {path!r} before {from_step} that could be replaced (it has:"
                    f" {', '.join(shared) or 'none'})"
                )
        made = RunRow(
            *(new_run_id(), chain.name, chain.outline, old.input, dict(chain.source)),
            subjects=old.subjects,
            parent=old.id,
            parent_step=from_step,
        )
        self.states.branch(made, old.id, [path for path in shared if path not in (edits or {})])
        for path, value in (edits or {}).items():
            self.states.start(made.id, path, key_of(made.id, path))
            self.states.keep(made.id, path, _json(value, path), 0.0, Spent())
        return self._held(chain, made, progress, frozenset())

    def model(self, name: str) -> LanguageModel:
        """The model called `name`, opened once for all steps."""
        if self._open is None:
            raise UserError(f"the chain wants the model {name!r}, but was given no way to open models")
        with self._opening:
            if name not in self._models:
                self._models[name] = self._open(name)
            return self._models[name]

    def _held(self, chain: Chain, run: RunRow, progress: Progress, again: frozenset[str]) -> RunResult:
        try:
            with self.states.hold(run.id):
                return self._worked(chain, run, progress, again)
        except Held:
            raise UserError(
                f"run {run.id}: another process is working on it; wait for it, or stop it"
            ) from None

    def _worked(self, chain: Chain, run: RunRow, progress: Progress, again: frozenset[str]) -> RunResult:
        self.states.end(run.id, "running")
        try:
            with progress(f"chain {chain.name}", total=len(chain.steps)) as task:
                work = Work(self.states, run.id, again, task, self.model, self.recall)
                value = work.sequence(chain.steps, run.input, {"input": run.input}, Place("", Stop()))
            self.states.end(run.id, "done")
        except RunDeleted:
            raise
        except StepFailed as failed:
            self.states.end(run.id, "failed", str(failed)[:LONGEST_ERROR])
            raise
        except BaseException:
            # What broke the run off may have been the database itself.
            with suppress(UserError):
                self.states.end(run.id, "stopped")
            raise
        own = [state for state in self.states.states(run.id) if state.run == run.id]
        usage = sum((state.usage for state in own), Usage(0, 0))
        costs = [state.cost for state in own if state.cost]
        return RunResult(run.id, value, usage, sum(costs[1:], costs[0]) if costs else None)


def _json(value: Any, what: str) -> Any:
    try:
        to_text(value)
    except NotJson as error:
        raise UserError(f"{what} must be a JSON value, but {error}") from None
    return value
