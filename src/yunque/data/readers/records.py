"""Records: CSV, TSV, JSON lines and JSON. The first three stream."""

import csv
import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from yunque.data.readers.files import TextFile
from yunque.data.readers.piece import Complain, Limits, Piece, Unreadable, packed

_TEXT_FIELDS = (
    *("text", "texto", "content", "contenido", "message", "mensaje", "body", "cuerpo"),
    *("document", "documento", "passage", "pasaje", "comment", "comentario", "review", "reseña"),
)
_QUESTION_FIELDS = ("question", "pregunta")
_ANSWER_FIELDS = ("answer", "respuesta")
_TITLE_FIELDS = ("title", "título", "titulo", "heading", "subject", "asunto")
_DELIMITERS = (",", ";", "\t", "|")
_TITLE_CHARACTERS = 80
_LONG_RECORD = 16_000


def read_csv(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each record under a header line; the delimiter is the one that divides the first lines alike."""
    lines = _Lines(file.lines(limits, complain))
    csv.field_size_limit(limits.line_characters)
    delimiter = _delimiter(lines.peek(20))
    records = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        first = lines.begin_record()
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            complain(f"line {first}: is not a record ({error})")
            continue
        if lines.is_swallowed():
            complain(f"line {first}: a quotation mark is opened and never closed")
            records = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            continue
        yield from record_piece(_named(header, cells), f"line {first}")


class _Lines(Iterator[str]):
    """Lines whose numbers are known, some of which can be looked at before."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self._ahead: deque[tuple[int, str]] = deque()
        self._record: list[tuple[int, str]] = []

    def peek(self, count: int) -> list[str]:
        """The next lines, which are still to come."""
        self._fill(count)
        return [line for _, line in self._ahead]

    def begin_record(self) -> int:
        """The number of the line where the next record begins."""
        self._record = []
        self._fill(1)
        return self._ahead[0][0] if self._ahead else 0

    def is_swallowed(self) -> bool:
        """Whether the record ran to the end for want of a closing quotation mark; then its later lines come again."""
        if len(self._record) < 2 or self.peek(1) or sum(line.count('"') for _, line in self._record) % 2 == 0:
            return False
        self._ahead.extend(self._record[1:])
        return True

    def _fill(self, count: int) -> None:
        while len(self._ahead) < count and (line := next(self._lines, None)):
            self._ahead.append(line)

    def __next__(self) -> str:
        self._fill(1)
        if not self._ahead:
            raise StopIteration
        self._record.append(self._ahead.popleft())
        return self._record[-1][1]


def _delimiter(lines: list[str]) -> str:
    """The delimiter that gives most lines as many cells as the header has, and more than one."""

    def score(delimiter: str) -> tuple[int, int]:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if cells]
        except csv.Error:
            return (0, 0)
        if not counts or counts[0] < 2:
            return (0, 0)
        return (sum(count == counts[0] for count in counts), counts[0])

    return max(_DELIMITERS, key=score)


def _named(header: list[str], cells: list[str]) -> dict[str, str]:
    names = header + [""] * (len(cells) - len(header))
    named: dict[str, str] = {}
    for number, (name, cell) in enumerate(zip(names, cells, strict=False), start=1):
        key = name or f"column {number}"
        named[key if key not in named else f"{key} ({number})"] = cell.strip()
    return named


def read_jsonl(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each line; a line that is not JSON is told of and left out."""
    found = False
    for number, line in file.lines(limits, complain):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=str)
        except json.JSONDecodeError as error:
            complain(f"line {number}: is not JSON ({error.msg} at column {error.colno})")
            continue
        except (ValueError, RecursionError) as error:
            complain(f"line {number}: is not JSON that can be read ({error})")
            continue
        for piece in record_piece(value, f"line {number}"):
            found = True
            yield piece
    if not found:
        raise Unreadable("holds no record with text")


def read_json(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """A piece for each record of a list, whether it is the whole file or the only list in its mapping."""
    del complain
    try:
        value = json.loads(file.text(limits), parse_constant=str)
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON (line {error.lineno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON that can be read ({error})") from None
    if isinstance(value, dict):
        lists = [inner for inner in value.values() if isinstance(inner, list) and inner]
        if len(lists) == 1 and all(isinstance(item, dict) for item in lists[0]):
            value = lists[0]
    if not isinstance(value, list):
        yield from record_piece(value, "the whole file")
        return
    for number, item in enumerate(value, start=1):
        yield from record_piece(item, f"item {number}")


def record_piece(record: Any, place: str) -> Iterator[Piece]:
    """The text of a record: its text field, its question and answer, or all of it as "column: value" lines.

    `fields` keeps whatever is not the text; a title is added to the place.
    """
    if not isinstance(record, Mapping):
        text = record if isinstance(record, str) else _value(record)
        if text.strip():
            yield from _record(text, place, {})
        return
    names = {str(name).strip().casefold(): name for name in reversed(list(record))}
    fields = dict(record)
    question, answer = _pick(record, names, _QUESTION_FIELDS), _pick(record, names, _ANSWER_FIELDS)
    text_name = next((names[name] for name in _TEXT_FIELDS if _has_text(record, names.get(name))), None)
    if question and answer and text_name is None:
        text = f"{question}\n{answer}"
    elif text_name is not None:
        text = str(fields.pop(text_name))
    else:
        text = "\n".join(
            f"{name}: {value}" for name, cell in record.items() if (value := _value(cell).strip())
        )
    title = " ".join(_pick(record, names, _TITLE_FIELDS).split())[:_TITLE_CHARACTERS]
    if text.strip():
        yield from _record(text, f"{place}: {title}" if title else place, fields)


def _record(text: str, place: str, fields: Mapping[str, Any]) -> Iterator[Piece]:
    """One piece, unless the record holds a whole book."""
    key = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    if len(text) <= _LONG_RECORD:
        yield Piece(text, place, fields, key)
        return
    for part in packed(text.split("\n\n"), place):
        yield Piece(part.text, part.locator, fields, key)


def _has_text(record: Mapping[str, Any], name: str | None) -> bool:
    return name is not None and isinstance(record[name], str) and bool(record[name].strip())


def _pick(record: Mapping[str, Any], names: Mapping[str, str], wanted: tuple[str, ...]) -> str:
    return next((record[names[name]].strip() for name in wanted if _has_text(record, names.get(name))), "")


def _value(value: Any) -> str:
    """A value as a person would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(not isinstance(item, list | dict) for item in value):
        return ", ".join(_value(item) for item in value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
