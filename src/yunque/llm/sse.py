"""Server-sent events: reading the `data` of a stream (WHATWG HTML, section 9.2)."""

from codecs import BOM_UTF8
from collections.abc import Sequence


class EventParser:
    """Takes a stream's bytes as they come, and gives the data of each event that is whole.

    Comments and other fields are passed over. Lines end in LF, CR LF or CR only: U+2028 and its like are text, which
    `str.splitlines` would cut in two. What stands after the last blank line is an event that was not finished.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._begun = False

    def feed(self, block: bytes) -> Sequence[bytes]:
        """The data of the events that end in this block."""
        # Nearly always a block is one event of one line.
        if not self._rest and not self._data and block[:6] == b"data: " and block[-2:] == b"\n\n":
            data = block[6:-2]
            if b"\n" not in data and b"\r" not in data:
                self._begun = True
                return (data,)
        found: list[bytes] = []
        for line in self._lines(block):
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                self._data = []
                continue
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
        return found

    def finish(self) -> Sequence[bytes]:
        """The data of an event that ended with the stream, in a CR that might have been half of a CR LF."""
        return self.feed(b"\n") if self._rest.endswith(b"\r") else ()

    def _lines(self, block: bytes) -> list[bytes]:
        rest = self._rest + block
        if not self._begun and len(rest) >= len(BOM_UTF8):
            self._begun, rest = True, rest.removeprefix(BOM_UTF8)
        # A CR at the very end may be half of a CR LF: leave it for the next block.
        held = b"\r" if rest.endswith(b"\r") else b""
        text = rest[: len(rest) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        return lines
