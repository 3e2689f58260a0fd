"""Server-sent events: reading the `data` of a stream (WHATWG HTML, section 9.2)."""

from codecs import BOM_UTF8
from collections.abc import Sequence

MOST_BYTES_OF_AN_EVENT = 16_000_000


class TooLong(Exception):
    """An event is longer than MOST_BYTES_OF_AN_EVENT."""


class EventParser:
    """Takes a stream's bytes as they come, and gives the data of each event that is whole; raises TooLong.

    Comments and other fields are passed over. Lines end in LF, CR LF or CR only: U+2028 and its like are text, which
    `str.splitlines` would cut in two. What stands after the last blank line is an event that was not finished.
    Each byte is looked at once, however long a line is and however small the blocks are.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """Of the line that has not ended yet."""
        self._line_size = 0
        self._data: list[bytes] = []
        self._data_size = 0
        self._begun = False
        self._after_return = False
        """The last block ended in CR: an LF at the start of the next one belongs to it."""

    def feed(self, block: bytes) -> Sequence[bytes]:
        """The data of the events that end in this block."""
        # Nearly always a block is one event of one line.
        if not self._pieces and not self._data and block[:6] == b"data: " and block[-2:] == b"\n\n":
            data = block[6:-2]
            if b"\n" not in data and b"\r" not in data:
                self._begun, self._after_return = True, False
                return (data,)
        found: list[bytes] = []
        for line in self._lines(block):
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                self._data, self._data_size = [], 0
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
                self._data_size += len(value)
                self._check_size()
        return found

    def _lines(self, block: bytes) -> list[bytes]:
        if self._after_return and block:
            self._after_return = False
            block = block.removeprefix(b"\n")
        if b"\r" in block:
            self._after_return = block.endswith(b"\r")
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *lines = block.split(b"\n")
        if not lines:
            if first:
                self._pieces.append(first)
                self._line_size += len(first)
                self._check_size()
            return []
        lines.insert(0, b"".join((*self._pieces, first)))
        rest = lines.pop()
        self._pieces, self._line_size = [rest] if rest else [], len(rest)
        if not self._begun:
            self._begun, lines[0] = True, lines[0].removeprefix(BOM_UTF8)
        return lines

    def _check_size(self) -> None:
        if self._line_size + self._data_size > MOST_BYTES_OF_AN_EVENT:
            raise TooLong
