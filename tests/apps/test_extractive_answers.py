from collections.abc import Callable

import pytest

from yunque.apps.app import App


@pytest.mark.parametrize(
    ("question", "fact", "file"),
    [
        ("¿Cuánto puede pesar mi gatito en cabina?", "8 kg", "es/mascotas.md"),
        ("cuanto cuesta llevar un perro", "50 EUR", "es/mascotas.md"),
        ("¿cuánto exceso de peso paga un bulto de 27 kg?", "40 EUR", "es/equipaje.md"),
        ("How heavy may my luggage be?", "23 kg", "en/baggage.md"),
        ("how heavy may a chekced suitcase be", "23 kg", "en/baggage.md"),
        ("¿Cuál es vuestro teléfono?", "+34 910 000 042", "es/contacto.md"),
    ],
)
def test_a_question_is_answered_with_the_documents_own_words(
    open_probe: Callable[..., App], question: str, fact: str, file: str
) -> None:
    answer = open_probe().answer(question)
    assert answer.known and answer.extractive and answer.note
    assert fact in answer.text
    assert "[1]" in answer.text and answer.citations[0].number == 1
    assert file in {citation.file for citation in answer.citations}
    assert answer.citations[0].quote.split(" … ")[0] in answer.text


@pytest.mark.parametrize(
    "question",
    [
        "¿Puedo llevar un caballo?",
        "¿Cuánto cuesta el wifi?",
        "Who is the CEO?",
        "Do you fly to Tokyo?",
        "¿Qué tiempo hace hoy en Madrid?",
        "What is the capital of France?",
        "zzz",
    ],
)
def test_what_the_documents_do_not_say_is_not_answered(open_probe: Callable[..., App], question: str) -> None:
    answer = open_probe().answer(question)
    assert not answer.known
    assert answer.citations == ()
    assert answer.text == ("No lo sé. Los documentos no lo dicen." if answer.language == "es" else
                           "I don't know. The documents do not say.")  # fmt: skip


def test_without_a_floor_the_unanswerable_would_be_answered(open_probe: Callable[..., App]) -> None:
    knowledge = {"index": "small", "relevance": {"floor": 0.0}}
    assert open_probe(knowledge=knowledge).answer("¿Cuánto cuesta el wifi?").known


def test_the_other_language_answers_only_when_it_alone_can(open_probe: Callable[..., App]) -> None:
    app = open_probe()
    assert app.answer("¿Cuánto puede pesar un perro?").citations[0].file == "es/mascotas.md"
    crossed = app.answer("¿Cómo llevo el carrito?")
    assert crossed.language == "es"
    assert crossed.citations[0].file == "en/children.md"


def test_a_sentence_that_leans_on_another_is_quoted_with_it(open_probe: Callable[..., App]) -> None:
    text = open_probe().answer("¿Los perros de asistencia viajan gratis?").text
    assert "El transportín va bajo el asiento" in text
    assert text.index("El transportín") < text.index("Sin embargo")


def test_a_story_around_the_question_does_not_hide_it(open_probe: Callable[..., App]) -> None:
    story = "Me llamo Perico Palotes y vivo en Cuenca con mi cuñada Etelvina, que colecciona cactus. "
    assert "8 kg" in open_probe().answer(f"{story}¿Cuánto puede pesar un gato?").text
