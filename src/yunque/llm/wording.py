"""What two wordings of one question must have in common, however alike an embedding model says that they are."""

import re
from collections.abc import Iterator

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE = re.compile(r"[.!?¿¡:;\n]+")
_TURNING = """
no not never nor neither none nobody nothing without except unless but only
sin nunca jamás jamas ni tampoco nadie nada ningún ningun ninguna ninguno excepto salvo menos solo sólo sino
"""
_NEGATIONS = frozenset(_TURNING.split())
_BEGINNING = """
a an the is are was were am do does did can could may might must shall should will would have has had what which who
whom whose when where why how please tell give show list explain say write describe summarize if in on at of for from
to with and or my your his her its our their this that these those i we you he she it they there hello hi
el la los las un una unos unas es son era fue está están hay qué que cuál cuáles cual cuánto cuánta cuántos cuántas
cuanto cómo como dónde donde cuándo cuando quién quien quiénes por para con de del en al se me te le lo puedo puede
pueden debo debe tengo tiene dime di dame dígame explica explícame escribe resume describe lista si y o mi tu su mis
tus sus este esta estos estas ese esa eso hola buenos buenas
"""
_BEGINNERS = frozenset(_BEGINNING.split()) | _NEGATIONS
"""Words that a sentence begins with, and which are capitalized for that alone."""


def numbers(text: str) -> list[str]:
    """The numbers of a text, in their order."""
    return _NUMBER.findall(text)


def names(text: str) -> list[str]:
    """The capitalized words of a text, in their order, but for those that only begin a sentence."""
    return [word for word, first in _words(text) if word[0].isupper() and not (first and _is_beginner(word))]


def negations(text: str) -> list[str]:
    """The words that turn a text round: `may not` is not `may`."""
    found = []
    for word, _ in _words(text.lower()):
        word = word.replace("’", "'")
        if word.endswith("n't") or word == "cannot":
            word = "not"
        if word in _NEGATIONS:
            found.append(word)
    return sorted(found)


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Each word, and whether a sentence begins with it."""
    for sentence in _SENTENCE.split(text):
        for number, found in enumerate(_WORD.finditer(sentence)):
            yield found[0], number == 0


def _is_beginner(word: str) -> bool:
    return word.lower().replace("’", "'").partition("'")[0] in _BEGINNERS
