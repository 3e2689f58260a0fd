"""Plain text: paragraphs, grouped, with the lines they stood on. Streams."""

from collections.abc import Iterator

from yunque.data.readers.files import TextFile
from yunque.data.readers.piece import PIECE_CHARACTERS, Complain, Limits, Piece, packed


def read_plain(file: TextFile, limits: Limits, complain: Complain) -> Iterator[Piece]:
    """Pieces of a few thousand characters that end at a blank line; the locator names the lines."""
    waiting: list[str] = []
    length, first, last = 0, 1, 0
    for number, line in file.lines(limits, complain):
        blank = not line.strip()
        if length >= PIECE_CHARACTERS * 0.75 and (blank or length >= PIECE_CHARACTERS):
            yield from _pieces(waiting, first, last)
            waiting, length = [], 0
        if not waiting:
            if blank:
                continue
            first = number
        waiting.append(line)
        length += len(line)
        last = last if blank else number
    yield from _pieces(waiting, first, last)


def _pieces(lines: list[str], first: int, last: int) -> Iterator[Piece]:
    text = "".join(lines)
    if text.strip():
        yield from packed([text], f"line {first}" if first == last else f"lines {first}-{last}")
