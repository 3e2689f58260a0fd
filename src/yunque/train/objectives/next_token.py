"""The objective of pre-training: the next token, on windows packed with documents that do not see one another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from yunque.model import CausalModel, LanguageModel
from yunque.train.corpus import RowKey, Windows
from yunque.train.loss import next_token_loss
from yunque.train.objective import Part, PartLoss


class Reading(Protocol):
    """Windows without end, by number."""

    def windows(self, first: int, count: int) -> Windows:
        """`count` windows from number `first` on."""
        ...

    def rows_seen(self, count: int) -> Counter[RowKey]:
        """In how many of the first `count` windows some of each row was read."""
        ...


@dataclass(frozen=True)
class NextToken:
    """Mean loss over all positions of `batch_size` windows a step, `micro_batch_size` of them at once."""

    corpus: Reading
    validation: Windows | None
    batch_size: int
    micro_batch_size: int

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The windows of a step."""
        del model
        windows = self.corpus.windows(step * self.batch_size, self.batch_size)
        return [window_part(part) for part in windows.split(self.micro_batch_size)]

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over the windows' positions."""
        assert isinstance(model, CausalModel)
        return PartLoss(next_token_loss(model, part.batch))

    def validation_loss(self, model: LanguageModel) -> float | None:
        """Mean loss over the validation windows."""
        assert isinstance(model, CausalModel)
        if self.validation is None:
            return None
        total = 0.0
        for windows in self.validation.split(self.micro_batch_size):
            total += next_token_loss(model, windows).item() * len(windows.input_ids)
        return total / len(self.validation.input_ids)

    def rows_seen(self, steps: int) -> Counter[RowKey]:
        """In how many windows of the first `steps` some of each row was read."""
        return self.corpus.rows_seen(steps * self.batch_size)


def window_part(windows: Windows, group: str = "main") -> Part:
    """Windows as a part of a step."""
    tokens = windows.input_ids.numel()
    return Part(windows, tokens, tokens, group)
