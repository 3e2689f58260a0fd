"""Build the rows of the task collection of the package from hand-written words.

Reads ``tools/tasks_source`` (tables of nouns, pairs and short texts) and writes the ``TASK.jsonl`` of every task
under ``src/yunque/samples/tasks``; the ``TASK.yaml`` there are written by hand. Deterministic: a seed for each task.

Usage: ``python tools/build_tasks.py``
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tools" / "tasks_source"
TARGET = ROOT / "src" / "yunque" / "samples" / "tasks"
ROWS = 80

Row = dict[str, str]

# What is called what: label in English and Spanish, and "is this word ...".
KINDS = {
    "animal": ("animal", "an animal", "un animal"),
    "fruit": ("fruta", "a fruit", "una fruta"),
    "color": ("color", "a color", "un color"),
    "clothes": ("ropa", "a piece of clothing", "una prenda de vestir"),
    "body": ("cuerpo", "a part of the body", "una parte del cuerpo"),
    "job": ("oficio", "a job", "un oficio"),
    "vehicle": ("vehículo", "a vehicle", "un vehículo"),
    "furniture": ("mueble", "a piece of furniture", "un mueble"),
}
UNITS = {
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis "
    "veintisiete veintiocho veintinueve",
}
TENS = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
}


def table(name: str) -> list[Row]:
    """The rows of a hand-written table."""
    with (SOURCE / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


NOUNS = table("nouns")


def in_words(number: int, language: str) -> str:
    """A number from 0 to 99 in words."""
    units = UNITS[language].split()
    if number < len(units):
        return units[number]
    tens, rest = divmod(number, 10)
    word = TENS[language].split()[tens - 2]
    if not rest:
        return word
    return f"{word}-{units[rest]}" if language == "en" else f"{word} y {units[rest]}"


def kind_name(category: str, language: str) -> str:
    """ "an animal", "una fruta"."""
    return KINDS[category][1 if language == "en" else 2]


def words_of(chance: random.Random, language: str, count: int) -> list[str]:
    """Different nouns."""
    return [noun[language] for noun in chance.sample(NOUNS, count)]


def categories(chance: random.Random, language: str, fields: list[str]) -> Iterator[Row]:
    """A word, its category, and three other words of it."""
    for noun in chance.sample(NOUNS, len(NOUNS)):
        others = [
            each[language] for each in NOUNS if each["category"] == noun["category"] and each is not noun
        ]
        label = noun["category"] if language == "en" else KINDS[noun["category"]][0]
        yield dict(zip(fields, (noun[language], label, ", ".join(chance.sample(others, 3))), strict=True))


def is_it(chance: random.Random, language: str, fields: list[str], answers: tuple[str, str]) -> Iterator[Row]:
    """Half of the words are asked after their own category, half after another one."""
    for number, noun in enumerate(chance.sample(NOUNS, ROWS)):
        asked = noun["category"]
        if number % 2:
            asked = chance.choice([kind for kind in KINDS if kind != asked])
        values = (noun[language], kind_name(asked, language), answers[number % 2])
        yield dict(zip(fields, values, strict=True))


def one_of_another_kind(
    chance: random.Random, language: str, fields: list[str], named: bool
) -> Iterator[Row]:
    """Three words of which one is of a kind of its own: it is asked by its kind (`named`), or as the odd one."""
    while True:
        single, pair = chance.sample(list(KINDS), 2)
        one = chance.choice([noun for noun in NOUNS if noun["category"] == single])
        two = chance.sample([noun for noun in NOUNS if noun["category"] == pair], 2)
        listed = [noun[language] for noun in (one, *two)]
        chance.shuffle(listed)
        kind = [kind_name(single, language)] if named else []
        yield dict(zip(fields, (*kind, *listed, one[language]), strict=True))


def animal_sizes(chance: random.Random, language: str, fields: list[str], larger: bool) -> Iterator[Row]:
    """Two animals of a table that begins with the smallest."""
    pairs = list(combinations([animal[language] for animal in table("animal-sizes")], 2))
    for small, large in chance.sample(pairs, len(pairs)):
        shown = chance.sample((small, large), 2)
        yield dict(zip(fields, (*shown, large if larger else small), strict=True))


def number_sizes(chance: random.Random, fields: list[str], larger: bool) -> Iterator[Row]:
    """Two numbers below 100."""
    while True:
        pair = chance.sample(range(100), 2)
        chosen = max(pair) if larger else min(pair)
        yield dict(zip(fields, map(str, (*pair, chosen)), strict=True))


def word_lengths(chance: random.Random, language: str, fields: list[str], longest: bool) -> Iterator[Row]:
    """Three words, one of them longer (or shorter) than both others by two letters at least."""
    while True:
        words = words_of(chance, language, 3)
        ranked = sorted(words, key=len, reverse=longest)
        if abs(len(ranked[0]) - len(ranked[1])) >= 2:
            yield dict(zip(fields, (*words, ranked[0]), strict=True))


def lists(
    chance: random.Random,
    language: str,
    fields: list[str],
    answer: Callable[[list[str]], str],
    lengths: tuple[int, ...] = (3, 4),
    separator: str = ", ",
) -> Iterator[Row]:
    """A list of nouns, and what `answer` makes of it; every length as often."""
    number = 0
    while True:
        words = words_of(chance, language, lengths[number % len(lengths)])
        number += 1
        yield dict(zip(fields, (separator.join(words), answer(words)), strict=True))


def number_lists(chance: random.Random) -> Iterator[Row]:
    """Three numbers below 100, and the same in order."""
    while True:
        numbers = chance.sample(range(100), 3)
        yield {"list": ", ".join(map(str, numbers)), "sorted": ", ".join(map(str, sorted(numbers)))}


def letters(
    chance: random.Random, language: str, fields: list[str], answer: Callable[[str], str]
) -> Iterator[Row]:
    """A noun, and what `answer` makes of its letters."""
    for word in words_of(chance, language, ROWS):
        yield dict(zip(fields, (word, answer(word)), strict=True))


def numbers(chance: random.Random, fields: list[str], answer: Callable[[int], str]) -> Iterator[Row]:
    """A number below 100, and what `answer` makes of it."""
    for number in chance.sample(range(100), ROWS):
        yield dict(zip(fields, (str(number), answer(number)), strict=True))


def sums(chance: random.Random) -> Iterator[Row]:
    """Two numbers below 12 and their sum."""
    pairs = [(first, second) for first in range(12) for second in range(12)]
    for first, second in chance.sample(pairs, ROWS):
        yield {"primero": str(first), "segundo": str(second), "suma": str(first + second)}


def plurals(chance: random.Random, language: str) -> Iterator[Row]:
    """Nouns that have a plural."""
    some = [noun for noun in NOUNS if noun["en_plural"] != "-"]
    for noun in chance.sample(some, ROWS):
        yield {"singular": noun[language], "plural": noun[f"{language}_plural"]}


def translations(part: int, fields: tuple[str, str], languages: tuple[str, str]) -> Iterator[Row]:
    """Every second noun: the two directions have no noun in common."""
    for noun in NOUNS[part::2]:
        yield {field: noun[language] for field, language in zip(fields, languages, strict=True)}


def word_languages(chance: random.Random) -> Iterator[Row]:
    """Nouns in one of the languages, each noun once, none that both languages write alike."""
    some = [noun for noun in NOUNS if noun["en"] != noun["es"]]
    for number, noun in enumerate(chance.sample(some, ROWS)):
        language, name = (("es", "español"), ("en", "inglés"))[number % 2]
        yield {"palabra": noun[language], "idioma": name}


def tasks() -> dict[str, Callable[[random.Random], Iterator[Row]]]:
    """How the rows of each task that is not a table are made."""
    three_en, three_es = ["first", "second", "third"], ["primera", "segunda", "tercera"]
    return {
        "category-en": lambda c: categories(c, "en", ["word", "kind", "others"]),
        "category-es": lambda c: categories(c, "es", ["palabra", "clase", "otras"]),
        "is-it-en": lambda c: is_it(c, "en", ["word", "kind", "answer"], ("yes", "no")),
        "is-it-es": lambda c: is_it(c, "es", ["palabra", "clase", "respuesta"], ("sí", "no")),
        "pick-en": lambda c: one_of_another_kind(c, "en", ["kind", *three_en, "right"], True),
        "pick-es": lambda c: one_of_another_kind(c, "es", ["clase", *three_es, "correcta"], True),
        "odd-one-out-en": lambda c: one_of_another_kind(c, "en", [*three_en, "odd"], False),
        "odd-one-out-es": lambda c: one_of_another_kind(c, "es", [*three_es, "intrusa"], False),
        "larger-animal-en": lambda c: animal_sizes(c, "en", ["first", "second", "larger"], True),
        "smaller-animal-es": lambda c: animal_sizes(c, "es", ["primero", "segundo", "menor"], False),
        "larger-number-en": lambda c: number_sizes(c, ["first", "second", "larger"], True),
        "smaller-number-es": lambda c: number_sizes(c, ["primero", "segundo", "menor"], False),
        "longest-word-en": lambda c: word_lengths(c, "en", [*three_en, "longest"], True),
        "shortest-word-es": lambda c: word_lengths(c, "es", [*three_es, "corta"], False),
        "first-word-en": lambda c: lists(c, "en", ["list", "word"], lambda words: words[0]),
        "last-word-en": lambda c: lists(c, "en", ["list", "word"], lambda words: words[-1]),
        "second-word-en": lambda c: lists(c, "en", ["list", "word"], lambda words: words[1]),
        "first-word-es": lambda c: lists(c, "es", ["lista", "palabra"], lambda words: words[0]),
        "last-word-es": lambda c: lists(c, "es", ["lista", "palabra"], lambda words: words[-1]),
        "repeat-en": lambda c: lists(c, "en", ["text", "same"], " ".join, (2, 3), separator=" "),
        "reverse-words-en": lambda c: lists(
            c, "en", ["list", "reversed"], lambda words: ", ".join(words[::-1])
        ),
        "sort-words-es": lambda c: lists(c, "es", ["lista", "orden"], in_spanish_order, (3,)),
        "sort-numbers-en": number_lists,
        "first-letter-en": lambda c: letters(c, "en", ["word", "letter"], lambda word: word[0]),
        "last-letter-en": lambda c: letters(c, "en", ["word", "letter"], lambda word: word[-1]),
        "first-letter-es": lambda c: letters(c, "es", ["palabra", "letra"], lambda word: word[0]),
        "spell-en": lambda c: letters(c, "en", ["word", "letters"], " ".join),
        "number-words-en": lambda c: numbers(c, ["number", "words"], lambda n: in_words(n, "en")),
        "number-words-es": lambda c: numbers(c, ["número", "letras"], lambda n: in_words(n, "es")),
        "next-number-en": lambda c: numbers(c, ["number", "next"], lambda n: str(n + 1)),
        "sum-es": sums,
        "count-words-en": lambda c: lists(
            c, "en", ["list", "count"], lambda words: in_words(len(words), "en"), (2, 3, 4, 5)
        ),
        "plural-en": lambda c: plurals(c, "en"),
        "plural-es": lambda c: plurals(c, "es"),
        "translate-en-es": lambda _: translations(0, ("english", "spanish"), ("en", "es")),
        "translate-es-en": lambda _: translations(1, ("español", "inglés"), ("es", "en")),
        "word-language-es": word_languages,
    }


def in_spanish_order(words: list[str]) -> str:
    """A list from A to Z; accents do not count, and ñ comes after n."""
    plain = str.maketrans("áéíóúü", "aeiouu")
    return ", ".join(sorted(words, key=lambda word: word.translate(plain).replace("ñ", "n~")))


def build(name: str) -> list[str]:
    """The lines of ``TASK.jsonl``, none of them twice."""
    made = tasks()
    lines = dict[str, None]()
    for row in made[name](random.Random(name)) if name in made else table(name):
        lines[json.dumps(row, ensure_ascii=False)] = None
        if len(lines) == ROWS:
            break
    return list(lines)


def main() -> None:
    """Write the rows of every task that has a YAML file."""
    for path in sorted(TARGET.glob("*.yaml")):
        lines = build(path.stem)
        path.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        print(f"{path.stem}: {len(lines)} rows")


if __name__ == "__main__":
    main()
