"""What the two learned models see: features of a sentence that may answer, and of the best of them together.

All are shares, cosines or logarithms of small counts, so that they mean the same on another corpus.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.index import Hit, Index
from yunque.apps.retrieval.passages import RECORD, Passage
from yunque.apps.retrieval.question import Question, Term
from yunque.apps.retrieval.reading import OF_A_PLACE, SYNONYM, Reading, match, read, shape
from yunque.apps.retrieval.stores.postings import K1
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import LANGUAGES, Language

HEADING, NEIGHBOUR = 0.8, 0.55
"""What a word counts for, in `nearby`, that stands not in the sentence but above it or beside it."""
FAR = 5.0
"""The most that a margin counts."""
BEST_OF_BM25 = K1 + 1
"""What a word that stands often in a passage adds to its BM25, over its idf."""
WINDOW = 3
"""Two words of a question stand together in a sentence when they are no further apart than this."""

SENTENCE = (
    "covered",
    "nearby",
    "asking",
    "telling",
    "exact",
    "heading",
    "pairs",
    "fits",
    "misfits",
    "specific",
    "focus",
    "vector",
    "sentence_vector",
    "keyword",
    "fused",
    "record",
    "fitting",
)
"""The features of a sentence, in order.

covered, exact, heading: the share of the question's weight that the sentence (synonyms too; the word itself only) or
its heading has. nearby: the same where the sentence, its heading or its neighbours have it. asking: `nearby` for the
words of the asking clause. telling: the weight of the telling words near, over the heaviest possible word. pairs: the
share of neighbouring words of the question that stand together. fits, misfits: the shape of the answer. specific: how
rare the rarest shared group of synonyms is. focus: the share of the sentence's own weight that the question has.
vector, sentence_vector, keyword, fused: cosines of passage and sentence, BM25 over the best possible, reciprocal rank
over the best. record: a line of a table. fitting: nearby, where the shape fits.
"""
ANSWER = (
    "score",
    "margin",
    "nearby",
    "lacking",
    "place",
    "heaviest",
    "telling",
    "misfits",
    "pairs",
    "keyword",
    "sentence_vector",
)
"""The features of the best sentence that decide whether it answers, in order.

score: the ranker's. margin: how far behind the best of another passage is that does not state the same numbers. Of
the asking clause: lacking, heaviest: the weight of the heaviest telling word that the passage lacks, or has, over the
heaviest possible; telling: how many telling words the passage has (a logarithm); place: whether it lacks a place. The
others as in `SENTENCE`.
"""


class Quotable(Protocol):
    """A sentence by where it stands."""

    @property
    def passage(self) -> Passage: ...

    @property
    def position(self) -> int: ...


@dataclass(frozen=True)
class Sentence:
    """A sentence that may answer: where it stands and its features (`SENTENCE`)."""

    passage: Passage
    position: int
    features: NDArray[np.float32]

    def feature(self, name: str) -> float:
        """One feature by its name."""
        return float(self.features[SENTENCE.index(name)])


class Features:
    """Computes the features over one index."""

    def __init__(self, index: Index, synonyms: Synonyms) -> None:
        self.index, self.synonyms = index, synonyms
        self.read = lru_cache(maxsize=20_000)(self._read)
        self._rarity = lru_cache(maxsize=None)(self._group_rarity)
        self._vector = lru_cache(maxsize=20_000)(self._embed)

    def _read(self, text: str, language: Language) -> Reading:
        return read(text, language, self.synonyms)

    def _read_at(self, one: Quotable) -> Reading:
        passage = one.passage
        return self.read(passage.quote(passage.units[one.position]), passage.language)

    def _match(self, term: Term, found: Reading, language: Language) -> float:
        """`match`, and surer of a place the rarer the group is that it shares with a text."""
        matched = match(term, found, language)
        if term.place and matched == OF_A_PLACE:
            rarity = max(self._rarity(group) for group in term.groups & found.groups)
            return OF_A_PLACE + (SYNONYM - OF_A_PLACE) * rarity
        return matched

    def _embed(self, text: str, language: Language) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.index.embedder.embed([(text, language)])[0]
        return vector

    def sentences(self, question: Question, hits: Sequence[Hit], language: Language) -> list[Sentence]:
        """Every sentence of the hits but those that ask."""
        if not hits:
            return []
        forms = [self._forms(term, language) for term in question.terms]
        keywords = self.index.keywords
        possible = sum(
            BEST_OF_BM25 * weight * keywords.idf(word)
            for word, weight in question.expanded[language].items()
            if word in keywords
        )
        best = max(hit.score for hit in hits)
        asked = self._vector(question.text, question.language)
        found = []
        for hit in hits:
            shared = {
                "vector": max(hit.vector, 0.0),
                "keyword": hit.keyword / max(possible, 1e-6),
                "fused": hit.score / best,
            }
            found += self._of_passage(question, hit.passage, forms, asked, shared)
        return found

    def _of_passage(
        self,
        question: Question,
        passage: Passage,
        forms: Sequence[frozenset[str]],
        asked_vector: NDArray[np.float32],
        shared: Mapping[str, float],
    ) -> list[Sentence]:
        language, terms, rarest = passage.language, question.terms, self.index.keywords.idf()
        quotes = [passage.quote(unit) for unit in passage.units]
        heading = self.read(heading_of(passage), language)
        own = [self.read(quote, language) for quote in quotes]
        self.index.keywords.learn(stem for one in own for stem in one.stems)
        wanted = frozenset().union(*forms)
        asks = self.read(" ".join(quote for quote in quotes if quote.endswith("?")), language)
        above = [self._match(term, heading, language) for term in terms]
        before = [self._match(term, asks, language) for term in terms]
        inside = [[self._match(term, one, language) for term in terms] for one in own]
        found = []
        for position, one in enumerate(own):
            if quotes[position].endswith("?"):
                continue
            beside = inside[max(0, position - 2) : position] + inside[position + 1 : position + 2]
            near = [
                max(
                    within,
                    0.95 * asked,
                    HEADING * top,
                    NEIGHBOUR * max((row[n] for row in beside), default=0),
                )
                for n, (within, asked, top) in enumerate(zip(inside[position], before, above, strict=True))
            ]
            fits = shape(question, one)
            values = {
                **shared,
                "covered": _share(terms, inside[position]),
                "nearby": _share(terms, near),
                "asking": _share(terms, near, [term.asking for term in terms]),
                "telling": sum(t.weight * m for t, m in zip(terms, near, strict=True) if t.telling) / rarest,
                "exact": _share(terms, [float(m >= 1) for m in inside[position]]),
                "heading": _share(terms, above),
                "pairs": _pairs(forms, one.order),
                "fits": max(fits, 0.0),
                "misfits": float(fits < 0),
                "specific": self._specific(question, one),
                "fitting": max(fits, 0.0) * _share(terms, near),
                "focus": self._focus(one, wanted),
                "sentence_vector": float(asked_vector @ self._vector(quotes[position], language)),
                "record": float(RECORD.match(quotes[position]) is not None),
            }
            found.append(
                Sentence(passage, position, np.array([values[name] for name in SENTENCE], np.float32))
            )
        return found

    def answer(self, question: Question, ranked: Sequence[tuple[float, Sentence]]) -> NDArray[np.float32]:
        """The features (`ANSWER`) of sentences in the order of their scores; at least one."""
        score, best = ranked[0]
        others = (one for one in ranked if one[1].passage != best.passage)
        second = next((value for value, one in others if not self.same_numbers(one, best)), score - FAR)
        asking = [term for term in question.terms if term.asking]
        rarest = self.index.keywords.idf()
        pairs = list(zip(asking, self._in_passage(asking, best.passage), strict=True))
        telling = [(term, matched) for term, matched in pairs if term.telling]
        values = {name: best.feature(name) for name in ANSWER if name in SENTENCE}
        values |= {
            "score": score,
            "margin": min(score - second, FAR),
            "lacking": max((term.weight * (1 - m) for term, m in telling), default=0.0) / rarest,
            "place": max((1 - m for term, m in pairs if term.place), default=0.0),
            "heaviest": max((term.weight * m for term, m in telling), default=0.0) / rarest,
            "telling": math.log1p(sum(m for _, m in telling)),
        }
        return np.array([values[name] for name in ANSWER], np.float32)

    def same_numbers(self, one: Quotable, best: Quotable) -> bool:
        """Whether one sentence states all the numbers of the other: two documents that say the same."""
        first, second = ({value for value, _ in self._read_at(it).quantities} for it in (one, best))
        return bool(first and second) and (first <= second or second <= first)

    def _in_passage(self, terms: Sequence[Term], passage: Passage) -> list[float]:
        """How surely a passage with its heading mentions each term."""
        language = passage.language
        texts = [self.read(passage.quote(unit), language) for unit in passage.units]
        texts.append(self.read(heading_of(passage), language))
        return [max(self._match(term, text, language) for text in texts) for term in terms]

    def _forms(self, term: Term, language: Language) -> frozenset[str]:
        return term.stems[language] | self.synonyms.expansions(term.groups, language) | term.parts

    def _focus(self, found: Reading, wanted: frozenset[str]) -> float:
        weights = {stem: self.index.keywords.idf(stem) for stem in found.stems if not stem[0].isdigit()}
        whole = sum(weights.values())
        return sum(weight for stem, weight in weights.items() if stem in wanted) / whole if whole else 0.0

    def _specific(self, question: Question, found: Reading) -> float:
        """The weighted mean over the terms of how rare the rarest shared group is, 0 to 1."""
        return _share(
            question.terms,
            [
                max((self._rarity(group) for group in term.groups & found.groups), default=0.0)
                for term in question.terms
            ],
        )

    def _group_rarity(self, group: int) -> float:
        keywords = self.index.keywords
        members = [one for spoken in LANGUAGES for one in self.synonyms.expansions([group], spoken)]
        rarest = keywords.idf()
        return min((keywords.idf(one) for one in members if one in keywords), default=rarest) / rarest


def heading_of(passage: Passage) -> str:
    """Where a passage stands: the name of its file and its headings."""
    name = re.sub(r"[_\W]+", " ", PurePosixPath(passage.file).stem)
    return f"{name}. {passage.heading}"


def _share(terms: Sequence[Term], matches: Sequence[float], kept: Sequence[bool] | None = None) -> float:
    """The share of the terms' weight that the matches reach, of all terms or of those kept."""
    rows = zip(terms, matches, kept or [True] * len(terms), strict=True)
    chosen = [(term.weight, matched) for term, matched, keep in rows if keep]
    whole = sum(weight for weight, _ in chosen)
    return sum(weight * matched for weight, matched in chosen) / whole if whole else 0.0


def _pairs(forms: Sequence[frozenset[str]], order: Sequence[str]) -> float:
    """The share of neighbouring terms that stand within a few words of one another."""
    places = [[n for n, word in enumerate(order) if word in wanted] for wanted in forms]
    near = [
        any(0 < abs(i - j) <= WINDOW for i in first for j in second) for first, second in pairwise(places)
    ]
    return sum(near) / len(near) if near else 0.0
