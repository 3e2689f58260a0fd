"""What a reader yields, what it refuses, and how long texts are cut at paragraphs."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

PIECE_CHARACTERS = 4000
START = "start"

_SENTENCE_END = re.compile(r"(?<=[.!?…:;])\s|\n")

Complain = Callable[[str], None]
"""Told of a part of a file that was left out, with the place and the reason."""


@dataclass(frozen=True)
class Limits:
    """The largest things that are read: a document that must be held whole, and a line of a file that streams."""

    document_bytes: int = 64_000_000
    line_characters: int = 10_000_000


@dataclass(frozen=True)
class Piece:
    """A text and its place in the file; `record` is the same for all pieces of one record, "" in a document."""

    text: str
    locator: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    record: str = ""


class Unreadable(Exception):
    """A file cannot be read; the message is the reason, for a person."""


@dataclass(frozen=True)
class Section:
    """The paragraphs under one heading; `path` holds the headings above it, outermost first."""

    path: tuple[str, ...]
    paragraphs: tuple[str, ...]


class Outline:
    """Collects paragraphs under headings, as readers of structured documents meet them."""

    def __init__(self, title: str = "") -> None:
        self.title = title
        self._path: list[tuple[int, str]] = []
        self._paragraphs: list[str] = []
        self._sections: list[Section] = []

    def heading(self, level: int, text: str) -> None:
        """A heading of this level (1 is the outermost) begins a section."""
        text = " ".join(text.split())
        if not text:
            return
        self._close()
        self._path = [(above, name) for above, name in self._path if above < level]
        self._path.append((level, text))

    def paragraph(self, text: str) -> None:
        """A paragraph, list or table of the section."""
        if text.strip():
            self._paragraphs.append(text.strip("\n"))

    def _close(self) -> None:
        path = tuple(name for _, name in self._path)
        if self._paragraphs:
            self._sections.append(Section(path, tuple(self._paragraphs)))
        self._paragraphs = []

    def pieces(self) -> Iterator[Piece]:
        """A piece for each section that has text; the locator is "A > B".

        A document of headings alone gives one piece that holds them, so that nothing written is lost.
        """
        self._close()
        if not self._sections and self._path:
            names = [name for _, name in self._path]
            self._sections.append(Section(tuple(names), (" > ".join(names),)))
        for section in self._sections:
            path = section.path or ((self.title,) if self.title else ())
            yield from packed(section.paragraphs, " > ".join(path) or START)


def packed(paragraphs: Iterable[str], locator: str) -> Iterator[Piece]:
    """Paragraphs joined into pieces of at most about 4000 characters, never cut inside a sentence if it can be."""
    parts: list[str] = []
    waiting: list[str] = []
    length = 0
    for paragraph in paragraphs:
        for part in _cut(paragraph):
            if waiting and length + len(part) > PIECE_CHARACTERS:
                parts.append("\n\n".join(waiting))
                waiting, length = [], 0
            waiting.append(part)
            length += len(part) + 2
    if waiting:
        parts.append("\n\n".join(waiting))
    for number, text in enumerate(parts, start=1):
        yield Piece(text, locator if len(parts) == 1 else f"{locator}, part {number}")


def _cut(text: str) -> Iterator[str]:
    """A text too long for one piece, cut at the last sentence end, else the last blank, that fits."""
    while len(text) > PIECE_CHARACTERS:
        window = text[:PIECE_CHARACTERS]
        at = max((end.end() for end in _SENTENCE_END.finditer(window)), default=0)
        if at < PIECE_CHARACTERS // 4:
            at = window.rfind(" ") + 1 or PIECE_CHARACTERS
        yield text[:at].rstrip()
        text = text[at:].lstrip(" ")
    if text:
        yield text


def table_lines(rows: Iterable[Iterable[str]]) -> str:
    """A table as one line a row, "column: value; column: value", so that each line can be understood alone."""
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    cells = [row for row in cells if any(row)]
    if not cells:
        return ""
    header, *body = cells
    if not body:
        return "; ".join(cell for cell in header if cell)
    return "\n".join(_table_line(header, row) for row in body)


def _table_line(header: list[str], row: list[str]) -> str:
    columns = header + [""] * (len(row) - len(header))
    return "; ".join(
        f"{column}: {value}" if column and column != value else value
        for column, value in zip(columns, row, strict=False)
        if value
    )
