"""Pairs of answers as ids, and the order in which a run reads them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from yunque.generate.conversation import Written
from yunque.model import LanguageModel
from yunque.train.corpus import RowKey
from yunque.train.objective import Objective, Part


@dataclass(frozen=True)
class Pair:
    """A preference row as ids."""

    id: str
    chosen: Written
    rejected: Written

    @property
    def length(self) -> int:
        """How many tokens a model reads of the longer answer and its prompt."""
        return max(self.chosen.length, self.rejected.length)


@lru_cache(maxsize=4)
def permutation(count: int, *seeds: int) -> NDArray[np.int64]:
    """The numbers from 0 to `count`, in an order that follows from the seeds; not to be written into."""
    return np.random.default_rng(seeds).permutation(count)


@dataclass(frozen=True)
class PairOrder:
    """Which pairs a step reads: all of them once an epoch, in an order that follows from seed and epoch."""

    count: int
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        """The last batch of an epoch may be smaller."""
        return -(-self.count // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """The numbers of the pairs of a step."""
        epoch, position = divmod(step, self.batches_per_epoch)
        order = permutation(self.count, self.seed, epoch)
        numbers = order[position * self.batch_size : (position + 1) * self.batch_size]
        return [int(number) for number in numbers]

    def rows_seen(self, dataset: str, pairs: Sequence[Pair], steps: int) -> Counter[RowKey]:
        """How many times each row was in a batch of the first `steps`."""
        return Counter((dataset, pairs[number].id) for step in range(steps) for number in self.batch(step))


def pair_parts(pairs: Sequence[Pair], numbers: Sequence[int], together: int) -> list[Part]:
    """Parts of at most `together` pairs; the batch of each is their numbers."""
    parts = list[Part]()
    for start in range(0, len(numbers), together):
        some = numbers[start : start + together]
        read = 2 * len(some) * max(pairs[number].length for number in some)
        parts.append(Part(tuple(some), len(some), read))
    return parts


def mean_figures(objective: Objective, model: LanguageModel, parts: Sequence[Part]) -> dict[str, float]:
    """The loss and the figures of an objective over several parts; none where there is no part."""
    total, sums = sum(part.weight for part in parts), dict[str, float]()
    for part in parts:
        done = objective.loss(model, part)
        for name, value in {"loss": done.mean, **done.figures}.items():
            sums[name] = sums.get(name, 0.0) + value.item() * part.weight / total
    return sums
