"""The words of an index as its asker may see them: how rare each is, and which one a typing mistake meant."""

import re
from collections.abc import Iterable
from functools import lru_cache

from yunque.apps.retrieval.stores.postings import inverse_frequency
from yunque.apps.retrieval.stores.store import EVERYTHING, Scope, Store


class Vocabulary:
    """The stems and words of a store within a scope. What was looked up once is remembered."""

    def __init__(self, store: Store, scope: Scope = EVERYTHING) -> None:
        self._store = store
        # Rarity is over all that may be seen, whatever a search is narrowed to.
        self._scope = Scope(scope.groups, scope.version)
        self._entries = store.count(self._scope)
        self._often: dict[str, int] = {}
        self._rarity: dict[str, float] = {}
        self._read_words = False
        self._stems: dict[str, str] = {}
        self._by_letter: dict[str, list[str]] = {}
        self._by_sound: dict[str, list[str]] = {}

    def __contains__(self, stem: str) -> bool:
        return self._frequency(stem) > 0

    def idf(self, *alternatives: str) -> float:
        """How rare a stem is (the commonest of alternatives); a stem that never occurs is the rarest of all."""
        if len(alternatives) == 1 and alternatives[0] in self._rarity:
            return self._rarity[alternatives[0]]
        often = max((self._frequency(stem) for stem in alternatives), default=0)
        rarity = inverse_frequency(self._entries, often)
        if len(alternatives) == 1:
            self._rarity[alternatives[0]] = rarity
        return rarity

    def is_rare(self, *alternatives: str) -> bool:
        """Whether few passages have any of these stems: two, or one in fifty."""
        often = max((self._frequency(stem) for stem in alternatives), default=0)
        return often <= max(2, self._entries // 50)

    def stems(self) -> int:
        """How many different stems the words have."""
        return len({stem for _, stem in self._store.words(self._scope)})

    def learn(self, stems: Iterable[str]) -> None:
        """Look up many stems at once."""
        unknown = [stem for stem in dict.fromkeys(stems) if stem not in self._often]
        if unknown:
            self._often.update(self._store.frequencies(unknown, self._scope))

    def _frequency(self, stem: str) -> int:
        if stem not in self._often:
            self.learn([stem])
        return self._often[stem]

    def _words(self) -> None:
        """Read all words, once."""
        if self._read_words:
            return
        for word, stem in self._store.words(self._scope):
            self._stems.setdefault(word, stem)
        for word in self._stems:
            if word.isalpha():
                self._by_letter.setdefault(word[0], []).append(word)
                self._by_sound.setdefault(_sound(word), []).append(word)
        self._read_words = True

    def nearest_words(self, word: str, extra: frozenset[str] = frozenset()) -> list[str]:
        """Words of the corpus (or of `extra`) that a slip of the finger turns into the unknown folded `word`.

        The words that sound the same come first ("ekipaje", "pupy"); of shorter words no more is asked, but that two
        letters may be swapped ("teh"). Otherwise one edit from five letters on, two from ten on; the first letter is
        right, as it nearly always is. A word whose stem is shorter than four letters is like too many others
        ("movies" is not "moves").
        """
        if len(word) < 3 or not word.isalpha():
            return []
        self._words()
        if len(word) < 5:
            return sorted(known for known in extra if _swapped(word, known) or _same_sound(word, known))
        spoken = _sound(word)
        if alike := sorted(
            known
            for known in {*self._by_sound.get(spoken, ()), *(one for one in extra if _sound(one) == spoken)}
            if known.isalpha() and _same_sound(word, known)
        ):
            return alike
        candidates = {*self._by_letter.get(word[0], ()), *extra}
        allowed = 1 if len(word) < 10 else 2
        best: dict[str, int] = {}
        for known in candidates:
            if not known.isalpha() or known[:1] != word[0] or abs(len(known) - len(word)) > allowed:
                continue
            if min(len(known), len(self._stems.get(known, known)) + 1) < 5:
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
