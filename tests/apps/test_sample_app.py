"""The shipped airline app over the shipped documents, asked what its makers' dev questions ask."""

from importlib.resources import files
from pathlib import Path

import pytest

from yunque.apps.kept import add_app
from yunque.apps.retrieval.index import build_index
from yunque.apps.retrieval.measure import TestQuestion, measure_index, read_questions
from yunque.data import prepare
from yunque.guard import open_app
from yunque.workspace import Workspace

_SAMPLES = Path(str(files("yunque") / "samples"))


@pytest.fixture(scope="module")
def airline(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.open(tmp_path_factory.mktemp("airline") / "ws")
    folders = [_SAMPLES / "airline" / language for language in ("es", "en")]
    prepare.add(workspace, "airline", folders, prepare.AddSettings(anonymize=False))
    build_index(workspace, "airline", ["airline"])
    add_app(workspace, _SAMPLES / "apps" / "equipaje.yaml")
    return workspace


@pytest.mark.parametrize(
    ("question", "fact"),
    [
        ("¿Cuánto puede pesar la maleta facturada?", "23 kg"),
        ("cuanto cuesta llevar el perro en cabina", "50 EUR"),
        ("¿Hasta qué semana puedo volar embarazada?", "36"),
        ("se me ha perdido la maleta, cuando se da por perdida", "21 días"),
        ("¿Cuánto cuesta cambiar la fecha con la tarifa Básica?", "60 EUR"),
        ("How much does a bicycle cost on a long-haul flight?", "80 EUR"),
        ("When do Club Yunque points expire?", "24 months"),
        ("What compensation do I get if I arrive 4 hours late from New York?", "€600"),
        ("Can I bring my cat to London?", "United Kingdom"),
        ("what time does customer service open", "7:00"),
    ],
)
def test_a_fact_of_the_documents_is_found(airline: Workspace, question: str, fact: str) -> None:
    answer = open_app(airline, "equipaje").answer(question)
    assert answer.known and fact in answer.text
    assert answer.citations


@pytest.mark.parametrize(
    "question",
    [
        "¿Puedo llevar un caballo?",
        "¿Quién es el presidente de la aerolínea?",
        "¿Qué tiempo hace hoy en Madrid?",
        "Do you fly to Tokyo?",
        "What is the airline's share price today?",
        "Write me a poem about the sea",
    ],
)
def test_what_the_documents_do_not_say_is_refused(airline: Workspace, question: str) -> None:
    assert not open_app(airline, "equipaje").answer(question).known


def test_the_dev_questions_are_answered_as_well_as_when_this_was_written(airline: Workspace) -> None:
    questions = read_questions(_SAMPLES / "questions_dev.jsonl")
    figures = measure_index(airline, "airline", questions, "equipaje").figures()
    assert figures["answers_with_the_fact"] >= 0.80
    assert figures["false_refusals"] <= 0.09
    assert figures["refused_when_unanswerable"] >= 0.70
    assert figures["recall_at_5"] >= 0.95


def test_the_measure_can_tell_a_bad_app(airline: Workspace) -> None:
    nonsense = TestQuestion(
        language="en", question="How heavy may a bag be?", answerable=True, answer="1000 kg"
    )
    measured = measure_index(airline, "airline", [nonsense], "equipaje")
    assert measured.right == 0 and measured.wrong[0]["expected"] == "1000 kg"
