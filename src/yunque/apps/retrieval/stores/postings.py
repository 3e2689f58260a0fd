"""The keyword half of a store: what an entry is found by, and BM25 over lists of who has a stem.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with k1 = 1.2 and b = 0.75.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.words import STOP, stem, words_of

K1, B = 1.2, 0.75
HEADING_WEIGHT = 2
"""How often a word of the heading counts, against once for a word of the text."""
ANALYZER = "1"
"""Changes when a text would give other stems than before: what a store holds could then no longer be found."""


@dataclass(frozen=True)
class Analyzed:
    """How often each stem counts in an entry, how many stems its text has, its folded words with their stems, and the
    language that it was read in."""

    counts: dict[str, int]
    length: int
    words: dict[str, str]
    language: str


def analyze(heading: str, text: str, language: str) -> Analyzed:
    """Take an entry apart. Stop words are words, but no stems to look for."""
    stop = STOP["en"] if language == "en" else STOP["es"]
    words: dict[str, str] = {}
    counts: dict[str, int] = {}
    length = 0
    for word, often in Counter(words_of(text)).items():
        words[word] = one = stem(word, language)
        if word not in stop:
            counts[one] = counts.get(one, 0) + often
            length += often
    above: set[str] = set()
    for word in words_of(heading):
        if word not in words:
            words[word] = stem(word, language)
        if word not in stop:
            above.add(words[word])
    for one in above:
        counts[one] = counts.get(one, 0) + HEADING_WEIGHT
    return Analyzed(counts, length, words, language)


def inverse_frequency(entries: int, often: int) -> float:
    """How rare a stem is that `often` of so many entries have."""
    return float(np.log(1 + (entries - often + 0.5) / (often + 0.5)))


def bm25(
    counts: NDArray[np.float32], lengths: NDArray[np.float32], mean: float, inverse: float
) -> NDArray[np.float32]:
    """What a stem adds to the score of the entries that have it so often, and are so long."""
    norm = K1 * (1 - B + B * lengths / (mean or 1.0))
    return (inverse * counts * (K1 + 1) / (counts + norm)).astype(np.float32)


def best(scores: NDArray[np.float32], allowed: NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """The places of the `k` highest scores among those allowed, highest first, the earliest first among equals."""
    places = np.flatnonzero(allowed)
    if k <= 0 or not len(places):
        return places[:0]
    found = scores[places]
    if len(places) > k:
        least = np.partition(found, len(found) - k)[len(found) - k]
        kept = found >= least
        places, found = places[kept], found[kept]
    return places[np.argsort(-found, kind="stable")][:k]


def gathered(
    analyzed: Iterable[tuple[int, Analyzed]],
) -> dict[str, tuple[NDArray[np.int32], NDArray[np.uint16]]]:
    """For each stem, in order, the numbers of the entries that have it, ascending as they come, and how often
    each."""
    places: dict[str, int] = {}
    stems: list[int] = []
    counts: list[int] = []
    numbers: list[int] = []
    lengths: list[int] = []
    for number, one in analyzed:
        stems += [places.setdefault(word, len(places)) for word in one.counts]
        counts += one.counts.values()
        numbers.append(number)
        lengths.append(len(one.counts))
    of_stem = np.array(stems, np.int32)
    order = np.argsort(of_stem, kind="stable")
    sorted_numbers = np.repeat(np.array(numbers, "<i4"), lengths)[order]
    sorted_counts = np.minimum(np.array(counts, np.int64), 65535).astype("<u2")[order]
    ends = np.searchsorted(of_stem[order], np.arange(len(places) + 1))
    return {
        word: (sorted_numbers[ends[n] : ends[n + 1]], sorted_counts[ends[n] : ends[n + 1]])
        for word, n in sorted(places.items())
    }
