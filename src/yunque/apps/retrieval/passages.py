"""Cutting a row into passages: a few sentences, a table line or a question with its answer, never half of one.

Everything is an offset into the row's own text, so a quotation can always be found again in the document.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yunque.apps.retrieval.words import Language, language_of
from yunque.data.row import Row

PASSAGE_CHARS = 600
"""A passage is closed when another sentence would make it longer than this."""

_MARKDOWN_HEADING = re.compile(r"#{1,6}\s+")
_BULLET = re.compile(r"(?:[-*•·–]|\d{1,2}[.)])\s+")
RECORD = re.compile(r"[^:;.]{1,60}: [^;]+(?:; [^:;]{1,60}: [^;]+)+")
"""A line of a table: "Fare: Basic; Seat: 7 EUR"."""
_TABLE_ROW = re.compile(r"\|.*\|\s*")
_TABLE_RULE = re.compile(r"\|[\s:|-]+\|\s*")
_CODE_LINE = re.compile(
    r"\s*(?:[})\]]+[;,]?|(?:def|class|import|from|return|if|for|while|else|elif|try|except|with|raise|function|const|"
    r"let|var|public|private|static|void|int|#include|SELECT|INSERT|UPDATE|CREATE|\$|>>>|sudo|pip|git)\b.*[\w)\]};:\"'*]|"
    r".*[;{}]|.*\w\(.*\)[;:]?|\s*[\w.\[\]\"']+ (?:=|\+=|:=|->|=>) .+)\s*"
)
_CODE_WIDTH = 200
_FULL_LINE = re.compile(r"[^\s](?:[^\n]*[^\s])?")
_FIELD = re.compile(r"\s*[\w /()-]{1,40}: \S")
# A mark first, and only then the two ways to go on: what can only begin with a few characters is found quickly.
_SENTENCE_END = re.compile(
    r"""[.!?…](?:[.!?…]*["'»”)\]]*(?=\s+["'«“(\[¿¡]*[A-ZÁÉÍÓÚÜÑ0-9€])|(?<=[?!])[?!]*["'»”)\]]*(?=\s))"""
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Sr|Sra|Srta|Dr|Dra|Ud|Uds|art|núm|nº|pág|tel|aprox|máx|mín|p\. ej|"
    r"Mr|Mrs|Ms|St|No|vs|approx|max|min|e\.g|i\.e|Inc|Ltd))\.$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Unit:
    """What can be quoted on its own: `start` and `end` are offsets into the row's text."""

    start: int
    end: int


@dataclass(frozen=True)
class Passage:
    """A piece of a row. `heading` is where it stands ("Pets > Prices"), `text` the characters `start:end` of the
    row's text, `units` its sentences with offsets into that same row's text."""

    row_id: str
    file: str
    locator: str
    language: Language
    heading: str
    start: int
    end: int
    text: str
    units: tuple[Unit, ...]

    def quote(self, unit: Unit) -> str:
        """The words of a unit as the document has them; line breaks are spaces (in a record semicolons), and list
        marks are gone."""
        text = self.text[unit.start - self.start : unit.end - self.start]
        if _is_record(text):
            return "; ".join(line.strip() for line in text.splitlines())
        return " ".join(_BULLET.sub("", text, count=1).split())

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "units": [[unit.start, unit.end] for unit in self.units]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Passage":
        """The passage that `as_dict` wrote."""
        return cls(**{**values, "units": tuple(Unit(*unit) for unit in values["units"])})


@dataclass(frozen=True)
class _Block:
    """Consecutive lines of one kind."""

    kind: str  # heading, record, table, code, text
    start: int
    end: int


def _is_record(text: str) -> bool:
    """Whether a text is the fields of a record, one "name: value" a line."""
    lines = text.strip().splitlines()
    return len(lines) > 1 and all(_FIELD.match(line) for line in lines)


def _is_title(lines: list[str], number: int, ends_sentence: bool) -> bool:
    """Whether a line of plain text is a title: short, capital first, no full stop, before a fuller line.

    PDF text has no marks for titles and no blank lines, so this looks at the lines around it too.
    """
    line = lines[number].strip()
    if (
        not (3 <= len(line) <= 75)
        or not line[0].isupper()
        or line[-1] in ".;,:?!)0123456789"
        or re.search(r"[|€]|\bEUR\b", line)
    ):
        return False
    if not ends_sentence or number + 1 >= len(lines):
        return False
    following = next((other.strip() for other in lines[number + 1 :] if other.strip()), "")
    if not following or not (
        following[0].isupper() or following[0].isdigit() or _BULLET.match(following) or following[0] in '«“"¿'
    ):
        return False
    return (
        len(following) > 75
        or following[-1] in ".:;"
        or bool(_BULLET.match(following))
        or len(following) > len(line) * 1.5
    )


def _blocks(text: str) -> list[_Block]:
    """The lines of a text grouped into headings, records (the lines of a table), list items and paragraphs."""
    found: list[_Block] = []
    position, open_start, ends_sentence = 0, -1, True
    lines = text.split("\n")
    special = _special_lines(lines)
    width = max(map(len, lines)) if max(map(len, lines)) <= 120 else 0

    def close(end: int) -> None:
        nonlocal open_start
        if open_start >= 0:
            found.append(_Block("text", open_start, end))
            open_start = -1

    for number, line in enumerate(lines):
        bare = line.strip()
        start, end = position + len(line) - len(line.lstrip()), position + len(line.rstrip())
        position += len(line) + 1
        if kind := special.get(number):
            close(start)
            if found and found[-1].kind == kind and special.get(number - 1) == kind:
                found[-1] = _Block(kind, found[-1].start, max(end, found[-1].end))
            else:
                # Code keeps the blanks before its first line.
                found.append(_Block(kind, start if kind == "table" else end - len(line.rstrip()), end))
            ends_sentence = True
            continue
        if not bare:
            close(start)
            ends_sentence = True
            continue
        # A record first: the first line of a table is short and without a full stop, like a title.
        record = RECORD.fullmatch(bare) is not None
        if record or _MARKDOWN_HEADING.match(bare) or _is_title(lines, number, ends_sentence):
            close(start)
            found.append(_Block("record" if record else "heading", start, end))
            ends_sentence = True
            continue
        if _BULLET.match(bare) or ends_sentence:
            close(start)
        if open_start < 0:
            open_start = start
        # A line much shorter than the others was broken on purpose (a table drawn by a PDF).
        ends_sentence = bare[-1] in ".!?…:" or len(bare) < 0.7 * width
    close(len(text.rstrip()))
    return found


def _special_lines(lines: list[str]) -> dict[int, str]:
    """The numbers of the lines that are no prose: tables drawn with bars, and runs of code with what is between."""
    found: dict[int, str] = {}
    for number, line in enumerate(lines):
        if _TABLE_RULE.fullmatch(line.strip()) and number and _TABLE_ROW.fullmatch(lines[number - 1].strip()):
            found[number - 1] = "table"
            while number < len(lines) and _TABLE_ROW.fullmatch(lines[number].strip()):
                found[number] = "table"
                number += 1
    first = 0
    while first < len(lines):
        last = first
        while last < len(lines) and last not in found and lines[last].strip():
            last += 1
        run = lines[first:last]
        if len(run) > 1 and _is_code(run):
            found |= dict.fromkeys(range(first, last), "code")
        first = last + 1
    return found


def _is_code(lines: list[str]) -> bool:
    """Whether most of some lines look like a program's, and none like prose."""
    if any(line.rstrip()[-1:] in ".?!" or len(line) > _CODE_WIDTH for line in lines):
        return False
    code = sum(_CODE_LINE.fullmatch(line) is not None for line in lines)
    return code == len(lines) or (code >= 0.6 * len(lines) and any(line[:1] in " \t" for line in lines))


def pieces(text: str, start: int, end: int, most: int) -> list[tuple[int, int]]:
    """What is between two offsets in parts of at most `most` characters: cut after a mark, else at a blank, else
    anywhere (a text without a blank is no text of words)."""
    found: list[tuple[int, int]] = []
    while end - start > most:
        window = text[start : start + most]
        at = max(window.rfind(mark) + 1 for mark in (";", ":", ",", ")", "\n"))
        if at < most // 3:
            at = window.rfind(" ") + 1
        if at < most // 3:
            at = most
        found.append((start, start + at))
        start += at
    found.append((start, end))
    return _trimmed(text, found)


def _trimmed(text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What lies between each two offsets without the white space around it; what is nothing else is left out."""
    found = []
    for first, last in spans:
        while first < last and text[first].isspace():
            first += 1
        while first < last and text[last - 1].isspace():
            last -= 1
        if first < last:
            found.append((first, last))
    return found


def _lines(text: str, block: _Block) -> list[tuple[int, int]]:
    """The lines of a block that hold anything, without the white space around them."""
    return [(match.start(), match.end()) for match in _FULL_LINE.finditer(text, block.start, block.end)]


def sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The sentences between two offsets of a text, without the white space around them."""
    found: list[tuple[int, int]] = []
    begin = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if _ABBREVIATION.search(text[max(begin, match.start() - 8) : match.end()]):
            continue
        bullet = _BULLET.fullmatch(text[begin : match.end()].strip() + " ")
        if bullet:
            continue
        found.append((begin, match.end()))
        begin = match.end()
    found.append((begin, end))
    return _trimmed(text, found)


@dataclass
class _Open:
    """The passage being filled."""

    heading: list[str]
    units: list[Unit]
    table: str = ""


def cut(row: Row, passage_chars: int = PASSAGE_CHARS) -> list[Passage]:
    """The passages of a row, in order. Headings are not passages: they are what their passages stand under."""
    text, passages = row.text, list[Passage]()
    language: Language = "es" if row.language == "es" else "en" if row.language == "en" else language_of(text)
    filling = _Open([], [])

    def close() -> None:
        if not filling.units:
            return
        start, end = filling.units[0].start, filling.units[-1].end
        # A part of the locator that is also the nearest heading is said once.
        heading = " > ".join(
            dict.fromkeys([row.source.locator, *filling.heading, *filter(None, [filling.table])])
        )
        passages.append(
            Passage(
                row.id,
                row.source.file,
                row.source.locator,
                language,
                heading,
                start,
                end,
                text[start:end],
                tuple(filling.units),
            )
        )
        filling.units = []

    def add(start: int, end: int) -> None:
        for first, last in pieces(text, start, end, passage_chars):
            if filling.units and last - filling.units[0].start > passage_chars:
                close()
            filling.units.append(Unit(first, last))

    record = bool(row.fields) and _is_record(text)
    for block in [_Block("record", 0, len(text))] if record else _blocks(text):
        if block.kind == "heading":
            close()
            filling.heading = [_MARKDOWN_HEADING.sub("", text[block.start : block.end])]
        elif block.kind == "record":
            add(block.start, block.end)
        elif block.kind == "table":
            close()
            head, *rows = _lines(text, block)
            # Its passages stand under the names of its columns, as under a heading.
            filling.table = " | ".join(cell.strip() for cell in text[slice(*head)].strip("| ").split("|"))
            for start, end in rows:
                if not _TABLE_RULE.fullmatch(text[start:end]):
                    add(start, end)
            close()
            filling.table = ""
        elif block.kind == "code":
            if block.end - block.start <= passage_chars:
                add(block.start, block.end)
            else:
                for start, end in _lines(text, block):
                    add(start, end)
        else:
            for start, end in sentences(text, block.start, block.end):
                add(start, end)
    close()
    return passages
