"""Tasks that combine two skills: which word of a list to take, and how to write it. Who has met each skill in some
combination can do those never met; who has met few of them cannot."""

import itertools
import random
from dataclasses import dataclass

from yunque.data.instructions import InstructionRow

# What kind of thing a word is: in English and Spanish, and the words in both.
_KINDS = {
    "animal": ("the animal", "el animal"),
    "food": ("the food", "la comida"),
    "colour": ("the colour", "el color"),
    "place": ("the place", "el lugar"),
    "tool": ("the tool", "la herramienta"),
    "garment": ("the garment", "la prenda"),
}
_WORDS = {
    "animal": (("dog", "perro"), ("fish", "pez"), ("horse", "caballo"), ("bird", "pájaro"), ("cow", "vaca")),
    "food": (
        ("bread", "pan"),
        ("sugar", "azúcar"),
        ("cheese", "queso"),
        ("apple", "manzana"),
        ("soup", "sopa"),
    ),
    "colour": (
        ("red", "rojo"),
        ("blue", "azul"),
        ("green", "verde"),
        ("white", "blanco"),
        ("black", "negro"),
    ),
    "place": (
        ("city", "ciudad"),
        ("island", "isla"),
        ("garden", "jardín"),
        ("bridge", "puente"),
        ("beach", "playa"),
    ),
    "tool": (
        ("hammer", "martillo"),
        ("knife", "cuchillo"),
        ("needle", "aguja"),
        ("brush", "cepillo"),
        ("axe", "hacha"),
    ),
    "garment": (
        ("shirt", "camisa"),
        ("hat", "sombrero"),
        ("shoe", "zapato"),
        ("skirt", "falda"),
        ("coat", "abrigo"),
    ),
}
_WAYS = {
    "plain": ("as it is", "tal cual"),
    "twice": ("twice", "dos veces"),
    "quoted": ("in quotes", "entre comillas"),
    "asked": ("as a question", "como pregunta"),
    "shouted": ("as a shout", "como grito"),
    "other": ("in the other language", "en el otro idioma"),
}
_LENGTH = 4


@dataclass(frozen=True)
class Combination:
    """A task: which word, written how."""

    kind: str
    way: str

    @property
    def name(self) -> str:
        """What the task is called."""
        return f"{self.kind}-{self.way}"


def _written(way: str, word: str, other: str, spanish: bool) -> str:
    return {
        "plain": word,
        "twice": f"{word} {word}",
        "quoted": f"«{word}»",
        "asked": f"¿{word}?" if spanish else f"{word}?",
        "shouted": f"¡{word}!" if spanish else f"{word}!",
        "other": other,
    }[way]


def row(task: Combination, number: int, random_: random.Random) -> InstructionRow:
    """A row of a task, in English or Spanish: a list with one word of the kind wanted among others."""
    kinds = [task.kind, *random_.sample([kind for kind in _KINDS if kind != task.kind], _LENGTH - 1)]
    words = [random_.choice(_WORDS[kind]) for kind in kinds]
    spanish = int(random_.random() < 0.5)
    answer = _written(task.way, words[0][spanish], words[0][1 - spanish], bool(spanish))
    random_.shuffle(words)
    listed = ", ".join(pair[spanish] for pair in words)
    pick, way = _KINDS[task.kind][spanish], _WAYS[task.way][spanish]
    instruction = f"{'Escribe' if spanish else 'Write'} {pick} {way}."
    language = "es" if spanish else "en"
    return InstructionRow(f"{task.name}-{number}", task.name, language, language, instruction, listed, answer)


def tasks(seed: int) -> tuple[list[Combination], list[Combination]]:
    """Tasks to train on, in random order, and six never to train on: each kind and each way stands in one of
    these."""
    random_ = random.Random(seed)
    ways = list(_WAYS)
    random_.shuffle(ways)
    unseen = [Combination(kind, way) for kind, way in zip(_KINDS, ways, strict=True)]
    every = itertools.starmap(Combination, itertools.product(_KINDS, _WAYS))
    trained = [one for one in every if one not in unseen]
    random_.shuffle(trained)
    return trained, unseen
