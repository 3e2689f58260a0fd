"""What a run did so far, read again in order: a run goes on, or is replayed, from its beginning."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yunque.apps.agents.journal import Journal, StepKind, StepRecord
from yunque.errors import UserError


@dataclass(frozen=True)
class Difference:
    """Where a replay differs from what was recorded: at which step, in what, then and now."""

    step: int
    what: str
    recorded: Any
    now: Any

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class TapeEnds(Exception):
    """A replay asks for more than was recorded, or for something else."""


class Tape:
    """The steps of a run: those that are kept are given again, and new ones kept behind them.

    With `replayed` nothing is kept and nothing done: where it goes another way the differences are noted.
    """

    def __init__(
        self, journal: Journal, run: str, steps: Sequence[StepRecord], replayed: bool = False
    ) -> None:
        self._journal, self._run, self._steps = journal, run, list(steps)
        self.replayed = replayed
        self.position = 0
        self.differences: list[Difference] = []

    @property
    def recorded(self) -> bool:
        """Whether the next step is one that was kept."""
        return self.position < len(self._steps)

    def take(self, kind: StepKind, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The next kept step, which must be one of this kind with this request; None where there is no more."""
        if not self.recorded:
            if self.replayed:
                self._differs("goes on where the record ends", None, kind)
                raise TapeEnds
            return None
        kept = self._steps[self.position]
        if kept.kind != kind:
            self._differs("is another step", kept.kind, kind)
            raise TapeEnds
        for name, now in asked.items():
            if kept.content["asked"].get(name) != now:
                self._differs(f"asks with other {name}", kept.content["asked"].get(name), now)
        self.position += 1
        return kept.content

    def put(self, kind: StepKind, content: dict[str, Any]) -> None:
        """Keep a new step."""
        self._journal.add(self._run, self.position, kind, content)
        self.position += 1
        self._steps.append(StepRecord(self.position - 1, kind, "", content))

    def _differs(self, what: str, recorded: Any, now: Any) -> None:
        if not self.replayed:
            raise UserError(
                f"run {self._run}: cannot go on: at step {self.position} the agent {what} than when it was recorded;"
                " ask the question anew"
            )
        self.differences.append(Difference(self.position, what, recorded, now))
