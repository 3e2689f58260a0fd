"""Server-sent events: reading the `data` of a stream (WHATWG HTML, section 9.2)."""

from collections.abc import Iterable, Iterator


def events(blocks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event in a stream of bytes; comments and other fields are passed over.

    Lines end in LF, CR LF or CR only: U+2028 and its like are text, which `str.splitlines` would cut in two. What
    stands after the last blank line is an event that was not finished, and is dropped.
    """
    data: list[str] = []
    for line in _lines(blocks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" ").decode("utf-8", errors="replace"))


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        rest += block
        # A CR at the very end may be half of a CR LF: leave it for the next block.
        held = b"\r" if rest.endswith(b"\r") else b""
        text = rest[: len(rest) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        rest += held
        yield from lines
    if rest.endswith(b"\r"):
        yield rest[:-1]
