"""Renders the PDF and DOCX sample documents from the Markdown under tools/samples_source.

    python tools/build_samples.py

The Markdown understood is what those sources use: headings, paragraphs, "-" and "1." lists and tables. Every
run writes the same bytes, so a changed file in `git status` means a changed source.
"""

from __future__ import annotations

import io
import re
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import docx
from fpdf import FPDF
from fpdf.fonts import FontFace

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tools" / "samples_source"
TARGET = ROOT / "src" / "yunque" / "samples" / "airline"
PDF_NAMES = {"reembolsos", "retrasos", "refunds", "delays"}  # all the other sources become DOCX
AUTHOR = "Aerolíneas Yunque"
DATE = datetime(2025, 3, 1, 9, 0, tzinfo=UTC)


class Block(NamedTuple):
    """One block of a document: `text` for all kinds but tables, `rows` (the header first) for tables."""

    kind: Literal["heading", "paragraph", "bullet", "step", "table"]
    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


def parse_markdown(source: str) -> list[Block]:
    """Splits Markdown into blocks; each paragraph and each list item stands on one line of its own."""
    blocks: list[Block] = []
    rows: list[tuple[str, ...]] = []
    for line in [*source.splitlines(), ""]:
        if line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
            continue
        if rows:
            blocks.append(Block("table", rows=tuple(rows)))
            rows = []
        if heading := re.match(r"(#+) (.*)", line):
            blocks.append(Block("heading", heading[2], level=len(heading[1])))
        elif line.startswith("- "):
            blocks.append(Block("bullet", line[2:]))
        elif step := re.match(r"\d+\. (.*)", line):
            blocks.append(Block("step", step[1]))
        elif line:
            blocks.append(Block("paragraph", line))
    return blocks


def render_pdf(blocks: list[Block], language: str) -> bytes:
    """Lays the blocks out as a PDF whose headings are also its outline."""
    pdf = FPDF()
    # The core fonts need no font file; cp1252 is the encoding in which they have the euro sign.
    pdf.core_fonts_encoding = "cp1252"
    pdf.set_creation_date(DATE)
    pdf.set_lang(language)
    pdf.set_author(AUTHOR)
    pdf.set_title(blocks[0].text)
    pdf.set_margin(25)
    pdf.set_auto_page_break(True, margin=25)
    pdf.add_page()
    number = 0
    for block in blocks:
        number = number + 1 if block.kind == "step" else 0
        if block.kind == "heading":
            pdf.start_section(block.text, level=block.level - 1)
            pdf.set_font("Helvetica", style="B", size=20 - 3 * block.level)
            pdf.multi_cell(0, 9, block.text, align="L", new_x="LMARGIN", new_y="NEXT")
            pdf.ln(1)
        elif block.kind == "table":
            pdf.set_font("Helvetica", size=10)
            bold = FontFace(emphasis="BOLD")
            with pdf.table(block.rows, line_height=6, text_align="LEFT", headings_style=bold):
                pass
            pdf.ln(4)
        else:
            mark = {"bullet": "• ", "step": f"{number}. "}.get(block.kind, "")
            pdf.set_font("Helvetica", size=11)
            pdf.multi_cell(0, 6, mark + block.text, align="L", new_x="LMARGIN", new_y="NEXT")
            pdf.ln(3)
    return bytes(pdf.output())


def render_docx(blocks: list[Block], language: str) -> bytes:
    """Lays the blocks out as a Word document with Word's own heading, list and table styles."""
    document = docx.Document()
    properties = document.core_properties
    properties.author = properties.last_modified_by = AUTHOR
    properties.title = blocks[0].text
    properties.comments = ""  # python-docx's template says here that python-docx made it
    properties.language = language
    properties.created = properties.modified = DATE.replace(tzinfo=None)
    styles = {"paragraph": "Normal", "bullet": "List Bullet", "step": "List Number"}
    for block in blocks:
        if block.kind == "heading":
            document.add_heading(block.text, level=block.level)
        elif block.kind == "table":
            table = document.add_table(rows=0, cols=len(block.rows[0]), style="Table Grid")
            for row in block.rows:
                for cell, text in zip(table.add_row().cells, row, strict=True):
                    cell.text = text
        else:
            document.add_paragraph(block.text, style=styles[block.kind])
    buffer = io.BytesIO()
    document.save(buffer)
    return with_fixed_times(buffer)


def with_fixed_times(archive: io.BytesIO) -> bytes:
    """Copies a zip archive with `DATE` on every member, where python-docx puts the time of the run."""
    copy = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            member = zipfile.ZipInfo(name, date_time=DATE.timetuple()[:6])
            member.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(member, old.read(name))
    return copy.getvalue()


def main() -> None:
    """Renders every source beside the hand-written samples of its language."""
    for source in sorted(SOURCE.glob("*/*.md")):
        language = source.parent.name
        blocks = parse_markdown(source.read_text(encoding="utf-8"))
        render, suffix = (render_pdf, ".pdf") if source.stem in PDF_NAMES else (render_docx, ".docx")
        target = TARGET / language / (source.stem + suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(render(blocks, language))
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
