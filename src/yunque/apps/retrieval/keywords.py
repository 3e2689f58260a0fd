"""The keyword half of retrieval: BM25 over stems, and the vocabulary that mends typing mistakes.

BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with k1 = 1.2 and b = 0.75.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.words import STOP, stem, words_of

K1, B = 1.2, 0.75
HEADING_WEIGHT = 2
"""How often a word of the heading counts, against once for a word of the text."""


def stems_of(text: str, language: str) -> list[str]:
    """The stems of a text without its stop words."""
    stop = STOP["en"] if language == "en" else STOP["es"]
    return [stem(word, language) for word in words_of(text) if word not in stop]


class KeywordIndex:
    """Postings of N passages over V stems, as compressed sparse rows (one row a stem)."""

    def __init__(
        self,
        stems: Sequence[str],
        surfaces: Mapping[str, str],
        starts: NDArray[np.int64],
        passages: NDArray[np.int32],
        counts: NDArray[np.float32],
        lengths: NDArray[np.float32],
    ) -> None:
        self.stems = list(stems)
        self.surfaces = dict(surfaces)  # every folded word of the corpus -> its stem
        self.starts, self.passages, self.counts, self.lengths = (
            starts,
            passages,
            counts,
            lengths,
        )  # V+1, P, P, N
        self._rows = {word: number for number, word in enumerate(self.stems)}
        self._mean = float(lengths.mean()) if len(lengths) else 1.0

    @classmethod
    def build(cls, texts: Sequence[tuple[str, str, str]]) -> "KeywordIndex":
        """Index (heading, text, language) triples."""
        postings: dict[str, list[tuple[int, int]]] = {}
        surfaces: dict[str, str] = {}
        lengths = np.zeros(len(texts), np.float32)
        for number, (heading, text, language) in enumerate(texts):
            found = Counter(stems_of(text, language))
            lengths[number] = sum(found.values())
            for word in set(stems_of(heading, language)):
                found[word] += HEADING_WEIGHT
            for word, count in found.items():
                postings.setdefault(word, []).append((number, count))
            for word in {*words_of(text), *words_of(heading)}:
                surfaces.setdefault(word, stem(word, language))
        stems = sorted(postings)
        flat = [entry for word in stems for entry in postings[word]]
        starts = np.concatenate([[0], np.cumsum([len(postings[word]) for word in stems])]).astype(np.int64)
        return cls(
            stems,
            dict(sorted(surfaces.items())),
            starts,
            np.array([number for number, _ in flat], np.int32),
            np.array([count for _, count in flat], np.float32),
            lengths,
        )

    def vocabulary(self) -> dict[str, Any]:
        """The words, as plain JSON values."""
        return {"stems": self.stems, "surfaces": self.surfaces}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The postings, for a safetensors file."""
        return {
            "keywords.starts": self.starts,
            "keywords.passages": self.passages,
            "keywords.counts": self.counts,
            "keywords.lengths": self.lengths,
        }

    @classmethod
    def restore(cls, vocabulary: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> "KeywordIndex":
        """The index that `vocabulary` and `arrays` described."""
        names = ("starts", "passages", "counts", "lengths")
        return cls(
            vocabulary["stems"], vocabulary["surfaces"], *(arrays[f"keywords.{name}"] for name in names)
        )

    def __contains__(self, word: str) -> bool:
        return word in self._rows

    def idf(self, *alternatives: str) -> float:
        """How rare a stem is (the commonest of alternatives); a stem that never occurs is the rarest of all."""
        often = max((self._frequency(word) for word in alternatives), default=0)
        return float(np.log(1 + (len(self.lengths) - often + 0.5) / (often + 0.5)))

    def _frequency(self, word: str) -> int:
        row = self._rows.get(word)
        return 0 if row is None else int(self.starts[row + 1] - self.starts[row])

    def scores(self, terms: Mapping[str, float]) -> NDArray[np.float32]:
        """BM25 of every passage (N) for weighted stems."""
        total = np.zeros(len(self.lengths), np.float32)
        for word, weight in terms.items():
            row = self._rows.get(word)
            if row is None:
                continue
            where = slice(self.starts[row], self.starts[row + 1])
            passages, counts = self.passages[where], self.counts[where]
            norm = K1 * (1 - B + B * self.lengths[passages] / self._mean)
            total[passages] += weight * self.idf(word) * counts * (K1 + 1) / (counts + norm)
        return total

    def nearest_words(self, word: str, extra: frozenset[str] = frozenset()) -> list[str]:
        """Words of the corpus (or of `extra`) that a slip of the finger turns into the unknown folded `word`.

        The words that sound the same come first ("ekipaje", "pupy"); of shorter words no more is asked, but that two
        letters may be swapped ("teh"). Otherwise one edit from five letters on, two from ten on; the first letter is
        right, as it nearly always is. A word whose stem is shorter than four letters is like too many others
        ("movies" is not "moves").
        """
        if len(word) < 3 or not word.isalpha():
            return []
        candidates = [known for known in {*self.surfaces, *extra} if known.isalpha()]
        if len(word) < 5:
            return sorted(known for known in extra if _swapped(word, known) or _same_sound(word, known))
        if alike := sorted(known for known in candidates if _same_sound(word, known)):
            return alike
        allowed = 1 if len(word) < 10 else 2
        best: dict[str, int] = {}
        for known in candidates:
            if known[:1] != word[0] or abs(len(known) - len(word)) > allowed:
                continue
            if min(len(known), len(self.surfaces.get(known, known)) + 1) < 5:
                continue
            # A letter in the place of another more often makes another word ("director", "directos") than a slip.
            if len(known) == len(word) < 9 and not _swapped(word, known):
                continue
            edits = _edits(word, known, allowed)
            if edits <= allowed:
                best[known] = edits
        least = min(best.values(), default=0)
        return sorted(known for known, edits in best.items() if edits == least)


_SOUNDS = (
    (re.compile(r"qu?(?=[ei])|k|c(?![eih])|q"), "k"),
    (re.compile(r"z|c(?=[ei])"), "s"),
    (re.compile(r"g(?=[ei])"), "j"),
    (re.compile(r"ph"), "f"),
    (re.compile(r"(?<![cs])h"), ""),
    (re.compile(r"v"), "b"),
    (re.compile(r"y"), "i"),
    (re.compile(r"(.)\1+"), r"\1"),
)


@lru_cache(maxsize=65536)
def _sound(word: str) -> str:
    """What is left of a folded word when letters that sound alike are written alike."""
    for pattern, plain in _SOUNDS:
        word = pattern.sub(plain, word)
    return word


def _same_sound(word: str, known: str) -> bool:
    return len(word) >= 4 and abs(len(word) - len(known)) <= 2 and _sound(word) == _sound(known)


def _swapped(word: str, known: str) -> bool:
    """Whether two neighbouring letters changed places."""
    return (
        len(word) == len(known)
        and word != known
        and sorted(word) == sorted(known)
        and _edits(word, known, 1) == 1
    )


def _edits(first: str, second: str, limit: int) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours between two words; limit + 1 if more."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        older, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            cost = min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]
