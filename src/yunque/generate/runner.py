"""The face between what schedules texts and what computes them: a runner reads tokens into many texts at once.

Shapes: W scores that are wanted, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from yunque.errors import UserError


class Text(Protocol):
    """A text under way, and what the runner keeps of it. `unread` is what is to be read before the first score.

    Of the prompt of a decoder-only model the beginning may be in the cache already; at least one token is unread.
    An encoder-decoder has read its source, and `unread` is the token that a target begins with.
    """

    unread: list[int]
    length: int
    """How many positions are read."""

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on. Only of a text that can (see `Runner.can_truncate`)."""
        ...

    def fork(self) -> "Text":
        """Another text with the same beginning, which shares its memory until they part."""
        ...

    def close(self) -> None:
        """Give its memory back. A closed text takes no other call."""
        ...


@dataclass(frozen=True)
class Work:
    """Tokens to read behind a text; the scores after the last `wanted` of them are asked for."""

    text: Text
    ids: Sequence[int]
    wanted: int = 1


class NoRoom(Exception):
    """The cache is full: a text must end before another can begin."""


class Runner(Protocol):
    """Computes a model. Called from one thread at a time.

    What a text's scores are does not depend on what else is run with it.
    """

    can_truncate: bool

    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> Text:
        """A text that begins with `prompt` (not empty), with room for `fresh` tokens after it, on the base or with
        an adapter that was loaded. Raises NoRoom."""
        ...

    def run(self, works: Sequence[Work]) -> list[Tensor]:
        """Read the tokens of each work (of different texts) and give the scores that it wants: float32 [W, V]."""
        ...


def check_scores(scores: Tensor) -> None:
    """Raises UserError where scores (float32) are no numbers.

    Of those on the CPU numpy is asked: torch would wake its threads for so little, which takes several times longer.
    """
    fine = np.isfinite(scores.numpy()).all() if scores.device.type == "cpu" else bool(scores.isfinite().all())
    if not fine:
        raise UserError(
            "the model's scores are not numbers: its weights are damaged, or too large for their type"
        )
