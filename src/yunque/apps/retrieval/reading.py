"""How a text of the documents is compared with a question: its words, its synonyms' groups, its numbers."""

import re
from dataclasses import dataclass

from yunque.apps.retrieval.question import ANSWER_SHAPES, Question, Term, quantities
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import STOP, Language, fold, stem, words_of

SYNONYM, OF_A_PLACE, PREFIX, IN_RANGE = 0.9, 0.45, 0.5, 0.8
_RANGE = re.compile(r"\b(\d{1,3}) (?:to|a|and|y|or|o) (\d{1,3})\b")


@dataclass(frozen=True)
class Reading:
    """The words of a text as they are compared; `order` are the stems as they follow one another, no stop words."""

    folded: str
    order: tuple[str, ...]
    stems: frozenset[str]
    groups: frozenset[int]
    quantities: tuple[tuple[float, str], ...]
    ranges: tuple[tuple[float, float], ...]


def read(text: str, language: Language, synonyms: Synonyms) -> Reading:
    """Take a text apart."""
    folded = fold(text).replace("_", " ")
    words = words_of(text)
    stems = [stem(word, language) for word in words]
    order = tuple(one for word, one in zip(words, stems, strict=True) if word not in STOP[language])
    return Reading(
        folded,
        order,
        frozenset(order),
        frozenset(synonyms.groups_of(stems, language)),
        tuple(quantities(folded)),
        tuple((float(low), float(high)) for low, high in _RANGE.findall(folded)),
    )


def match(term: Term, found: Reading, language: Language) -> float:
    """How surely a text mentions a term, 0 to 1."""
    stems = term.stems[language]
    if not stems.isdisjoint(found.stems) or (term.parts and term.parts <= found.stems):
        return 1.0
    if not term.groups.isdisjoint(found.groups):
        # "Short-haul" is how the documents speak of Barcelona, but not of what is only in Barcelona.
        return OF_A_PLACE if term.place else SYNONYM
    if term.quantity:
        value, unit = term.quantity
        alike = [number for number, other in found.quantities if unit in ("", other)]
        bounds = found.ranges if not unit else ((min(alike), max(alike)),) if len(alike) > 1 else ()
        return IN_RANGE if any(low <= value <= high for low, high in bounds) else 0.0
    return PREFIX if any(_begin_alike(wanted, other) for wanted in stems for other in found.stems) else 0.0


def _begin_alike(wanted: str, other: str) -> bool:
    """Whether one of two long stems, of nearly one length, is the beginning of the other."""
    shorter = min(len(other), len(wanted))
    return shorter >= 5 and other[:shorter] == wanted[:shorter] and abs(len(other) - len(wanted)) <= 3


def shape(question: Question, found: Reading) -> float:
    """How well a text has the shape of what is asked for (a sum, a time, a permission...), -1 to 1."""
    telling = question.asks - {"permission"} or question.asks
    if not telling:
        return 0.0
    fits = sum(bool(ANSWER_SHAPES[kind].search(found.folded)) for kind in telling) / len(telling)
    return fits if fits else -1.0 if telling != {"permission"} else 0.0
