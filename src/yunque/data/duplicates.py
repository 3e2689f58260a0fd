"""Duplicates: exact ones by hash, near ones by MinHash and locality-sensitive hashing, confirmed by true Jaccard.

Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3. Legend: N texts, S shingles, P permutations.
Two texts are near duplicates when the sets of their runs of three words have a Jaccard index of at least 0.8.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
SHINGLE_WORDS = 3
# 21 bands of 6: of pairs at Jaccard 0.8 it proposes 99.8 %, at 0.9 all, at 0.5 it proposes 28 % in vain.
_BANDS, _BAND_ROWS = 21, 6
PERMUTATIONS = _BANDS * _BAND_ROWS
# An estimate from 126 permutations strays by 0.04 (standard deviation) at 0.8; four of them lose nothing.
_ESTIMATE_SLACK = 0.15
_BATCH_SHINGLES = 1 << 15
_KNOWN_WORDS = 1 << 20
_NOTHING = 0xFFFFFFFF

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")

Hashes = NDArray[np.uint64]


def exact_key(text: str) -> bytes:
    """Equal for texts that differ only in case and blanks."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


class _WordHashes(dict[str, int]):
    """64-bit hash of a word, the same on every machine; remembered, since texts repeat their words."""

    def __missing__(self, word: str) -> int:
        if len(self) > _KNOWN_WORDS:
            self.clear()
        self[word] = number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return number


def _mixed(values: Hashes) -> Hashes:
    """The finalizer of SplitMix64: spreads every bit over all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Shingler:
    """Turns texts into sets of hashed shingles."""

    def __init__(self) -> None:
        self._hashes = _WordHashes()

    def shingles(self, text: str) -> Hashes:
        """Distinct hashed runs of three words, sorted (S,); a shorter text is one shingle, an empty one none."""
        hashes = self._hashes
        words = np.array([hashes[word] for word in _WORD.findall(text.casefold())], dtype=np.uint64)
        if not len(words):
            return words
        size = min(SHINGLE_WORDS, len(words))
        runs = np.zeros(len(words) - size + 1, dtype=np.uint64)
        for offset in range(size):
            runs = _mixed(runs + words[offset : len(words) - size + 1 + offset] + np.uint64(offset + 1))
        return np.unique(runs)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Size of the intersection by size of the union; 0 for empty sets."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - common
    return common / union if union else 0.0


def _permutations() -> tuple[Hashes, Hashes]:
    numbers = _mixed(np.arange(1, 2 * PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return numbers[:PERMUTATIONS] | np.uint64(1), numbers[PERMUTATIONS:]


def minhash(sets: Iterable[Hashes]) -> NDArray[np.uint32]:
    """Signatures (N, P) of shingle sets: for each permutation the least hash of the set.

    Permutations are multiply-shift hashes (Dietzfelbinger et al., 1997). An empty set is all ones.
    """
    multipliers, addends = _permutations()
    parts: list[NDArray[np.uint32]] = []
    batch: list[Hashes] = []
    waiting = 0

    def flush() -> None:
        if batch:
            parts.append(_minhash_batch(batch, multipliers, addends))
            batch.clear()

    for shingles in sets:
        batch.append(shingles)
        waiting += len(shingles)
        if waiting >= _BATCH_SHINGLES:
            flush()
            waiting = 0
    flush()
    return np.concatenate(parts) if parts else np.zeros((0, PERMUTATIONS), dtype=np.uint32)


def _minhash_batch(batch: list[Hashes], multipliers: Hashes, addends: Hashes) -> NDArray[np.uint32]:
    signatures = np.full((len(batch), PERMUTATIONS), _NOTHING, dtype=np.uint32)
    filled = np.array([len(shingles) > 0 for shingles in batch])
    if not filled.any():
        return signatures
    lengths = np.array([len(shingles) for shingles in batch if len(shingles)])
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    values_S = np.concatenate(batch)
    for index in range(PERMUTATIONS):
        permuted_S = ((values_S * multipliers[index] + addends[index]) >> np.uint64(32)).astype(np.uint32)
        signatures[filled, index] = np.minimum.reduceat(permuted_S, starts)
    return signatures


def _band_keys(signatures: NDArray[np.uint32]) -> Hashes:
    """One hash for each band of each signature (N, bands)."""
    bands = signatures.reshape(len(signatures), _BANDS, _BAND_ROWS).astype(np.uint64)
    keys: Hashes = np.zeros(bands.shape[:2], dtype=np.uint64)
    for row in range(_BAND_ROWS):
        keys = _mixed(keys + bands[:, :, row] + np.uint64(row + 1))
    return keys


class Neighbours:
    """Looks up, among texts met before, the near duplicates of the next one.

    `text_of(n)` gives text number n again: only signatures are held in memory, texts may lie on disk.
    """

    def __init__(self, signatures: NDArray[np.uint32], text_of: Callable[[int], str]) -> None:
        self._signatures = signatures
        self._keys = _band_keys(signatures)
        # Texts without a word would all fall into the same buckets.
        self._empty = (signatures == _NOTHING).all(axis=1)
        self._buckets: list[dict[tuple[int, int], list[int]]] = [{} for _ in range(_BANDS)]
        shingler = Shingler()
        self._shingles = lru_cache(maxsize=4096)(lambda number: shingler.shingles(text_of(number)))

    def candidates(self, number: int, kind: int = 0) -> list[int]:
        """Texts added with the same `kind` that share a band with this one, in their order."""
        found: set[int] = set()
        for bucket, key in zip(self._buckets, self._keys[number].tolist(), strict=True):
            found.update(bucket.get((key, kind), ()))
        if not found:
            return []
        near = np.array(sorted(found))
        estimates = (self._signatures[near] == self._signatures[number]).mean(axis=1)
        kept: list[int] = near[estimates >= THRESHOLD - _ESTIMATE_SLACK].tolist()
        return kept

    def similarity(self, first: int, second: int) -> float:
        """The true Jaccard index of two texts."""
        return jaccard(self._shingles(first), self._shingles(second))

    def add(self, number: int, kind: int = 0) -> None:
        """Let this text be found from now on; one without a word never is."""
        if self._empty[number]:
            return
        for bucket, key in zip(self._buckets, self._keys[number].tolist(), strict=True):
            bucket.setdefault((key, kind), []).append(number)


@dataclass(frozen=True)
class NearDuplicate:
    """Text `number` is dropped for the earlier text `kept`."""

    number: int
    kept: int
    similarity: float


def numbers_key(text: str) -> int:
    """Equal for texts that hold the same numbers, in whatever order."""
    return hash(tuple(sorted(map(int, (found[:18] for found in _NUMBER.findall(text))))))


def near_duplicates(
    signatures: NDArray[np.uint32], numbers: list[int], text_of: Callable[[int], str]
) -> Iterator[NearDuplicate]:
    """Which texts to drop, the first of its kind being kept, in order.

    Texts that hold different numbers (`numbers_key`) are never near duplicates: "8 kg in fare A" and "10 kg in
    fare A" are two facts, however alike they look.
    """
    neighbours = Neighbours(signatures, text_of)
    for number in range(len(signatures)):
        best = max(
            (
                (neighbours.similarity(number, kept), -kept)
                for kept in neighbours.candidates(number, numbers[number])
            ),
            default=(0.0, 0),
        )
        if best[0] >= THRESHOLD:
            yield NearDuplicate(number, -best[1], round(best[0], 4))
        else:
            neighbours.add(number, numbers[number])
