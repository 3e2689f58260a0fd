"""Every format gives its text and the place where it stood; what cannot be read says why."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from yunque.data.readers import Found, Limits, Piece, Skipped, find_files, read_file


def read(path: Path, limits: Limits | None = None) -> tuple[list[Piece], list[str]]:
    skipped: list[Skipped] = []
    reading = read_file(Found(path, path.name), limits or Limits(), skipped)
    return (list(reading.pieces) if reading else []), [part.reason for part in skipped]


def places(pieces: list[Piece]) -> dict[str, str]:
    return {piece.locator: piece.text for piece in pieces}


MARKDOWN = """---
title: Guía
---
Antes de todo.

# Equipaje

Una *mochila* de `8 kg`
en cabina.

## Medidas

| Tarifa | Peso |
|---|---|
| Básica | 8 kg |
| Plus | 10 kg |

- uno
- dos
  1. dentro

```python
x  = 1
```
# Vacío
## Mascotas
![foto](x.png) Sí.<!-- oculto --> <b>Perro</b>
"""


def test_markdown_gives_sections_by_heading(documents: Path) -> None:
    (documents / "a.md").write_text(MARKDOWN, encoding="utf-8")
    pieces, reasons = read(documents / "a.md")
    assert reasons == []
    found = places(pieces)
    assert list(found) == ["front matter", "start", "Equipaje", "Equipaje > Medidas", "Vacío > Mascotas"]
    assert found["Equipaje"] == "Una mochila de 8 kg en cabina."
    assert "Tarifa: Básica; Peso: 8 kg\nTarifa: Plus; Peso: 10 kg" in found["Equipaje > Medidas"]
    assert "- uno\n- dos\n  1. dentro" in found["Equipaje > Medidas"]
    assert "x  = 1" in found["Equipaje > Medidas"]
    assert "oculto" not in found["Vacío > Mascotas"]
    assert "Perro" in found["Vacío > Mascotas"]


HTML = """<!doctype html><html><head><title>Ayuda</title><style>p{color:red}</style></head><body>
<nav><a href=/>Inicio</a></nav><p>Sin t&iacute;tulo<br>dos
<h1>Equipaje</h1><p>Una <b>mochila</b> de 8&nbsp;kg.<p>Otra
<h2>Medidas</h2><table><caption>Pesos</caption><tr><th>Tarifa<th>Peso<tr><td>Básica<td>8 kg</table>
<ul><li>uno<li>dos</ul><script>alert("no")</script><pre>a  b
  c</pre></body>"""


def test_html_gives_sections_without_scripts_and_navigation(documents: Path) -> None:
    (documents / "a.html").write_text(HTML, encoding="utf-8")
    found = places(read(documents / "a.html")[0])
    assert list(found) == ["Ayuda", "Equipaje", "Equipaje > Medidas"]
    assert found["Ayuda"] == "Sin título\ndos"
    assert found["Equipaje"] == "Una mochila de 8 kg.\n\nOtra"
    assert found["Equipaje > Medidas"].startswith(
        "Pesos\n\nTarifa: Básica; Peso: 8 kg\n\n- uno\n- dos\n\na  b\n  c"
    )
    assert "Inicio" not in str(found)
    assert "alert" not in str(found)


def test_an_unclosed_navigation_does_not_swallow_the_page(documents: Path) -> None:
    (documents / "a.html").write_text("<nav>menú<h1>Título</h1><p>Texto</p>", encoding="utf-8")
    assert places(read(documents / "a.html")[0]) == {"Título": "Texto"}


def make_pdf(path: Path, pages: list[str], **options: str) -> None:
    import fpdf

    pdf = fpdf.FPDF()
    pdf.set_font("Helvetica", size=12)
    for page in pages:
        pdf.add_page()
        pdf.multi_cell(0, 6, page)
    if options:
        pdf.set_encryption(owner_password="dueño", user_password=options["password"])
    pdf.output(str(path))


def test_pdf_gives_pages_with_whole_paragraphs(documents: Path) -> None:
    sentence = "La maleta de cabina puede pesar como máximo diez kilos en todas las tarifas. "
    make_pdf(documents / "a.pdf", [sentence * 4 + "\n\nSegundo párrafo.", "Otra página."])
    found = places(read(documents / "a.pdf")[0])
    assert list(found) == ["page 1", "page 2"]
    assert found["page 1"].split("\n\n") == [(sentence * 4).strip(), "Segundo párrafo."]
    assert found["page 2"] == "Otra página."


def test_lines_of_a_page_become_paragraphs_and_tables() -> None:
    from yunque.data.readers.pdf import paragraphs

    assert paragraphs(["Una palabra divi-", "dida al final de la línea y", "otra más.", "", "Fin."]) == [
        "Una palabra dividida al final de la línea y otra más.",
        "Fin.",
    ]
    table = [
        "Tarifa       Peso          Precio",
        "Básica       8 kg          10 €",
        "                           al mes",
    ]
    assert paragraphs([*table, "Plus         10 kg         20 €"]) == [
        "Tarifa: Básica; Peso: 8 kg; Precio: 10 € al mes\nTarifa: Plus; Peso: 10 kg; Precio: 20 €"
    ]


def test_docx_gives_sections_lists_and_tables_in_order(documents: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Mascotas", 0)
    document.add_paragraph("Introducción.")
    document.add_heading("Cabina", 1)
    document.add_paragraph("uno", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(
        [c for row in table.rows for c in row.cells], ["Animal", "Peso", "Gato", "8 kg"], strict=True
    ):
        cell.text = text
    document.add_paragraph("Final.")
    document.save(str(documents / "a.docx"))
    assert places(read(documents / "a.docx")[0]) == {
        "Mascotas": "Introducción.",
        "Mascotas > Cabina": "- uno\n\nAnimal: Gato; Peso: 8 kg\n\nFinal.",
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_records_are_lines_of_columns(documents: Path, delimiter: str) -> None:
    rows = [["ruta", "precio"], ["Madrid-Roma", "30 €"], ['"con\ndos líneas"', "40 €"], ["Lima", "500 €"]]
    text = "\n".join(delimiter.join(row) for row in rows)
    (documents / "a.csv").write_text(text, encoding="utf-8")
    pieces, reasons = read(documents / "a.csv")
    assert reasons == []
    assert [piece.locator for piece in pieces] == ["line 2", "line 3", "line 5"]
    assert pieces[0].text == "ruta: Madrid-Roma\nprecio: 30 €"
    assert dict(pieces[0].fields) == {"ruta": "Madrid-Roma", "precio": "30 €"}


def test_records_use_their_text_or_their_question_and_answer(documents: Path) -> None:
    (documents / "a.jsonl").write_text(
        '{"id": 1, "mensaje": "Hola", "título": "Saludo"}\n'
        '{"question": "Why?", "answer": "Because."}\n'
        "{broken\n\n"
        '"suelto"\n'
        '{"a": [1, 2], "b": null, "c": true}\n',
        encoding="utf-8",
    )
    pieces, reasons = read(documents / "a.jsonl")
    assert [(piece.locator, piece.text) for piece in pieces] == [
        ("line 1: Saludo", "Hola"),
        ("line 2", "Why?\nBecause."),
        ("line 5", "suelto"),
        ("line 6", "a: 1, 2\nc: true"),
    ]
    assert dict(pieces[0].fields) == {"id": 1, "título": "Saludo"}
    assert len(reasons) == 1
    assert reasons[0].startswith("line 3: is not JSON")


def test_json_gives_the_records_of_its_list(documents: Path) -> None:
    (documents / "a.json").write_text(
        '{"version": 1, "faq": [{"text": "uno"}, {"text": "dos"}]}', encoding="utf-8"
    )
    assert places(read(documents / "a.json")[0]) == {"item 1": "uno", "item 2": "dos"}


def test_plain_text_is_grouped_and_knows_its_lines(documents: Path) -> None:
    paragraph = "línea de texto que dice algo\n" * 10 + "\n"
    (documents / "a.txt").write_text(paragraph * 40, encoding="utf-8")
    pieces, _ = read(documents / "a.txt")
    assert len(pieces) > 2
    assert pieces[0].locator.startswith("lines 1-")
    assert max(len(piece.text) for piece in pieces) < 5000
    assert sum(piece.text.count("línea") for piece in pieces) == 400


def test_a_long_section_is_cut_at_sentences_and_nothing_is_lost(documents: Path) -> None:
    sentences = [f"Frase número {number} del documento." for number in range(800)]
    (documents / "a.md").write_text("# Largo\n\n" + " ".join(sentences), encoding="utf-8")
    pieces, _ = read(documents / "a.md")
    assert [piece.locator for piece in pieces][:2] == ["Largo, part 1", "Largo, part 2"]
    assert " ".join(piece.text for piece in pieces) == " ".join(sentences)
    assert all(piece.text.endswith(".") for piece in pieces)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]
)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".csv", ".jsonl", ".html"])
def test_encodings_are_found_out(documents: Path, encoding: str, suffix: str) -> None:
    text = "El niño pagó la canción en Logroño: ¿cuánto costó? Mañana viajará también a Córdoba."
    written = {".csv": f"texto\n{text}\n", ".jsonl": f'{{"texto": "{text}"}}\n'}.get(suffix, text)
    (documents / f"a{suffix}").write_bytes(written.encode(encoding))
    pieces, reasons = read(documents / f"a{suffix}")
    assert reasons == []
    assert [piece.text.strip() for piece in pieces] == [text]


def test_a_declared_charset_is_believed(documents: Path) -> None:
    page = '<meta charset="cp850"><p>El niño pagó'
    (documents / "a.html").write_bytes(page.encode("cp850"))
    assert places(read(documents / "a.html")[0]) == {"start": "El niño pagó"}


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * 60_000_000)


def cut_pdf(path: Path) -> None:
    make_pdf(path, ["Texto"])
    path.write_bytes(path.read_bytes()[:200])


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("a.md", lambda path: path.write_bytes(b""), "is empty"),
    "binary": ("a.txt", lambda path: path.write_bytes(os.urandom(5000) + b"\0"), "is binary"),
    "unknown binary": ("a.bin", lambda path: path.write_bytes(b"\x7fELF\0\0\1\2" * 50), "is binary"),
    "controls": ("a.txt", lambda path: path.write_bytes(bytes(range(1, 32)) * 9), "is binary"),
    "pdf of noise": ("a.pdf", lambda path: path.write_bytes(os.urandom(3000)), "is not a PDF"),
    "cut pdf": ("a.pdf", cut_pdf, "is not a PDF"),
    "locked pdf": ("a.pdf", lambda path: make_pdf(path, ["x"], password="clave"), "is encrypted"),
    "pdf without text": ("a.pdf", lambda path: make_pdf(path, [" "]), "holds no text"),
    "docx of noise": ("a.docx", lambda path: path.write_bytes(os.urandom(3000)), "is not a DOCX"),
    "zip bomb": ("a.docx", zip_bomb, "would unpack to 60 MB"),
    "pipe": ("a.txt", os.mkfifo, "is not a regular file"),
    "lost link": (
        "a.txt",
        lambda path: path.symlink_to("nowhere"),
        "is a link to a file that does not exist",
    ),
    "broken json": ("a.json", lambda path: path.write_text("{\n1"), "is not JSON (line 2"),
    "deep json": ("a.json", lambda path: path.write_text("[" * 100_000), "is not JSON that can be read"),
    "deep line": (
        "a.jsonl",
        lambda path: path.write_text("[" * 100_000),
        "line 1: is not JSON that can be read",
    ),
    "huge html": (
        "a.html",
        lambda path: path.write_text("x" * 300_000),
        "files of this format are read up to",
    ),
    "endless line": (
        "a.txt",
        lambda path: path.write_text("x" * 300_000),
        "line 1: is longer than 200,000 characters",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_read_says_why(documents: Path, case: str) -> None:
    name, make, reason = HOSTILE[case]
    make(documents / name)
    pieces, reasons = read(documents / name, Limits(document_bytes=200_000, line_characters=200_000))
    assert pieces == []
    assert any(reason in found for found in reasons), reasons


def test_a_file_that_may_not_be_opened_says_so(documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (documents / "a.txt").write_text("secreto")
    # Tests may run as root, whom no file refuses.
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert read(documents / "a.txt") == ([], ["cannot be opened (Permission denied)"])


def test_a_bad_line_in_the_middle_leaves_the_rest(documents: Path) -> None:
    lines = ["texto;n", "uno;1", "x" * 3000 + ";2", "tres;3"]
    (documents / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    pieces, reasons = read(documents / "a.csv", Limits(line_characters=2000))
    assert [(piece.locator, piece.text) for piece in pieces] == [("line 2", "uno"), ("line 4", "tres")]
    assert reasons == ["line 3: is longer than 2,000 characters"]


def test_a_quotation_mark_never_closed_loses_one_line_only(documents: Path) -> None:
    (documents / "a.csv").write_text('texto;n\nuno;1\n"dos;2\ntres;3\ncuatro;4\n', encoding="utf-8")
    pieces, reasons = read(documents / "a.csv")
    assert [(piece.locator, piece.text) for piece in pieces] == [
        ("line 2", "uno"),
        ("line 4", "tres"),
        ("line 5", "cuatro"),
    ]
    assert reasons == ["line 3: a quotation mark is opened and never closed"]


def test_a_book_in_a_record_is_cut_and_stays_one_record(documents: Path) -> None:
    text = "Una frase del libro. " * 2000
    (documents / "a.jsonl").write_text(f'{{"text": "{text}", "autor": "x"}}\n{{"text": "corto"}}\n')
    pieces, _ = read(documents / "a.jsonl")
    assert len(pieces) > 5
    assert pieces[0].locator == "line 1, part 1"
    assert len({piece.record for piece in pieces}) == 2


def test_folders_are_walked_once_in_order_without_hidden_files(documents: Path) -> None:
    for name in ("b/z.md", "a.md", "b/.hidden.md", ".git/config", "c/d/e.txt"):
        (documents / name).parent.mkdir(parents=True, exist_ok=True)
        (documents / name).write_text("x")
    (documents / "c" / "loop").symlink_to(documents)
    skipped: list[Skipped] = []
    assert [found.name for found in find_files([documents], skipped)] == ["a.md", "b/z.md", "c/d/e.txt"]
    assert skipped == []


def test_equal_names_from_two_folders_are_told_apart(documents: Path) -> None:
    for folder in ("es", "en"):
        (documents / folder).mkdir()
        (documents / folder / "faq.md").write_text(folder)
    found = find_files([documents / "es", documents / "en", documents / "es" / "faq.md"], [])
    assert [one.name for one in found] == ["faq.md", "en/faq.md"]


def test_a_file_of_bad_lines_is_not_complained_of_without_end(documents: Path) -> None:
    (documents / "a.jsonl").write_text("no\n" * 5000)
    _, reasons = read(documents / "a.jsonl")
    assert len(reasons) == 21
    assert reasons[-1] == "and 4,981 more parts of this file"
