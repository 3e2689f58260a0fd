"""What an objective is: how the data of a step becomes a loss."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from yunque.model import LanguageModel


@dataclass(frozen=True)
class Part:
    """A share of a step's data that the model reads at once.

    The loss of a step is the mean over its parts, each counting by its `weight` (the tokens or rows that its own
    mean is over); so it does not depend on how many parts there are. Parts of another `group` have a mean of their
    own, and the groups' means are added. `tokens` are the positions that the model reads.
    """

    batch: Any
    weight: float
    tokens: int
    group: str = "main"


@dataclass(frozen=True)
class PartLoss:
    """The mean loss of a part, to be differentiated, and figures of it worth a place in the log."""

    mean: Tensor
    figures: Mapping[str, Tensor] = field(default_factory=dict)


RowT = TypeVar("RowT")


def in_parts(rows: Sequence[RowT], count: int) -> list[Sequence[RowT]]:
    """Rows, `count` at a time."""
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def group_weights(parts: Sequence[Part]) -> Counter[str]:
    """What the parts of each group weigh together."""
    weights: Counter[str] = Counter()
    for part in parts:
        weights[part.group] += part.weight  # type: ignore[assignment]
    return weights


class Objective(Protocol):
    """How a step's data becomes a loss. What a step reads is a function of its number and the seed."""

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """What `step` reads, in parts that fit in memory one at a time."""
        ...

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The loss of one part."""
        ...

    def validation_loss(self, model: LanguageModel) -> float | None:
        """Mean loss on rows that no step sees; None where there are none."""
        ...


@runtime_checkable
class Stopping(Protocol):
    """An objective that may end a run before its last step. What it decides by is part of its state."""

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        ...

    def validated(self, model: LanguageModel, step: int, loss: float) -> None:
        """Take note of a validation loss, after so many steps."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An objective that a step leaves changed: what the next one reads does not follow from its number alone."""

    def state(self) -> Mapping[str, Tensor]:
        """What the next step depends on, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...
