"""DOCX: sections by heading, lists and tables in the order in which they stand."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yunque.data.readers.files import check_regular, check_size
from yunque.data.readers.piece import Complain, Limits, Outline, Piece, Unreadable, table_lines

if TYPE_CHECKING:
    from docx.table import Table

# The name of a built-in style is English in most files, and the language of its program in some.
_HEADING = re.compile(r"(?:heading|título|titulo|encabezado)\s*(\d)", re.IGNORECASE)
_LIST = re.compile(r"list|lista", re.IGNORECASE)
# What an honest document packs tighter than this is small; a bomb is thousands of times larger than its file.
_RATIO = 200


def read_docx(path: Path, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each section. Raises Unreadable for what is not a DOCX, is encrypted, or unpacks too large."""
    del complain
    size = check_regular(path)
    check_size(size, limits)
    _check_archive(path, size, limits)
    import docx
    from docx.table import Table

    outline = Outline()
    try:
        document = docx.Document(str(path))
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                outline.paragraph(table_lines(_rows(block)))
            else:
                _paragraph(outline, block)
    except Exception as error:  # a broken file can break any part of the parser
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise Unreadable(f"is not a DOCX that can be read ({reason.replace(str(path), path.name)})") from None
    yield from outline.pieces()


def _check_archive(path: Path, size: int, limits: Limits) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        raise Unreadable(
            "is not a DOCX that can be read (it is damaged, encrypted, or of another format)"
        ) from None
    if unpacked > 4 * limits.document_bytes or (unpacked > 20_000_000 and unpacked > _RATIO * size):
        raise Unreadable(f"would unpack to {unpacked / 1e6:,.0f} MB, which no ordinary document does")


def _paragraph(outline: Outline, block: Any) -> None:
    name = (block.style.name if block.style is not None else "") or ""
    text = block.text.strip()
    if heading := _HEADING.match(name):
        outline.heading(int(heading[1]) + 1, text)
    elif name.lower() in ("title", "título", "titulo"):
        outline.heading(1, text)
    elif _LIST.match(name) and text:
        outline.paragraph(f"- {text}")
    else:
        outline.paragraph(text)


def _rows(table: "Table") -> Iterator[list[str]]:
    for row in table.rows:
        cells, seen = [], set()
        for cell in row.cells:
            # A merged cell is met once for every column it covers.
            if id(cell._tc) not in seen:
                seen.add(id(cell._tc))
                cells.append(cell.text)
        yield cells
