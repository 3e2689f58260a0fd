"""Answers to instruction rows and how they are counted."""

from collections.abc import Sequence

import pytest

from yunque.data.instructions import InstructionRow
from yunque.evaluate.tasks import Prediction, by_task, figures, predict
from yunque.llm import Message, ScriptedModel

LABELS = ("positivo", "negativo")


def row(
    number: int, answer: str, labels: tuple[str, ...] | None = LABELS, task: str = "sentiment"
) -> InstructionRow:
    return InstructionRow(f"r{number}", task, "es", "t", f"¿Qué opina el texto {number}?", "", answer, labels)


def always_negative(_: Sequence[Message], answers: Sequence[str]) -> list[float]:
    return [-1.0 if answer == "negativo" else -2.0 for answer in answers]


def test_a_label_is_the_likeliest_one_and_the_text_is_what_was_written() -> None:
    rows = [row(1, "negativo"), row(2, "positivo"), row(3, "dos maletas", None, "qa")]
    model = ScriptedModel(["Negativo ", "positivo", " Dos  maletas\n"])
    predictions = predict(model, always_negative, rows, max_new_tokens=5)
    assert [each.label for each in predictions] == ["negativo", "negativo", None]
    assert [each.text for each in predictions] == ["Negativo", "positivo", "Dos  maletas"]
    # The second is right as written, but the label counts; the third has none, so the text does.
    assert [each.correct for each in predictions] == [True, False, True]
    assert model.asked[0] == [Message("user", "¿Qué opina el texto 1?")]


def test_without_likelihoods_the_written_text_counts() -> None:
    predictions = predict(
        ScriptedModel(["NEGATIVO", "no sé"]), None, [row(1, "negativo"), row(2, "positivo")], 5
    )
    assert [(each.label, each.correct) for each in predictions] == [(None, True), (None, False)]


def prediction(
    answer: str, text: str, label: str | None, choices: int, task: str = "sentiment"
) -> Prediction:
    return Prediction("x", task, "es", answer, text, label, choices)


def test_figures_by_task_are_those_worked_by_hand() -> None:
    predictions = [
        prediction("positivo", "positivo", "positivo", 2),
        prediction("positivo", "no", "positivo", 2),
        prediction("negativo", "negativo", "positivo", 4),
        prediction("negativo", "no", "positivo", 4),
        prediction("el gato negro duerme hoy", "El gato duerme", None, 0, "summary"),
    ]
    sentiment, summary = sorted(by_task(predictions), key=lambda line: line["task"])
    assert (sentiment["rows"], sentiment["accuracy"], sentiment["exact_match"]) == (4, 0.5, 0.5)
    assert sentiment["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 4 + 1 / 4) / 4)
    assert sentiment["low"] <= 0.5 <= sentiment["high"]
    assert "rouge1" not in sentiment
    assert (summary["accuracy"], summary["rouge1"]) == (0, pytest.approx(0.75))
    assert "chance" not in summary


def test_an_accent_that_is_wrong_is_a_wrong_answer_and_nfd_is_not() -> None:
    assert figures([prediction("un año", "un ano", None, 0)])["accuracy"] == 0
    assert figures([prediction("un año", "un an\u0303o", None, 0)])["accuracy"] == 1
