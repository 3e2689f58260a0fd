"""An answer without a model: the sentences of the documents that answer best, quoted word for word.

Two small learned models decide (`yunque.apps.retrieval.ranking`): one orders the sentences, the other gives the
probability that the best of them answers at all. "Can I bring a horse?" stays unanswered however well "Can I bring a"
is covered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from yunque.apps.retrieval.features import Features
from yunque.apps.retrieval.index import Hit, Index
from yunque.apps.retrieval.passages import RECORD, Passage, Unit
from yunque.apps.retrieval.question import Question, take_apart
from yunque.apps.retrieval.ranking import Ranking
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import LANGUAGES, Language, fold, language_of
from yunque.configuration import Settings

CANDIDATES = 40
FLOOR = 0.35
"""The relevance floor of an index on which none was calibrated; the shipped models were fitted for it."""
SAME_PASSAGE = 0.5
"""A sentence of the same passage needs this much of `similar` to be quoted too: it mostly completes the first one."""
IN_WORDS = 0.2
"""A sentence with the numbers of the best one, a line of a table, needs this much: a person reads it more easily."""
SHORT = 12
"""A sentence shorter than this ("No.", "Yes.") is quoted together with its neighbour."""
_LEANS = re.compile(
    r"(?:however|but|this|that|these|those|it|they|in that case|in this case|otherwise|also|"
    r"besides|instead|therefore|such|"
    r"sin embargo|pero|ademas|est[aeo]s?|es[aeo]s?|en (?:ese|este|tal|esos|estos) casos?|"
    r"si no|de lo contrario|tambien|por eso|"
    r"por tanto|dich[oa]s?|yes|no|si)\b[\s,.:]"
)


class Relevance(Settings):
    """When the documents are taken to answer.

    `floor` is the probability that the best sentence must reach: None is the one that was calibrated on the index
    (`yunque index eval` says which one is best for a set of questions). `other_language` is what an answer from a
    document in the other language must be better by. `similar` are the odds against the best sentence that a further
    one must have to be quoted too.
    """

    floor: float | None = None
    other_language: float = 0.35
    similar: float = 0.1
    sentences: int = 3


@dataclass(frozen=True)
class Candidate:
    """A sentence that may answer. `score` orders candidates; `relevance`, the probability that the best of them
    answers, decides whether there is an answer."""

    passage: Passage
    position: int
    score: float
    relevance: float

    @property
    def unit(self) -> Unit:
        """The sentence."""
        return self.passage.units[self.position]


class Finder:
    """Finds the sentences of an index that answer a question."""

    def __init__(
        self,
        index: Index,
        synonyms: Synonyms,
        relevance: Relevance | None = None,
        ranking: Ranking | None = None,
        depth: int = CANDIDATES,
    ) -> None:
        self.index, self.synonyms, self._depth = index, synonyms, depth
        self.relevance, self.ranking = relevance or Relevance(), ranking or Ranking.shipped()
        self.features = Features(index, synonyms)
        calibrated = FLOOR if index.floor is None else index.floor
        self.floor = calibrated if self.relevance.floor is None else self.relevance.floor

    def question(self, text: str, language: Language | None = None) -> Question:
        """Take a question apart with this index's vocabulary."""
        return take_apart(text, language or language_of(text), self.index.keywords, self.synonyms)

    def hits(self, question: Question, k: int, language: Language) -> list[Hit]:
        """The passages in a language that are nearest to a question."""
        # By ranks: the models that order the sentences were fitted so.
        return self.index.search(question.text, k, language, question.expanded[language], fusion="ranks")

    def candidates(self, question: Question) -> list[Candidate]:
        """Sentences that may answer, best first: those in the question's language, if one of them is enough."""
        own = self._in_language(question, question.language, 0.0)
        if self.suffices(own):
            return own
        other = next(language for language in LANGUAGES if language != question.language)
        found = self._in_language(question, other, self.relevance.other_language)
        return found if self.suffices(found) else own or found

    def _in_language(self, question: Question, language: Language, less: float) -> list[Candidate]:
        """The sentences in a language, best first; `less` is taken off the relevance."""
        found = self.features.sentences(question, self.hits(question, self._depth, language), language)
        if not found:
            return []
        scores = self.ranking.scores(np.stack([sentence.features for sentence in found]))
        ranked = [(float(scores[n]), found[n]) for n in np.argsort(-scores, kind="stable")]
        features = self.features.answer(question, ranked)
        # Everyday words, places and numbers alone make no topic: some telling word must be met.
        known = self.ranking.probability(features) if ranked[0][1].feature("telling") > 0 else 0.0
        relevance = max(known - less, 0.0)
        return [Candidate(one.passage, one.position, score, relevance) for score, one in ranked]

    def passage_scores(self, question: Question, hits: Sequence[Hit]) -> dict[str, float]:
        """The score of the best sentence of each passage that has one which could answer, by the hit's id."""
        best: dict[str, float] = {}
        for language in LANGUAGES:
            theirs = [hit for hit in hits if hit.passage.language == language]
            found = self.features.sentences(question, theirs, language)
            if not found:
                continue
            ids = {id(hit.passage): hit.id for hit in theirs}
            scores = self.ranking.scores(np.stack([sentence.features for sentence in found]))
            for sentence, score in zip(found, scores.tolist(), strict=True):
                hit_id = ids[id(sentence.passage)]
                best[hit_id] = max(best.get(hit_id, score), score)
        return best

    def answer(self, question: Question) -> list[Candidate]:
        """The sentences to quote, in the order to quote them; none when the documents do not say."""
        ranked = self.candidates(question)
        return self.chosen(ranked) if self.suffices(ranked) else []

    def suffices(self, ranked: Sequence[Candidate]) -> bool:
        """Whether the best candidate reaches the floor."""
        return bool(ranked) and ranked[0].relevance >= self.floor

    def chosen(self, ranked: Sequence[Candidate]) -> list[Candidate]:
        """The best sentence with what it leans on, then others that are nearly as good and say something else."""
        if not ranked:
            return []
        best = ranked[0]
        chosen = self._with_context(best)
        for candidate in ranked[1:]:
            if len(chosen) >= self.relevance.sentences:
                break
            enough = self.relevance.similar * self._slack(candidate, best)
            if exp(candidate.score - best.score) < enough:
                continue
            if not any(self._says_the_same(candidate, other) for other in chosen):
                chosen.append(candidate)
        return chosen

    def _slack(self, candidate: Candidate, best: Candidate) -> float:
        """What part of `similar` is enough for a candidate."""
        if candidate.passage == best.passage:
            return SAME_PASSAGE
        record = RECORD.match(best.passage.quote(best.unit)) is not None
        return IN_WORDS if record and self.features.same_numbers(candidate, best) else 1.0

    def _says_the_same(self, first: Candidate, second: Candidate) -> bool:
        """Whether two sentences are one, or share nearly all words and all numbers."""
        if first.unit == second.unit and first.passage == second.passage:
            return True
        one, other = (
            self.features.read(candidate.passage.quote(candidate.unit), candidate.passage.language)
            for candidate in (first, second)
        )
        if set(one.quantities) != set(other.quantities):
            return False
        return len(one.stems & other.stems) >= 0.7 * min(len(one.stems), len(other.stems))

    def _with_context(self, best: Candidate) -> list[Candidate]:
        """The best sentence, and the neighbour without which it cannot be understood."""
        chosen = [best]
        units = best.passage.units
        before = best.position - 1
        if before >= 0 and _LEANS.match(fold(best.passage.quote(best.unit)) + " "):
            if not best.passage.quote(units[before]).endswith("?"):
                chosen.insert(0, Candidate(best.passage, before, best.score, best.relevance))
        elif before >= 0 and len(best.passage.quote(units[before])) < SHORT:
            chosen.insert(0, Candidate(best.passage, before, best.score, best.relevance))
        elif len(best.passage.quote(best.unit)) < SHORT and best.position + 1 < len(units):
            chosen.append(Candidate(best.passage, best.position + 1, best.score, best.relevance))
        return chosen
