"""Metrics, against the libraries that define them and against examples worked by hand."""

import math
import unicodedata

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from yunque.errors import UserError
from yunque.evaluate.metrics import (
    bleu,
    bootstrap_interval,
    chrf,
    exact_match,
    perplexity,
    rouge,
    text_metrics,
)

ASCII = ["The cat sat on the mat, near door 7.", "Refunds take ten days", "no bags"]
ASCII_REFERENCES = [
    "The cat is on the mat near door 7.",
    "Refunds take up to ten working days",
    "two bags at most",
]
SPANISH = "El niño cumplió un año en París y comió jamón ibérico"


def test_rouge_is_that_of_rouge_score_on_ascii() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    scores = [scorer.score(r, p) for p, r in zip(ASCII, ASCII_REFERENCES, strict=True)]
    for kind, value in rouge(ASCII, ASCII_REFERENCES).items():
        assert value == pytest.approx(sum(score[kind].fmeasure for score in scores) / 3, abs=1e-12)


def test_rouge_of_an_example_worked_by_hand() -> None:
    # Prediction: el(1) gato(2) duerme(3); reference: el gato negro duerme hoy. Common words el, gato, duerme:
    # P 3/3, R 3/5, F 3/4. Common bigrams "el gato": P 1/2, R 1/4, F 1/3. The subsequence has 3 words: F 3/4.
    assert rouge(["El gato duerme"], ["el gato negro duerme hoy"]) == pytest.approx(
        {"rouge1": 0.75, "rouge2": 1 / 3, "rougeL": 0.75}
    )
    # The order counts for ROUGE-L only: the longest common subsequence of "duerme gato" and "gato duerme" is 1 of 2.
    assert rouge(["duerme gato"], ["gato duerme"]) == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 0.5})


def test_bleu_and_chrf_are_those_of_sacrebleu_on_ascii() -> None:
    theirs = sacrebleu.corpus_bleu(ASCII, [ASCII_REFERENCES], tokenize="intl").score
    assert bleu(ASCII, ASCII_REFERENCES) == pytest.approx(theirs, abs=1e-9)
    assert bleu(ASCII, ASCII_REFERENCES) > 10
    assert chrf(ASCII, ASCII_REFERENCES) == pytest.approx(
        sacrebleu.corpus_chrf(ASCII, [ASCII_REFERENCES]).score, abs=1e-9
    )


def test_an_nfd_copy_is_the_same_text_for_every_metric() -> None:
    decomposed = unicodedata.normalize("NFD", SPANISH)
    assert decomposed != SPANISH
    expected = {"exact_match": 1, "rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100, "chrf": 100}
    assert text_metrics([decomposed], [SPANISH]) == pytest.approx(expected)
    assert text_metrics([SPANISH], [decomposed]) == pytest.approx(expected)


def test_a_missing_accent_is_an_error_for_every_metric() -> None:
    # One of 11 words is wrong, and with it two of 10 bigrams.
    without = SPANISH.replace("año", "ano")
    scores = text_metrics([without], [SPANISH])
    assert scores["exact_match"] == 0
    assert scores["rouge1"] == pytest.approx(10 / 11)
    assert scores["rouge2"] == pytest.approx(8 / 10)
    assert scores["rougeL"] == pytest.approx(10 / 11)
    assert scores["bleu"] < 90
    assert scores["chrf"] < 99
    # The control: with its own tokenizer rouge-score cuts accented letters out, and so thinks "año" and "aéo" alike.
    theirs = rouge_scorer.RougeScorer(["rouge1"]).score("un año", "un aéo")
    assert theirs["rouge1"].fmeasure == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("  Positivo\n", "positivo", True),
        ("SÍ", "sí", True),
        ("si", "sí", False),
        ("ano", "año", False),
        ("an\u0303o", "año", True),
        ("STRASSE", "straße", True),
        ("", "sí", False),
    ],
)
def test_exact_match(prediction: str, reference: str, same: bool) -> None:
    assert exact_match(prediction, reference) is same


def test_a_letter_that_has_no_composed_form_keeps_its_mark() -> None:
    assert rouge(["p\u0303a"], ["pa"])["rouge1"] == 0
    assert rouge(["p\u0303a"], ["p\u0303a"])["rouge1"] == 1


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices() -> None:
    assert perplexity(10 * math.log(50), 10) == pytest.approx(50)
    assert perplexity(1e9, 1) == math.inf
    with pytest.raises(UserError, match="at least one token"):
        perplexity(0.0, 0)


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_more_data() -> None:
    low, high = bootstrap_interval([1.0] * 80 + [0.0] * 20)
    # Near the normal approximation: 0.8 +- 1.96 * sqrt(0.8 * 0.2 / 100) = 0.8 +- 0.078.
    assert low == pytest.approx(0.72, abs=0.02)
    assert high == pytest.approx(0.88, abs=0.02)
    more_low, more_high = bootstrap_interval(([1.0] * 80 + [0.0] * 20) * 16)
    assert more_high - more_low == pytest.approx((high - low) / 4, rel=0.15)
    assert bootstrap_interval([1.0] * 80 + [0.0] * 20) == (low, high)


def test_texts_that_do_not_pair_are_refused() -> None:
    with pytest.raises(UserError, match="2 predictions cannot be compared with 1 references"):
        text_metrics(["a", "b"], ["a"])
    with pytest.raises(UserError, match="no prediction"):
        text_metrics([], [])
