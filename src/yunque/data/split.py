"""Training, validation and test rows, with nothing shared between them.

What decides is a hash of the row's group, so a group stays where it was when the data grows; groups that hold near
duplicates of one another go together, as if they were one.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from yunque.configuration import Settings
from yunque.data.duplicates import THRESHOLD, Neighbours

SPLITS = ("train", "validation", "test")


class SplitSettings(Settings):
    """The share of the groups that each split gets; together they are the whole."""

    train: float = Field(default=0.9, gt=0.0, le=1.0)
    validation: float = Field(default=0.05, ge=0.0, lt=1.0)
    test: float = Field(default=0.05, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _is_whole(self) -> "SplitSettings":
        if abs(self.train + self.validation + self.test - 1.0) > 1e-6:
            raise ValueError("train + validation + test must be 1")
        return self

    def shares(self) -> list[float]:
        """In the order of SPLITS."""
        return [self.train, self.validation, self.test]


class _Clusters:
    """Groups that must stay together (union-find); a cluster is named by its first group in alphabetical order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._above = {name: name for name in names}

    def of(self, name: str) -> str:
        """The name of the cluster of a group."""
        while self._above[name] != name:
            self._above[name] = name = self._above[self._above[name]]
        return name

    def join(self, first: str, second: str) -> None:
        """Put two groups together."""
        low, high = sorted((self.of(first), self.of(second)))
        self._above[high] = low


def assign_splits(
    groups: Sequence[str],
    signatures: NDArray[np.uint32],
    text_of: Callable[[int], str],
    settings: SplitSettings,
) -> list[str]:
    """The split of each row, given its group and MinHash signature.

    Every split whose share is not zero gets at least one cluster where there are enough of them.
    """
    clusters = _Clusters(groups)
    neighbours = Neighbours(signatures, text_of)
    for number, group in enumerate(groups):
        for other in neighbours.candidates(number):
            theirs = clusters.of(groups[other])
            # One row of a cluster that is near enough joins it: its other rows need no look.
            if theirs != clusters.of(group) and neighbours.similarity(number, other) >= THRESHOLD:
                clusters.join(group, theirs)
        neighbours.add(number)
    cluster_of = [clusters.of(group) for group in groups]
    chosen = _choose(sorted(set(cluster_of)), settings)
    return [chosen[cluster] for cluster in cluster_of]


def _position(cluster: str) -> float:
    """A number in [0, 1) that only depends on the name."""
    return int.from_bytes(hashlib.sha256(cluster.encode()).digest()[:8], "big") / 2**64


def _choose(clusters: Sequence[str], settings: SplitSettings) -> dict[str, str]:
    ends = np.cumsum(settings.shares())
    chosen = {
        cluster: SPLITS[min(int(np.searchsorted(ends, _position(cluster), side="right")), 2)]
        for cluster in clusters
    }
    for split, share in zip(SPLITS, settings.shares(), strict=True):
        if share and split not in chosen.values():
            members = {name: [c for c in clusters if chosen[c] == name] for name in SPLITS}
            largest = max(SPLITS, key=lambda name: len(members[name]))
            if len(members[largest]) > 1:
                # The one nearest to the missing split: it is also the first to go there when the share grows.
                target = ends[SPLITS.index(split)] - share / 2
                chosen[min(members[largest], key=lambda c: abs(_position(c) - target))] = split
    return chosen
