"""The keyword half of a store: what an entry is found by, and BM25 over lists of who has a stem.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with k1 = 1.2 and b = 0.75.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.words import LANGUAGES, STOP, Language, stem, words_of

K1, B = 1.2, 0.75
HEADING_WEIGHT = 2
"""How often a word of the heading counts, against once for a word of the text."""
ANALYZER = "1"
"""Changes when a text would give other stems than before: what a store holds could then no longer be found."""
_REMEMBERED = 65_536


@dataclass(frozen=True)
class Analyzed:
    """How often each stem counts in an entry, how many stems its text has, its folded words with their stems, and the
    language that it was read in."""

    counts: dict[str, int]
    length: int
    words: dict[str, str]
    language: str


class _Stems(dict[str, str]):
    """The stems of words in a language, looked up as in a dictionary: a call for each would take five times as long.
    The stem of a word in `stop` is ""."""

    def __init__(self, language: Language, stop: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._language, self._stop = language, stop

    def __missing__(self, word: str) -> str:
        if len(self) >= _REMEMBERED:
            self.clear()
        self[word] = found = "" if word in self._stop else stem(word, self._language)
        return found


_STEMS = {language: _Stems(language) for language in LANGUAGES}
_TELLING = {language: _Stems(language, STOP[language]) for language in LANGUAGES}


def analyze(heading: str, text: str, language: str) -> Analyzed:
    """Take an entry apart. Stop words are words, but no stems to look for."""
    spoken: Language = "en" if language == "en" else "es"
    stems, telling = _STEMS[spoken], _TELLING[spoken]
    words = words_of(text)
    counts: dict[str, int] = Counter(map(telling.__getitem__, words))
    length = len(words) - counts.pop("", 0)
    above = _words_above(heading)
    for one in {telling[word] for word in above} - {""}:
        counts[one] = counts.get(one, 0) + HEADING_WEIGHT
    words += above
    return Analyzed(counts, length, dict(zip(words, map(stems.__getitem__, words), strict=True)), language)


@lru_cache(maxsize=1024)
def _words_above(heading: str) -> tuple[str, ...]:
    """The words of a heading, under which there are mostly more passages than one."""
    return tuple(words_of(heading))


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
    places = defaultdict[str, int](count().__next__)
    stems: list[int] = []
    counts: list[int] = []
    numbers: list[int] = []
    lengths: list[int] = []
    for number, one in analyzed:
        stems.extend(map(places.__getitem__, one.counts))
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
