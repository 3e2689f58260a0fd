"""Tool calls in what a model writes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the form of Hermes
and Qwen, one after the other behind any text."""

import json
import re
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# An answer that ends with so much of `<tool_call>`, or more, was cut off in it; with less it may be text.
_CUT_OFF = len("<tool_")
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@dataclass(frozen=True)
class WrittenCall:
    """A call: the name of the tool, and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ContentDelta:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class CallDelta:
    """More of call number `index`: its `name` comes first and once, then its arguments bit by bit."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolStream:
    """Takes text as it is written and tells what is content and what is calls.

    Blanks beside a call are no content. What cannot be read as a call is content, its `<tool_call>` with it.
    """

    def __init__(self) -> None:
        self._held = ""
        self._index = -1
        self._inside = False
        self._streamed = False
        self._value = _Value()

    @property
    def inside(self) -> bool:
        """Whether a call was begun that has not ended."""
        return self._inside

    def feed(self, text: str) -> list[ContentDelta | CallDelta]:
        """What became certain with more text."""
        self._held += text
        found: list[ContentDelta | CallDelta] = []
        while self._take(found):
            pass
        return found

    def finish(self) -> list[ContentDelta | CallDelta]:
        """What was still held back when the text is over."""
        held, self._held = self._held, ""
        if self._inside:
            # The arguments of a call that was cut off were told as they came.
            return [] if self._streamed else [ContentDelta(OPEN + held)]
        opened = _overlap(held)
        if opened >= _CUT_OFF:
            held = held[:-opened].rstrip()
        return [ContentDelta(held)] if held and (held.strip() or self._index < 0) else []

    def _take(self, found: list[ContentDelta | CallDelta]) -> bool:
        """Take one thing from what is held; whether there may be another."""
        if not self._inside:
            return self._take_content(found)
        if self._streamed:
            return self._take_arguments(found)
        head = _HEAD.match(self._held)
        # Whether blanks go on behind the head is known with what follows them.
        if head and head.end() < len(self._held) and self._held[head.end()] in '{["':
            name = _loaded(head[1])
            if isinstance(name, str):
                self._begin(found, name)
                self._held = self._held[head.end() :]
                return True
        end = self._held.find(CLOSE)
        if end < 0:
            return False
        body, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        self._inside = False
        call = _read_call(body)
        if call is None:
            found.append(ContentDelta(OPEN + body + CLOSE))
        else:
            self._index += 1
            found.append(CallDelta(self._index, call.name, call.arguments))
        return True

    def _begin(self, found: list[ContentDelta | CallDelta], name: str) -> None:
        self._index += 1
        self._streamed, self._value = True, _Value()
        found.append(CallDelta(self._index, name))

    def _take_content(self, found: list[ContentDelta | CallDelta]) -> bool:
        start = self._held.find(OPEN)
        if start >= 0:
            content, self._held = self._held[:start].rstrip(), self._held[start + len(OPEN) :]
            self._inside, self._streamed = True, False
        else:
            kept = len(self._held) - _overlap(self._held)
            certain = self._held[:kept].rstrip()
            content, self._held = certain, self._held[len(certain) :]
        if content:
            found.append(ContentDelta(content))
        return start >= 0

    def _take_arguments(self, found: list[ContentDelta | CallDelta]) -> bool:
        """The arguments as far as they are there, and what stands behind them to the end of the call."""
        if not self._value.over:
            length = self._value.feed(self._held)
            if length:
                found.append(CallDelta(self._index, arguments=self._held[:length]))
            self._held = self._held[length:]
        if not self._value.over:
            return False
        end = self._held.find(CLOSE)
        if end < 0:
            return False
        self._held = self._held[end + len(CLOSE) :]
        self._inside = self._streamed = False
        return True


class _Value:
    """Finds where a JSON object, list or string ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._string = self._escaped = False
        self.over = False

    def feed(self, text: str) -> int:
        """How much of more text belongs to the value."""
        for place, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped = letter == "\\"
                self._string = letter != '"'
            elif letter == '"':
                self._string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
            if not self._depth and not self._string:
                self.over = True
                return place + 1
        return len(text)


def parse_tool_calls(text: str) -> tuple[str, list[WrittenCall]]:
    """The text beside the calls, and the calls."""
    stream = ToolStream()
    content, names, arguments = "", [], []
    for delta in [*stream.feed(text), *stream.finish()]:
        if isinstance(delta, ContentDelta):
            content += delta.text
        else:
            if delta.name is not None:
                names.append(delta.name)
                arguments.append("")
            arguments[-1] += delta.arguments
    return content, [WrittenCall(name, told) for name, told in zip(names, arguments, strict=True)]


def _read_call(body: str) -> WrittenCall | None:
    told = _loaded(body)
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        return None
    arguments = told.get("arguments", told.get("parameters", {}))
    return WrittenCall(told["name"], json.dumps(arguments, ensure_ascii=False))


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _overlap(text: str) -> int:
    """How many letters at the end of `text` are the beginning of `<tool_call>`."""
    return next((length for length in range(len(OPEN) - 1, 0, -1) if text.endswith(OPEN[:length])), 0)
