"""Near duplicates are those that the definition says, found without comparing all pairs."""

import random
from itertools import pairwise

import numpy as np
import pytest

from yunque.data.duplicates import (
    THRESHOLD,
    Shingler,
    exact_key,
    jaccard,
    minhash,
    near_duplicates,
    numbers_key,
)


def words_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def true_jaccard(first: str, second: str) -> float:
    a, b = words_of(first), words_of(second)
    return len(a & b) / len(a | b)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """Texts of random words, each with copies in which a growing part of the words was changed."""
    rng = random.Random(7)
    vocabulary = ["".join(rng.choices("abcdefghijkl", k=6)) for _ in range(3000)]
    texts = []
    for _ in range(60):
        words = rng.choices(vocabulary, k=rng.randint(40, 120))
        texts.append(" ".join(words))
        for changes in (1, 2, 4, 8):
            copy = words[:]
            for at in rng.sample(range(len(copy)), changes):
                copy[at] = rng.choice(vocabulary)
            texts.append(" ".join(copy))
    return texts


def test_shingle_sets_have_the_true_jaccard_index(corpus: list[str]) -> None:
    shingler = Shingler()
    for first, second in pairwise(corpus[:41]):
        ours = jaccard(shingler.shingles(first), shingler.shingles(second))
        assert ours == pytest.approx(true_jaccard(first, second))


def test_signatures_estimate_the_jaccard_index(corpus: list[str]) -> None:
    shingler = Shingler()
    signatures = minhash(map(shingler.shingles, corpus))
    errors, control = [], []
    for number in range(0, len(corpus) - 1, 5):
        estimate = float((signatures[number] == signatures[number + 1]).mean())
        errors.append(abs(estimate - true_jaccard(corpus[number], corpus[number + 1])))
        control.append(float((signatures[number] == signatures[number - 1]).mean()))
    assert float(np.mean(errors)) < 0.05
    assert max(control) < 0.2  # texts with nothing in common must not look alike


def test_every_near_duplicate_is_dropped_and_nothing_else(corpus: list[str]) -> None:
    signatures = minhash(map(Shingler().shingles, corpus))
    found = list(near_duplicates(signatures, [0] * len(corpus), corpus.__getitem__))
    kept: list[int] = []
    wanted = []
    for number, text in enumerate(corpus):
        if any(true_jaccard(text, corpus[other]) >= THRESHOLD for other in kept):
            wanted.append(number)
        else:
            kept.append(number)
    assert 60 <= len(wanted) < 240
    assert [duplicate.number for duplicate in found] == wanted
    for duplicate in found:
        assert duplicate.kept in kept
        assert duplicate.similarity == pytest.approx(
            true_jaccard(corpus[duplicate.number], corpus[duplicate.kept]), abs=1e-4
        )


def test_other_numbers_are_another_fact() -> None:
    base = "la maleta de cabina de la tarifa basica pesa como mucho {} kilos y mide cuarenta por treinta por veinte"
    texts = [base.format(8), base.format(10), base.format(8) + " centimetros"]
    assert true_jaccard(texts[0], texts[2]) >= THRESHOLD
    signatures = minhash(map(Shingler().shingles, texts))
    found = list(near_duplicates(signatures, list(map(numbers_key, texts)), texts.__getitem__))
    assert [(duplicate.number, duplicate.kept) for duplicate in found] == [(2, 0)]


def test_exact_duplicates_differ_only_in_case_and_blanks() -> None:
    assert exact_key("Hola  Mundo\n") == exact_key("hola mundo")
    assert exact_key("hola mundo") != exact_key("hola, mundo")


def test_texts_without_words_are_never_near_duplicates() -> None:
    texts = ["¡!", "¿?", "..."]
    signatures = minhash(map(Shingler().shingles, texts))
    assert list(near_duplicates(signatures, [0, 0, 0], texts.__getitem__)) == []
