"""An answer without a model: the sentences of the documents that answer best, quoted word for word.

Whether the documents answer at all is decided here too, by arithmetic: the share of the question's weight that the
best sentence, its heading and its neighbours cover. Words that the corpus does not know count with the weight of
the rarest, so "Can I bring a horse?" stays unanswered however well "Can I bring a" is covered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from yunque.apps.index import Hit, Index
from yunque.apps.passages import RECORD, Passage, Unit
from yunque.apps.question import ANSWER_SHAPES, Question, Term, asking_part, quantities, take_apart
from yunque.apps.synonyms import Synonyms
from yunque.apps.words import LANGUAGES, STOP, Language, fold, language_of, stem, words_of
from yunque.configuration import Settings

CANDIDATES = 40
SYNONYM, OF_A_PLACE, PREFIX, IN_RANGE = 0.9, 0.45, 0.5, 0.8
ASKED, HEADING, NEIGHBOUR = 0.95, 0.8, 0.55
"""What a word counts for that stands not in the sentence but in the question before it, above it or beside it."""
SAME_PASSAGE = 0.1
SHORT = 12
"""A sentence shorter than this ("No.", "Yes.") is quoted together with its neighbour."""
SHAPE, SIMILAR, SPECIFIC, LISTED = 0.18, 0.1, 0.3, 0.05
"""What is added for the shape of an answer, for a near vector and for a rare synonym ("parrot" means a bird sooner
than a pet), and taken off a line of a table, which a person reads less easily than a sentence."""
MISSHAPEN = 0.55
"""What is left of the relevance of a sentence without the sum, time or number that was asked for."""
_RANGE = re.compile(r"\b(\d{1,3}) (?:to|a|and|y|or|o) (\d{1,3})\b")
_LEANS = re.compile(
    r"(?:however|but|this|that|these|those|it|they|in that case|in this case|otherwise|also|"
    r"besides|instead|therefore|such|"
    r"sin embargo|pero|ademas|est[aeo]s?|es[aeo]s?|en (?:ese|este|tal|esos|estos) casos?|"
    r"si no|de lo contrario|tambien|por eso|"
    r"por tanto|dich[oa]s?|yes|no|si)\b[\s,.:]"
)


class Relevance(Settings):
    """When the documents are taken to answer: what the best sentence must reach, from 0 to 1.

    `floor` is calibrated with `yunque index eval`; `other_language` is what an answer from a document in the other
    language must be better by; `similar` is how near the best a further sentence must come to be quoted too.
    """

    floor: float = 0.5
    other_language: float = 0.12
    similar: float = 0.8
    sentences: int = 3


@dataclass(frozen=True)
class Candidate:
    """A sentence that may answer. `score` orders candidates, `relevance` decides whether there is an answer."""

    passage: Passage
    position: int
    score: float
    relevance: float

    @property
    def unit(self) -> Unit:
        """The sentence."""
        return self.passage.units[self.position]


@dataclass(frozen=True)
class _Read:
    """The words of a piece of text as they are compared."""

    folded: str
    stems: frozenset[str]
    groups: frozenset[int]
    quantities: tuple[tuple[float, str], ...]
    ranges: tuple[tuple[float, float], ...]


class Finder:
    """Finds the sentences of an index that answer a question."""

    def __init__(self, index: Index, synonyms: Synonyms, relevance: Relevance | None = None) -> None:
        self.index, self.synonyms, self.relevance = index, synonyms, relevance or Relevance()
        self._read = lru_cache(maxsize=20_000)(self._read_text)
        self._rarity = lru_cache(maxsize=None)(self._group_rarity)

    def question(self, text: str, language: Language | None = None) -> Question:
        """Take a question apart with this index's vocabulary."""
        return take_apart(text, language or language_of(text), self.index.keywords, self.synonyms)

    def hits(self, question: Question, k: int, language: Language) -> list[Hit]:
        """The passages in a language that are nearest to a question."""
        return self.index.search(question.text, k, language, question.expanded[language])

    def candidates(self, question: Question) -> list[Candidate]:
        """Sentences that may answer, best first: those in the question's language, if one of them is enough."""
        own = self._in_language(question, question.language, 0.0)
        if self.suffices(own):
            return own
        other = next(language for language in LANGUAGES if language != question.language)
        found = self._in_language(question, other, self.relevance.other_language)
        return found if self.suffices(found) else own or found

    def _in_language(self, question: Question, language: Language, less: float) -> list[Candidate]:
        found = [
            candidate
            for hit in self.hits(question, CANDIDATES, language)
            for candidate in self._judge(question, hit.passage, hit.vector, less)
        ]
        return sorted(found, key=lambda candidate: -candidate.score)

    def answer(self, question: Question) -> list[Candidate]:
        """The sentences to quote, in the order to quote them; none when the documents do not say."""
        ranked = self.ranked(question)
        return self.chosen(ranked) if self.suffices(ranked) else []

    def ranked(self, question: Question) -> list[Candidate]:
        """`candidates`, to the sentence that asks alone when the story told around it leads nowhere."""
        ranked = self.candidates(question)
        asking = asking_part(question.text)
        if asking and not self.suffices(ranked):
            again = self.candidates(self.question(asking, question.language))
            if self.suffices(again):
                return again
        return ranked

    def suffices(self, ranked: Sequence[Candidate]) -> bool:
        """Whether the best candidate reaches the floor."""
        return bool(ranked) and ranked[0].relevance >= self.relevance.floor

    def _read_text(self, text: str, language: str) -> _Read:
        folded = fold(text).replace("_", " ")
        words = words_of(text)
        stems = [stem(word, language) for word in words]
        stop = STOP["en" if language == "en" else "es"]
        return _Read(
            folded,
            frozenset(stem for word, stem in zip(words, stems, strict=True) if word not in stop),
            frozenset(self.synonyms.groups_of(stems, language)),
            tuple(quantities(folded)),
            tuple((float(low), float(high)) for low, high in _RANGE.findall(folded)),
        )

    def _judge(self, question: Question, passage: Passage, vector: float, less: float) -> list[Candidate]:
        """Score every sentence of a passage; `less` is taken off the relevance."""
        language = passage.language
        name = re.sub(r"[_\W]+", " ", PurePosixPath(passage.file).stem)
        quotes = [passage.quote(unit) for unit in passage.units]
        asked = self._read(" ".join(quote for quote in quotes if quote.endswith("?")), language)
        heading = self._read(f"{name}. {passage.heading}", language)
        own = [self._read(quote, language) for quote in quotes]
        found = []
        for position, read in enumerate(own):
            if quotes[position].endswith("?"):
                continue
            near = own[max(0, position - 2) : position] + own[position + 1 : position + 2]
            covered = reach = telling = 0.0
            for term in question.terms:
                inside = max(_match(term, read, language), ASKED * _match(term, asked, language))
                above = _match(term, heading, language)
                beside = max((_match(term, other, language) for other in near), default=0.0)
                near_synonym = SPECIFIC * self._specificity(term, read)
                covered += term.weight * (max(inside, HEADING * above, NEIGHBOUR * beside) + near_synonym)
                reached = max(inside, 0.95 * above, 0.8 * beside)
                reach += term.weight * reached
                telling = max(telling, reached * term.telling)
            whole = question.weight or 1.0
            shape = _shape(question, read)
            score = covered / whole + SHAPE * shape + SIMILAR * max(vector, 0.0)
            score -= LISTED if RECORD.fullmatch(quotes[position]) else 0.0
            relevance = reach / whole * min(1.0, telling / SYNONYM) * (MISSHAPEN if shape < 0 else 1.0) - less
            found.append(Candidate(passage, position, score, relevance))
        return found

    def _specificity(self, term: Term, read: _Read) -> float:
        """How rare in the corpus, 0 to 1, the rarest group is that a text shares with a term."""
        shared = term.groups & read.groups
        return max((self._rarity(group) for group in shared), default=0.0)

    def _group_rarity(self, group: int) -> float:
        keywords = self.index.keywords
        members = [one for spoken in LANGUAGES for one in self.synonyms.expansions([group], spoken)]
        return (
            min((keywords.idf(one) for one in members if one in keywords), default=keywords.idf())
            / keywords.idf()
        )

    def chosen(self, ranked: Sequence[Candidate]) -> list[Candidate]:
        """The best sentence with what it leans on, then others that are nearly as good and say something else.

        A sentence of the same passage needs less to be quoted too: it mostly completes the first one.
        """
        if not ranked:
            return []
        best = ranked[0]
        chosen = self._with_context(best)
        for candidate in ranked[1:]:
            if len(chosen) >= self.relevance.sentences:
                break
            near = candidate.passage == best.passage
            enough = self.relevance.similar - (SAME_PASSAGE if near else 0.0)
            if candidate.score < best.score * enough or candidate.passage.language != best.passage.language:
                continue
            if not any(self._says_the_same(candidate, other) for other in chosen):
                chosen.append(candidate)
        return chosen

    def _says_the_same(self, first: Candidate, second: Candidate) -> bool:
        """Whether two sentences are one, or share nearly all words and all numbers."""
        if first.unit == second.unit and first.passage == second.passage:
            return True
        one, other = (
            self._read(candidate.passage.quote(candidate.unit), candidate.passage.language)
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


def _match(term: Term, read: _Read, language: Language) -> float:
    """How surely a text mentions a term, 0 to 1."""
    stems = term.stems[language]
    if not stems.isdisjoint(read.stems) or (term.parts and term.parts <= read.stems):
        return 1.0
    if not term.groups.isdisjoint(read.groups):
        # "Short-haul" is how the documents speak of Barcelona, but not of what is only in Barcelona.
        return OF_A_PLACE if term.place else SYNONYM
    if term.quantity:
        value, unit = term.quantity
        alike = [number for number, other in read.quantities if unit in ("", other)]
        bounds = read.ranges if not unit else ((min(alike), max(alike)),) if len(alike) > 1 else ()
        return IN_RANGE if any(low <= value <= high for low, high in bounds) else 0.0
    for wanted in stems:
        if len(wanted) >= 6:
            for found in read.stems:
                shorter = min(len(found), len(wanted))
                if (
                    shorter >= 5
                    and found[:shorter] == wanted[:shorter]
                    and abs(len(found) - len(wanted)) <= 3
                ):
                    return PREFIX
    return 0.0


def _shape(question: Question, read: _Read) -> float:
    """How well a text has the shape of what is asked for (a sum, a time, a permission...), -1 to 1."""
    telling = question.asks - {"permission"} or question.asks
    if not telling:
        return 0.0
    fits = sum(bool(ANSWER_SHAPES[kind].search(read.folded)) for kind in telling) / len(telling)
    return fits if fits else -1.0 if telling != {"permission"} else 0.0
