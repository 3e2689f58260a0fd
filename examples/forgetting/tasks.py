"""Six small tasks on lists of words, in English and Spanish: five that the base knows, and one that is new to it."""

import random

from yunque.data.instructions import InstructionRow

_WORDS = {
    "en": (
        *(
            "tree",
            "house",
            "dog",
            "moon",
            "fish",
            "bread",
            "road",
            "rain",
            "night",
            "water",
            "horse",
            "bridge",
        ),
        *(
            "sugar",
            "snow",
            "window",
            "bird",
            "milk",
            "island",
            "garden",
            "glass",
            "stone",
            "flower",
            "paper",
            "train",
        ),
    ),
    "es": (
        *(
            "árbol",
            "casa",
            "perro",
            "luna",
            "pez",
            "pan",
            "camino",
            "lluvia",
            "noche",
            "agua",
            "caballo",
            "puente",
        ),
        *(
            "azúcar",
            "nieve",
            "ventana",
            "pájaro",
            "leche",
            "isla",
            "jardín",
            "vidrio",
            "piedra",
            "flor",
            "papel",
            "tren",
        ),
    ),
}
_ASKED = {
    "first": {"en": "Which word is the first?", "es": "¿Qué palabra es la primera?"},
    "last": {"en": "Which word is the last?", "es": "¿Qué palabra es la última?"},
    "translate": {"en": "Say the first word in Spanish.", "es": "Di la primera palabra en inglés."},
    "contains": {"en": "Is there an animal in the list?", "es": "¿Hay un animal en la lista?"},
    "count": {"en": "How many words are there?", "es": "¿Cuántas palabras hay?"},
    "second": {"en": "Which word is the second?", "es": "¿Qué palabra es la segunda?"},
}
_ANIMALS = {"dog", "fish", "horse", "bird", "perro", "pez", "caballo", "pájaro"}
_NUMBERS = {"en": ("three", "four", "five", "six"), "es": ("tres", "cuatro", "cinco", "seis")}
_YES_NO = {"en": ("yes", "no"), "es": ("sí", "no")}
KNOWN = ("first", "last", "translate", "contains", "count")
NEW = "second"


def row(task: str, name: str, random_: random.Random) -> InstructionRow:
    """A row of a task, with the answers that may be chosen from."""
    language = random_.choice(("en", "es"))
    words = random_.sample(_WORDS[language], random_.randint(3, 6))
    if task == "contains":
        # As often with an animal as without.
        others = [word for word in _WORDS[language] if word not in _ANIMALS]
        words = random_.sample(others, len(words))
        if random_.random() < 0.5:
            words[random_.randrange(len(words))] = random_.choice(sorted(_ANIMALS & set(_WORDS[language])))
    answer, labels = _answer(task, language, words, random_)
    return InstructionRow(
        name, task, language, language, f"{_ASKED[task][language]}", ", ".join(words), answer, tuple(labels)
    )


def _answer(task: str, language: str, words: list[str], random_: random.Random) -> tuple[str, list[str]]:
    if task == "contains":
        yes, no = _YES_NO[language]
        return yes if _ANIMALS & set(words) else no, [yes, no]
    if task == "count":
        return _NUMBERS[language][len(words) - 3], list(_NUMBERS[language])
    if task == "translate":
        other = _WORDS["es" if language == "en" else "en"]
        right = other[_WORDS[language].index(words[0])]
        return right, [right, *random_.sample([word for word in other if word != right], 3)]
    place = {"first": 0, "second": 1, "last": -1}[task]
    return words[place], words


def rows(tasks: tuple[str, ...], of_each: int, seed: int, without: set[str]) -> list[InstructionRow]:
    """So many rows of each task, in turn; none asks what is in `without`."""
    random_ = random.Random(seed)
    found: list[InstructionRow] = []
    for task in tasks:
        asked = set(without)
        while len(asked) < len(without) + of_each:
            one = row(task, f"{task}-{seed}-{len(asked)}", random_)
            if one.question not in asked:
                asked.add(one.question)
                found.append(one)
    random_.shuffle(found)
    return found
