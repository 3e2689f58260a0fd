"""The relevance floor of an index, found without anybody's questions: from its own sentences.

What it can answer is imitated by telling words of one sentence, what it cannot by as many words of sentences that
have nothing to do with one another, and by questions about other things. The floor is where the two are told apart
best.
"""

import random
from collections.abc import Sequence

from yunque.apps.retrieval.extractive import FLOOR, Finder, Relevance
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.passages import Passage
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import LIGHT, STOP, Language, words_of

QUESTIONS = 30
"""Of each kind."""
TRUST = 1 / 3
"""How far the floor goes from the usual one to what the imitations say: those who really ask know less of the
words."""
_DEPTH = 15
_LEAST_PASSAGES = 40
_BOUNDS = (0.2, 0.6)
"""A floor outside of these would say more about the imitation than about the documents."""
_SHARE = 0.6
"""What part of a sentence's telling words a question has: people do not know the words of the documents."""
_ELSEWHERE: dict[Language, tuple[str, ...]] = {
    "es": (
        "¿Cuántos goles marcó el delantero en la final?",
        "¿Cómo se prepara la masa de la pizza?",
        "¿Quién pintó este cuadro del museo?",
        "¿Cuándo florecen los almendros?",
        "¿Qué distancia hay de la Tierra a Saturno?",
        "¿Quién compuso esa sinfonía?",
    ),
    "en": (
        "How many goals did the striker score in the final?",
        "How do you make the dough of a pizza?",
        "Who painted this picture in the museum?",
        "When do almond trees blossom?",
        "How far is Saturn from the Earth?",
        "Who composed that symphony?",
    ),
}


def calibrated_floor(index: Index) -> float | None:
    """The floor, between 0.2 and 0.6; None for an index too small to tell."""
    ids = index.store.ids(index.scope)
    if len(ids) < _LEAST_PASSAGES:
        return None
    luck = random.Random(0)
    chosen = luck.sample(ids, min(len(ids), 8 * QUESTIONS))
    kept = {entry.id: entry for entry in index.store.get(chosen, index.scope)}
    from yunque.apps.retrieval.index import passage_of

    sentences = _sentences([passage_of(kept[id]) for id in chosen if id in kept], luck)
    if len(sentences) < QUESTIONS:
        return None
    finder = Finder(index, Synonyms(), Relevance(), depth=_DEPTH)
    answerable = [_asked(words, luck) for _, words in sentences[:QUESTIONS]]
    spoken = [language for language, _ in sentences[:QUESTIONS]]
    foreign = _mixed(sentences, luck) + [text for one in sorted(set(spoken)) for text in _ELSEWHERE[one]]
    best = best_floor(
        [_relevance(finder, text) for text in answerable], [_relevance(finder, text) for text in foreign]
    )
    return round(FLOOR + TRUST * (best - FLOOR), 2)


def best_floor(answerable: Sequence[float], foreign: Sequence[float]) -> float:
    """The floor that most of the answerable reach and most of the foreign do not (shares added); of equal ones that
    nearest to the usual floor."""
    floors = [round(n / 100, 2) for n in range(int(_BOUNDS[0] * 100), int(_BOUNDS[1] * 100) + 1)]

    def merit(floor: float) -> tuple[float, float]:
        reached = sum(one >= floor for one in answerable) / len(answerable)
        refused = sum(one < floor for one in foreign) / len(foreign)
        return reached + refused, -abs(floor - FLOOR)

    return max(floors, key=merit)


def _sentences(passages: Sequence[Passage], luck: random.Random) -> list[tuple[Language, list[str]]]:
    """The telling words of a sentence of each passage that has one with enough of them."""
    found = []
    for passage in passages:
        quote = passage.quote(luck.choice(passage.units))
        plain = STOP[passage.language] | LIGHT[passage.language]
        words = [word for word in dict.fromkeys(words_of(quote)) if word.isalpha() and len(word) > 3]
        words = [word for word in words if word not in plain]
        if 4 <= len(words) <= 30:
            found.append((passage.language, words))
    return found


def _asked(words: Sequence[str], luck: random.Random) -> str:
    """Some of the words, in their order, as a question."""
    count = min(max(3, round(_SHARE * len(words))), 6)
    chosen = sorted(luck.sample(range(len(words)), min(count, len(words))))
    return f"¿{' '.join(words[n] for n in chosen)}?"


def _mixed(sentences: Sequence[tuple[Language, list[str]]], luck: random.Random) -> list[str]:
    """Questions of words that stand together nowhere: one of each of several sentences of one language."""
    found = []
    for language in dict.fromkeys(language for language, _ in sentences):
        theirs = [words for spoken, words in sentences if spoken == language]
        if len(theirs) < 8:
            continue
        count = max(1, round(QUESTIONS * len(theirs) / len(sentences)))
        for _ in range(count):
            found.append(f"¿{' '.join(luck.choice(words) for words in luck.sample(theirs, 4))}?")
    return found


def _relevance(finder: Finder, text: str) -> float:
    ranked = finder.candidates(finder.question(text))
    return ranked[0].relevance if ranked else 0.0
