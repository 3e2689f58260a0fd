"""PDF: a piece for each page, its lines joined again into paragraphs and tables."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from yunque.data.readers.files import check_regular, check_size
from yunque.data.readers.piece import Complain, Limits, Piece, Unreadable, packed, table_lines

if TYPE_CHECKING:
    from pypdf import PageObject

_LIGATURES = str.maketrans({"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_HYPHENATED = re.compile(r"[^\W\d_](?:-|\xad|‐)$")
_ITEM = re.compile(r"(?:[-–•*·▪●◦]|\d{1,3}[.)]|[a-z]\))\s")
_ENDS = re.compile(r"[.!?:;…»”\")]$")
_CELL = re.compile(r"\S+(?: {1,2}\S+)*")
# Cells of a table are shorter than the lines of two columns of running text.
_COLUMN_CHARACTERS = 28
_DIGITS = re.compile(r"\d+")


def read_pdf(path: Path, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each page, without the lines that head or end most pages. Raises Unreadable."""
    check_size(check_regular(path), limits)
    pages = _page_lines(path, complain)
    repeated = _repeated([lines for _, lines in pages])
    found = False
    for number, written in _whole_sentences(
        (number, paragraphs([line for line in lines if _DIGITS.sub("0", line.strip()) not in repeated]))
        for number, lines in pages
    ):
        for piece in packed(written, f"page {number}"):
            found = True
            yield piece
    if not found:
        raise Unreadable("holds no text (scanned pages would have to be recognized first)")


def _whole_sentences(pages: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Pages with the end of a paragraph that the page's end had cut put back to its beginning."""
    before: tuple[int, list[str]] | None = None
    for number, written in pages:
        if before and before[1] and written and written[0][0].islower() and not _ENDS.search(before[1][-1]):
            before[1][-1] += f" {written.pop(0)}"
        if before:
            yield before
        before = (number, written)
    if before:
        yield before


def _page_lines(path: Path, complain: Complain) -> list[tuple[int, list[str]]]:
    from pypdf import PdfReader

    # What it would warn about (odd offsets, fonts) is nothing that a user could mend.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("is encrypted with a password")
        count = len(reader.pages)
    except Unreadable:
        raise
    except Exception as error:  # a broken file can break any part of the parser
        raise Unreadable(f"is not a PDF that can be read ({_brief(error)})") from None
    pages = []
    for index in range(count):
        try:
            text = _page_text(reader.pages[index])
        except Exception as error:
            complain(f"page {index + 1}: cannot be read ({_brief(error)})")
            continue
        pages.append((index + 1, text.translate(_LIGATURES).splitlines()))
    return pages


def _page_text(page: "PageObject") -> str:
    """The text with the page's gaps between lines and columns, or in the order of its drawing.

    The second where the first would mix two columns of running text, or lose text (rotated, for example).
    """
    drawn = page.extract_text()
    laid_out = page.extract_text(extraction_mode="layout")
    if len("".join(laid_out.split())) < 0.95 * len("".join(drawn.split())):
        return drawn
    lines = [line for line in laid_out.splitlines() if line.strip()]
    cells = [_cells(line) for line in lines]
    divided = [row for row in cells if len(row) > 1]
    if len(divided) > 10 and len(divided) > len(lines) / 2:
        is_running_text = median(len(text) for row in divided for _, text in row) > _COLUMN_CHARACTERS
        return drawn if is_running_text else laid_out
    return laid_out


def _cells(line: str) -> list[tuple[int, str]]:
    """The parts of a line between wide gaps, each with the place where it begins."""
    return [(match.start(), match[0]) for match in _CELL.finditer(line)]


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


def _repeated(pages: list[list[str]]) -> set[str]:
    """The running heads and feet: first and last lines that, digits aside, stand on more than half of the pages."""
    if len(pages) < 3:
        return set()
    counts: Counter[str] = Counter()
    for lines in pages:
        written = [line.strip() for line in lines if line.strip()]
        counts.update({_DIGITS.sub("0", line) for line in written[:2] + written[-2:]})
    return {line for line, count in counts.items() if count > len(pages) / 2}


def paragraphs(lines: list[str]) -> list[str]:
    """Lines of a page joined into paragraphs; words divided at a line's end are whole again.

    A paragraph ends at an empty line and before a list item. On a page without empty lines it also ends after a
    line that ends a sentence or is clearly shorter than the page is wide. Tables are written as "column: value".
    """
    lines = _single_spaced(lines)
    has_gaps = any(not line.strip() for line in lines)
    joined: list[str] = []
    text: list[str] = []
    position = 0
    while position < len(lines):
        rows, after = _table(lines, position)
        if rows:
            joined += [*_joined(text, has_gaps), table_lines(rows)]
            text, position = [], after
        else:
            text.append(lines[position])
            position += 1
    return [*joined, *_joined(text, has_gaps)]


def _single_spaced(lines: list[str]) -> list[str]:
    """Without the empty lines of a page that has one after (nearly) every line: there they say nothing."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    written = [line for line in lines if line.strip()]
    return written if len(lines) - len(written) > 0.8 * len(written) > 4 else lines


def _table(lines: list[str], start: int) -> tuple[list[list[str]], int]:
    """The table whose head is line `start`, and the line after it; no rows if there is none.

    A cell belongs to the column whose head begins nearest; a line without a first cell goes on with the row above.
    """
    head = _cells(lines[start])
    if len(head) < 2 or _ITEM.fullmatch(f"{head[0][1]} "):
        return [], start
    places = [place for place, _ in head]
    rows = [[name for _, name in head]]
    position = start + 1
    while position < len(lines):
        cells = _cells(lines[position])
        goes_on = bool(cells) and cells[0][0] > (places[0] + places[1]) / 2 and len(rows) > 1
        if len(cells) < 2 and not goes_on:
            break
        if not goes_on:
            rows.append([""] * len(head))
        for place, text in cells:
            column = min(range(len(head)), key=lambda index: abs(places[index] - place))
            rows[-1][column] = f"{rows[-1][column]} {text}".strip()
        position += 1
    return (rows, position) if len(rows) > 1 else ([], start)


def _joined(lines: list[str], has_gaps: bool) -> list[str]:
    lengths = [len(line.strip()) for line in lines if line.strip()]
    if not lengths:
        return []
    width = quantiles(lengths, n=10)[-1] if len(lengths) > 1 else lengths[0]
    joined: list[str] = []
    is_open = False
    last = 0
    for line in lines:
        line = " ".join(line.split())
        if not line:
            is_open = False
            continue
        starts_small = line[0].islower()
        if not is_open or _ITEM.match(line):
            joined.append(line)
        elif _HYPHENATED.search(joined[-1]) and starts_small:
            joined[-1] = joined[-1][:-1] + line
        elif not has_gaps and last < 0.75 * width and not starts_small:
            joined.append(line)
        else:
            joined[-1] += f" {line}"
        last = len(line)
        is_open = has_gaps or not (_ENDS.search(line) and last < 0.85 * width)
    return joined
