"""What an app demands of a guard. The guard itself is a floor above; an app cannot be opened without one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

Stage = Literal["input", "context", "output"]
Outcome = Literal["pass", "redact", "block", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What one check found. `evidence` is for a person to read, and holds no personal data."""

    check: str
    stage: Stage
    outcome: Outcome
    evidence: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Checked:
    """A text after the checks of a stage: as it may go on, and the verdicts that were not a plain pass."""

    text: str
    verdicts: tuple[Verdict, ...] = ()

    @property
    def blocked(self) -> bool:
        """Whether the text may not go on at all."""
        return any(verdict.outcome == "block" for verdict in self.verdicts)


class Exchange(Protocol):
    """The checks of one question and its answer; it remembers what was taken out of the question."""

    def input(self, text: str) -> Checked:
        """Check what the user wrote."""
        ...

    def earlier(self, text: str) -> Checked:
        """Check a turn of the conversation before the question: it is not measured, nor is an answer held against
        it."""
        ...

    def context(self, text: str) -> Checked:
        """Check a passage before a model reads it."""
        ...

    def output(self, text: str, sources: Sequence[str] = ()) -> Checked:
        """Check an answer before the user reads it; `sources` are the quotations that it rests on."""
        ...

    def for_the_log(self, text: str) -> str:
        """The text without personal data."""
        ...

    def restore(self, text: str) -> str:
        """Put the user's own personal data back in the place of its marks."""
        ...


class Guard(Protocol):
    """Opens the checks of an exchange."""

    def exchange(self, protected: Sequence[str], public: Sequence[str] = ()) -> Exchange:
        """`protected` texts (prompt templates) must not come out; `public` ones may, though they stand in them."""
        ...
