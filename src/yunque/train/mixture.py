"""Which rows a step reads: every row once an epoch, or tasks mixed by a law, about equally long rows together.

With e_m rows of task m the laws give it this share of what is read (Raffel et al. 2019, arXiv:1910.10683, 3.5.2):

    proportional  e_m / sum of e                     every row as often as any other
    capped        min(e_m, K) / sum of min(e, K)     no task counts for more than K rows
    temperature   the (capped) share to the power 1 / T, made to sum to 1: from proportional (T = 1) to equal
    equal         1 / number of tasks
"""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from yunque.configuration import Settings

# Rows are sorted by length inside pools of this many batches.
_POOL = 8


class MixtureSettings(Settings):
    """The law of a mixture; `temperature` is for the law of this name, `cap` for it and for `capped`."""

    kind: Literal["proportional", "temperature", "capped", "equal"] = "proportional"
    temperature: float = Field(default=2.0, ge=1)
    cap: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_cap(self) -> "MixtureSettings":
        if self.kind == "capped" and self.cap is None:
            raise ValueError("capped: say with `cap` how many rows of a task count at most")
        if self.cap is not None and self.kind not in ("capped", "temperature"):
            raise ValueError(f"a {self.kind} mixture has no cap: it is for capped and temperature")
        return self

    def rates(self, counts: Sequence[int]) -> npt.NDArray[np.float64]:
        """The share of each task, from how many rows it has (1 or more); they sum to 1."""
        rows = np.array(counts, dtype=np.float64)
        if self.cap is not None:
            rows = np.minimum(rows, self.cap)
        if self.kind == "equal":
            rows = np.ones_like(rows)
        elif self.kind == "temperature":
            rows = (rows / rows.max()) ** (1 / self.temperature)
        shares: npt.NDArray[np.float64] = rows / rows.sum()
        return shares

    def rows_of_an_epoch(self, counts: Sequence[int]) -> int:
        """How many rows an epoch has: as many as there are, of a task no more than the cap."""
        return sum(count if self.cap is None else min(count, self.cap) for count in counts)


def batches_by_length(
    numbers: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    batch_size: int,
    pool: int,
    random: np.random.Generator,
) -> list[npt.NDArray[np.int64]]:
    """All `numbers` in batches whose items are about equally long, in a random order.

    They are shuffled, and sorted by `lengths` inside pools of so many batches: little padding, and still a new
    mixture each time.
    """
    order, batches = random.permutation(numbers), list[npt.NDArray[np.int64]]()
    for start in range(0, len(order), batch_size * pool):
        some = order[start : start + batch_size * pool]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[first : first + batch_size] for first in range(0, len(some), batch_size)]
    return [batches[int(place)] for place in random.permutation(len(batches))]


class Batches:
    """The rows of each step: a function of the seed and the step only.

    `tasks` and `lengths` are those of each row. In an epoch a task has its share of the rows, to within one; which
    way it is rounded is drawn, so that over many epochs the share is exact. The rows of a task take turns: none is
    read again before every other one was.
    """

    def __init__(
        self,
        tasks: Sequence[Hashable],
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        mixture: MixtureSettings | None = None,
    ) -> None:
        self._lengths, self.batch_size, self.seed = np.array(lengths, dtype=np.int64), batch_size, seed
        law = mixture or MixtureSettings()
        rows: dict[Hashable, list[int]] = {}
        for number, task in enumerate(tasks):
            rows.setdefault(task, []).append(number)
        self._rows = [np.array(numbers, dtype=np.int64) for numbers in rows.values()]
        counts = [len(numbers) for numbers in self._rows]
        self.rates = dict(zip(rows, law.rates(counts).tolist(), strict=True))
        self.rows_per_epoch = law.rows_of_an_epoch(counts)
        self.batches_per_epoch = -(-self.rows_per_epoch // batch_size)
        # How many rows of each task were read before each epoch that was looked at.
        self._read = [np.zeros(len(counts), dtype=np.int64)]
        self._epoch = -1
        self._batches: list[list[int]] = []

    @property
    def rows_per_step(self) -> float:
        """How many rows a step reads on average: the last batch of an epoch may be smaller."""
        return self.rows_per_epoch / self.batches_per_epoch

    def mean(self, values: Sequence[float]) -> float:
        """The mean of numbers of the rows, each row as often as it is read."""
        found = 0.0
        for rate, rows in zip(self.rates.values(), self._rows, strict=True):
            found += rate * float(np.array(values, dtype=np.float64)[rows].mean())
        return found

    def batch(self, step: int) -> list[int]:
        """The numbers of the rows of a step."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            rows = np.array(self.epoch(epoch), dtype=np.int64)
            random = np.random.default_rng([self.seed, epoch])
            batches = batches_by_length(rows, self._lengths, self.batch_size, _POOL, random)
            self._batches = [batch.tolist() for batch in batches]
            self._epoch = epoch
        return self._batches[position]

    def epoch(self, epoch: int) -> list[int]:
        """The rows of an epoch, in no order that matters."""
        while len(self._read) <= epoch + 1:
            self._read.append(self._read[-1] + self._counts(len(self._read) - 1))
        chosen: list[int] = []
        for task, (first, last) in enumerate(zip(self._read[epoch], self._read[epoch + 1], strict=True)):
            chosen += self._turns(task, int(first), int(last))
        return sorted(chosen)

    def _counts(self, epoch: int) -> npt.NDArray[np.int64]:
        """How many rows of each task an epoch has: places at equal distances, the first drawn, over the shares."""
        wanted = np.cumsum(list(self.rates.values())) * self.rows_per_epoch
        # The last sum is a whole number; rounding must not make it another one.
        wanted[-1] = self.rows_per_epoch
        nearest = np.rint(wanted)
        wanted = np.where(np.abs(wanted - nearest) < 1e-6, nearest, wanted)
        luck = np.random.default_rng([self.seed, epoch, 1]).random()
        ends = np.floor(wanted + luck).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _turns(self, task: int, first: int, last: int) -> list[int]:
        """The rows of a task that have these turns: in each round a new order."""
        rows, found = self._rows[task], list[int]()
        for lap in range(first // len(rows), -(-last // len(rows))):
            order = np.random.default_rng([self.seed, task, lap, 2]).permutation(len(rows))
            start = lap * len(rows)
            found += rows[order[max(first - start, 0) : last - start]].tolist()
        return found
