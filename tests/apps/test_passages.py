from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from yunque.apps.retrieval import ingest
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.passages import Passage, cut
from yunque.apps.retrieval.sources import Sources
from yunque.data.row import Row, Source
from yunque.workspace import Workspace


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


def test_a_sentence_without_an_end_is_cut_at_its_marks_or_blanks() -> None:
    for text in ("palabra, otra cosa " * 300, "palabra " * 400, "x" * 3000):
        passages = cut(_row(text.strip()))
        assert len(passages) > 3 and all(len(passage.text) <= 600 for passage in passages)
        assert "".join("".join(passage.text.split()) for passage in passages) == "".join(text.split())
    assert all(
        p.text.endswith(("palabra", "cosa", ",")) for p in cut(_row(("palabra, otra cosa " * 300).strip()))
    )


def test_a_table_drawn_with_bars_keeps_the_names_of_its_columns_with_every_line() -> None:
    rows = "\n".join(f"| Tarifa {number} | {number} EUR | {number} kg |" for number in range(60))
    text = (
        f"Los precios son estos.\n\n| Tarifa | Precio | Peso |\n|:---|---:|---|\n{rows}\n\nFin de la tabla."
    )
    passages = cut(_row(text))
    inside = [passage for passage in passages if "EUR" in passage.text]
    assert len(inside) > 2 and all(p.heading.endswith("> Tarifa | Precio | Peso") for p in inside)
    assert sum(len(passage.units) for passage in inside) == 60
    assert not [p for p in passages if "---" in p.text] and passages[-1].heading == "Mascotas > Precios"


def test_code_is_not_cut_into_sentences() -> None:
    code = 'def ask(name):\n    answer = find(name). strip()\n    return "No. " + answer'
    text = f"Esta función pregunta:\n\n{code}\n\nY responde después."
    quoted = [
        passage.text[unit.start - passage.start : unit.end - passage.start]
        for passage in cut(_row(text))
        for unit in passage.units
    ]
    assert code in quoted and "Y responde después." in quoted


def test_windows_line_ends_change_nothing_but_the_offsets() -> None:
    text = "Primera frase. Segunda frase.\n\n- Un punto\n- Otro punto\n\nTercera frase."
    windows = text.replace("\n", "\r\n")
    assert _quotes(cut(_row(windows))) == _quotes(cut(_row(text)))
    for passage in cut(_row(windows)):
        assert windows[passage.start : passage.end] == passage.text


@given(st.text(max_size=1500), st.integers(100, 400))
def test_any_text_is_cut_into_pieces_of_itself(text: str, most: int) -> None:
    passages = cut(_row(text), most)
    for passage in passages:
        assert text[passage.start : passage.end] == passage.text and len(passage.text) <= most
        for unit in passage.units:
            assert passage.start <= unit.start < unit.end <= passage.end
    assert all(first.end <= second.start for first, second in pairwise(passages))


def test_pages_and_headings_of_documents_come_through(tmp_path: Path) -> None:
    """A PDF's pages, a DOCX's and an HTML's headings and tables, as their readers and the cutting leave them."""
    import docx
    from fpdf import FPDF

    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    for number in (1, 2):
        pdf.add_page()
        pdf.multi_cell(
            0, 8, f"This is what page {number} of the manual says about the engine number {number}."
        )
    pdf.output(str(tmp_path / "a.pdf"))
    document = docx.Document()
    document.add_heading("Fees", 1)
    table = document.add_table(rows=2, cols=2)
    for place, text in enumerate(["Fare", "Price", "Basic", "7 EUR"]):
        table.cell(place // 2, place % 2).text = text
    document.save(str(tmp_path / "b.docx"))
    (tmp_path / "c.html").write_text(
        "<h1>Pets</h1><table><tr><th>Animal</th><th>Fee</th></tr><tr><td>Dog</td><td>50 EUR</td></tr></table>"
    )
    workspace = Workspace.open(tmp_path / "ws")
    ingest.build(workspace, "docs", Sources(paths=tuple(tmp_path.glob("*.*"))))
    passages = {(p.file, p.locator): p for p in Index.open(workspace, "docs").passages}
    assert {("a.pdf", "page 1"), ("a.pdf", "page 2")} <= set(passages)
    assert "Fare: Basic; Price: 7 EUR" in passages["b.docx", "Fees"].text
    assert "Animal: Dog; Fee: 50 EUR" in passages["c.html", "Pets"].text
    found = Index.open(workspace, "docs").narrowed(where={"page": 2}).search("engine of the manual", 9)
    assert [hit.passage.locator for hit in found] == ["page 2"]
