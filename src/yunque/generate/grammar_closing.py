"""How a text under a grammar can be ended soon: a search, byte by byte, for a short way to its end.

The grammar library says what may come next, not how far the end is. Most of the way is forced (names that are
required) or plain (a bracket closes what is open); only where several kinds of value may begin, and in a string that
must look like something, several ways are tried to their ends and the shortest is taken (rollouts: Bertsekas et al.
1997). It need not be the shortest of all; that it is valid is sure, because the grammar itself takes every byte.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from llguidance import LLMatcher

Kind = Literal["json", "tools", "plain"]

CALL = b"<tool_call>"
# What to write outside of strings where there is a choice: first what closes, then what is short.
_ORDER = b'}],:0123456789"ntf[{-.<'
_CLOSERS = b"}],"
_DIGITS = b"0123456789"
_QUOTE = ord('"')
# Of the letters that may go on a string so many are tried.
_TRIED = 40
# A letter is written so often at most before others are thought of.
_MOST_REPEATED = 4096
# Other ways are tried for so many steps (of about 10 microseconds); a way has at most so many bytes.
_MOST_STEPS = 2000
LONGEST = 20_000


@dataclass(frozen=True)
class Place:
    """Where in the text its end is: in a string or outside of one. A plain text is like the inside of a string."""

    kind: Kind
    in_string: bool = False
    escaped: bool = False
    name: bool = False
    recent: bytes = b""

    @classmethod
    def start(cls, kind: Kind) -> "Place":
        """At the beginning of a text."""
        return cls(kind, in_string=kind != "json")

    def after(self, data: bytes) -> "Place":
        """After more bytes."""
        if self.kind == "plain":
            return self
        in_string, escaped, free = self.in_string, self.escaped, self.kind == "tools"
        name = self.name
        before = self.recent[-1:].strip() or self.recent[-2:-1]
        for number, byte in enumerate(data):
            if free and in_string:
                # Free text before the first call is like a string that `<tool_call>` ends.
                found = (self.recent + data[: number + 1]).endswith(CALL)
                in_string = not found
                free = not found
            elif escaped:
                escaped = False
            elif byte == _QUOTE:
                in_string = not in_string
                # The string may be the name of a value, unless it is behind a colon.
                name = in_string and before in (b"{", b",")
            elif byte == ord("\\") and in_string:
                escaped = True
            if byte != ord(" "):
                before = bytes([byte])
        kind: Kind = "tools" if free and self.kind == "tools" else "json"
        return Place(kind, in_string, escaped, name, (self.recent + data)[-16:])


class Closer:
    """Finds short ends of one text. Its matcher reads single bytes."""

    def __init__(self, matcher: LLMatcher, kind: Kind, examples: Iterable[str]) -> None:
        self._matcher = matcher
        self.kind: Kind = kind
        ends = _suffixes(example.encode() for example in examples)
        self._suffixes = sorted(set(ends), key=lambda end: (len(end), end))
        self._text = b""
        self.place = Place.start(kind)
        self._steps = self._most = 0

    def copy(self) -> "Closer":
        """Another for a text that begins with the same."""
        made = Closer(self._matcher.deep_copy(), self.kind, ())
        made._suffixes, made._text, made.place = self._suffixes, self._text, self.place
        return made

    @property
    def fault(self) -> str | None:
        """Which limit of the grammar library the text has met; None where it met none."""
        told: str = self._matcher.get_error() if self._matcher.is_error() else ""
        return told.splitlines()[0] if told.startswith("Parser Error") else None

    def read(self, text: bytes) -> bool:
        """Be at the end of `text`; whether the grammar takes it."""
        if not text.startswith(self._text):
            shared = next(
                (at for at, (one, two) in enumerate(zip(text, self._text, strict=False)) if one != two),
                min(len(text), len(self._text)),
            )
            self._matcher.rollback(len(self._text) - shared)
            self._text = self._text[:shared]
            self.place = Place.start(self.kind).after(self._text)
        fresh = text[len(self._text) :]
        if fresh and self._matcher.validate_tokens(list(fresh)) < len(fresh):
            return False
        self._consume(fresh)
        self.place = self.place.after(fresh)
        self._text = text
        return True

    def ends_with(self, end: bytes) -> bool:
        """Whether the text is complete with `end` behind it."""
        if self._matcher.validate_tokens(list(end)) < len(end):
            return False
        self._consume(end)
        complete: bool = self._matcher.is_accepting()
        self._undo(len(end))
        return complete

    def shortest(self, patience: int = 1) -> bytes | None:
        """A short end of the text, b"" where it is complete; None where none was found with so much patience."""
        self._steps, self._most = 0, patience * _MOST_STEPS
        best: bytes | None = None
        written, place = b"", self.place
        while not self._matcher.is_accepting():
            choices = self._choices(place)
            if not choices or len(written) > LONGEST:
                break
            step = choices[0]
            if len(choices) > 1 and self._steps <= self._most:
                best = self._best_of(choices, written, place, best)
            if best is not None and best.startswith(written):
                step = next((one for one in choices if best.startswith(one, len(written))), step)
            self._consume(step)
            written, place = written + step, place.after(step)
        if self._matcher.is_accepting() and (best is None or len(written) < len(best)):
            best = written
        self._undo(len(written))
        return best

    def _best_of(
        self, choices: list[bytes], written: bytes, place: Place, best: bytes | None
    ) -> bytes | None:
        for step in choices:
            limit = (LONGEST if best is None else len(best) - 1) - len(written) - len(step)
            self._consume(step)
            end = self._descend(place.after(step), limit)
            self._undo(len(step))
            if end is not None:
                best = written + step + end
        return best

    def _descend(self, place: Place, limit: int) -> bytes | None:
        """The way to the end by first choices, of at most `limit` bytes."""
        written = b""
        found = None
        most = self._steps + _MOST_STEPS // 16
        while len(written) <= limit and self._steps <= most:
            if self._matcher.is_accepting():
                found = written
                break
            choices = self._choices(place)
            if not choices:
                break
            self._consume(choices[0])
            written, place = written + choices[0], place.after(choices[0])
        self._undo(len(written))
        return found

    def _consume(self, data: bytes) -> None:
        if data:
            self._matcher.consume_tokens(list(data))

    def _undo(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)

    def _choices(self, place: Place) -> list[bytes]:
        """What may be written next, the likeliest to be short first; other ways only where they may be shorter."""
        self._steps += 1
        forced: bytes = self._matcher.compute_ff_bytes()
        if forced:
            return [forced] if len(forced) <= LONGEST else []
        mask: bytes = self._matcher.compute_bitmask()
        if place.in_string and place.kind == "json" and _allows(mask, _QUOTE):
            return [b'"']
        allowed = _bytes_of(mask)
        if len(allowed) < 2:
            return [allowed] if allowed else []
        if place.in_string:
            return self._in_string(allowed, place)
        ordered = [byte for byte in _ORDER if byte in allowed]
        if not ordered:
            return [bytes([byte]) for byte in allowed[:_TRIED]]
        if ordered[0] in _CLOSERS:
            return [bytes(ordered[:1])]
        digits = self._different(bytes(byte for byte in ordered if byte in _DIGITS))
        others = [bytes([byte]) for byte in ordered if byte not in _DIGITS]
        return [*digits, *others]

    def _in_string(self, allowed: bytes, place: Place) -> list[bytes]:
        quoted = place.kind == "json"
        last = b'"' if quoted else b""
        for end in self._suffixes:
            if end[0] not in allowed:
                continue
            self._steps += 1
            if quoted and self._matcher.validate_tokens(list(end + last)) > len(end):
                return [end]
            if not quoted and self.ends_with(end):
                return [end]
        plain = bytes(byte for byte in b"a0A1 -_.,:@/" if byte in allowed)
        rest = bytes(byte for byte in allowed if byte not in plain and byte != ord("\\"))
        letters = ((plain + rest) or allowed)[:_TRIED]
        if place.name and len(letters) < _TRIED:
            # Each letter begins another name: which of them must come is seen at the end only.
            return [bytes([letter]) for letter in letters]
        found = self._different(letters)
        return [self._repeated(found[0], quoted)] if len(found) == 1 else found

    def _repeated(self, letter: bytes, quoted: bool) -> bytes:
        """The letter as often as it takes until the string may end, or until something else must come."""
        count = 0
        while count < _MOST_REPEATED:
            self._matcher.consume_token(letter[0])
            count += 1
            mask = self._matcher.compute_bitmask()
            over = _allows(mask, _QUOTE) if quoted else self._matcher.is_accepting()
            if over or not _allows(mask, letter[0]):
                break
        self._undo(count)
        return letter * count

    def _different(self, letters: bytes) -> list[bytes]:
        """Those of the letters after which different bytes may come."""
        if len(letters) < 2:
            return [letters] if letters else []
        seen = set()
        found = []
        for letter in letters:
            self._matcher.consume_token(letter)
            follows = (self._matcher.compute_bitmask(), self._matcher.compute_ff_bytes())
            self._matcher.rollback(1)
            self._steps += 1
            if follows not in seen:
                seen.add(follows)
                found.append(bytes([letter]))
        return found


def _allows(mask: bytes, byte: int) -> bool:
    return bool(mask[byte // 8] >> byte % 8 & 1)


def _bytes_of(mask: bytes) -> bytes:
    """The bytes that a mask allows."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8, count=32), bitorder="little")
    return bits.nonzero()[0].astype(np.uint8).tobytes()


def _suffixes(examples: Iterable[bytes]) -> Iterator[bytes]:
    for example in examples:
        for start in range(max(0, len(example) - 64), len(example)):
            yield example[start:]
