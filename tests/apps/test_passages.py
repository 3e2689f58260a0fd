from yunque.apps.retrieval.passages import Passage, cut
from yunque.data.row import Row, Source


def _row(text: str, fields: dict[str, object] | None = None) -> Row:
    return Row("0" * 16, text, "es", Source("doc.md", "0" * 64, "Mascotas > Precios"), "doc.md", fields or {})


def _quotes(passages: list[Passage]) -> list[str]:
    return [passage.quote(unit) for passage in passages for unit in passage.units]


def test_every_offset_points_at_the_quoted_words() -> None:
    text = "Primera frase. Cuesta 1.200 EUR en el Sr. Pérez.\n\nOtro párrafo: ¿vale? Sí."
    passages = cut(_row(text))
    for passage in passages:
        assert text[passage.start : passage.end] == passage.text
        for unit in passage.units:
            assert passage.quote(unit) in " ".join(text.split())
    assert _quotes(passages) == [
        "Primera frase.",
        "Cuesta 1.200 EUR en el Sr. Pérez.",
        "Otro párrafo: ¿vale?",
        "Sí.",
    ]


def test_a_heading_in_the_text_is_where_its_passages_stand_and_is_not_quoted() -> None:
    text = (
        "Bonos\n\nLos bonos caducan a los 12 meses de su emisión y se pueden ceder una sola vez "
        "a otra persona.\n"
    )
    (passage,) = cut(_row(text))
    assert passage.heading == "Mascotas > Precios > Bonos"
    assert _quotes([passage])[0].startswith("Los bonos")


def test_wrapped_lines_are_one_sentence_and_list_items_are_not() -> None:
    wrapped = (
        "La salida se retrasa dos horas o más en los vuelos de hasta mil quinientos\nkilómetros "
        "de distancia total."
    )
    assert _quotes(cut(_row(wrapped))) == [wrapped.replace("\n", " ")]
    assert _quotes(cut(_row("- Bicicletas: 55 EUR\n- Esquís: 40 EUR"))) == [
        "Bicicletas: 55 EUR",
        "Esquís: 40 EUR",
    ]


def test_a_record_is_quoted_whole() -> None:
    fields = {"servicio": "Bicicleta", "precio": "55"}
    assert _quotes(cut(_row("servicio: Bicicleta\nprecio: 55", fields))) == [
        "servicio: Bicicleta; precio: 55"
    ]


def test_a_long_section_is_cut_between_sentences() -> None:
    text = " ".join(f"La frase número {number} dice una cosa distinta de las demás." for number in range(40))
    passages = cut(_row(text))
    assert len(passages) > 3
    assert all(passage.text.endswith(".") and len(passage.text) <= 600 for passage in passages)
    assert " ".join(passage.text for passage in passages) == text
