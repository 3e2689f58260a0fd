"""What every remote API has in common: a request and an answer as values, with no socket in sight.

A *wire* knows one API: it writes a request and reads what comes back. `transport` sends it, `remote` joins both.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import (
    Cost,
    FinishReason,
    Message,
    ModelUnavailable,
    Prompt,
    ToolCallPart,
    Usage,
)


@dataclass(frozen=True)
class Request:
    """What is sent: a path after the base URL, and a JSON body.

    `wrapped` says that the answer comes as `{"answer": ...}`, because the API only makes objects.
    """

    path: str
    body: dict[str, Any]
    wrapped: bool = False


@dataclass(slots=True)
class Said:
    """A piece of an answer, or all of it; `declined` is why the provider did not let its model answer."""

    text: str = ""
    calls: tuple[ToolCallPart, ...] = ()
    reason: FinishReason | None = None
    usage: Usage | None = None
    declined: str = ""


@dataclass(frozen=True)
class Problem:
    """What an API says of a request that it did not fulfil, in its own words.

    `kind` is its name for it, `overflow` that the prompt is too long, `room` how many tokens would fit (0: not told),
    `setting` one that this model does not take, `again` that it may go better later, `after` how many seconds later.
    """

    message: str = ""
    kind: str = ""
    overflow: bool = False
    room: int = 0
    setting: str = ""
    again: bool = False
    after: float | None = None


class BadReply(Exception):
    """An answer that is none; the message goes on from the model's name ("answered ...")."""


BROKEN = (LookupError, TypeError, AttributeError, ValueError)
"""What comes of reading JSON of another shape than was promised."""


class Declined(ModelUnavailable):
    """The provider would not let its model answer (a safety filter, a refusal); it is billed all the same."""

    def __init__(self, message: str, usage: Usage | None = None, cost: Cost | None = None) -> None:
        super().__init__(message)
        self.usage = usage
        self.cost = cost


class Unanswered(ModelUnavailable):
    """A request that was sent, and got no answer that is one: it may be billed all the same.

    `usage` and `cost` are what was told, or can be estimated, of what it used; None where nothing was told.
    """

    sent = True
    usage: Usage | None = None
    cost: Cost | None = None


class Reader(Protocol):
    """Reads the events of one streamed answer, in their order."""

    finished: bool
    """Whether the reason of the end was told: what may still come are figures."""
    ended: bool
    """Whether the API said that this was all; what comes later is not read."""

    def read(self, event: dict[str, Any]) -> Said:
        """What an event adds; raises BadReply."""
        ...

    def usage(self) -> Usage | None:
        """The tokens of the answer, as far as they were told."""
        ...


class Wire(Protocol):
    """One API. It keeps what a model told that must be sent back with later turns, and no other state.

    `left_out` are settings that this model was found not to take; they are not sent any more.
    """

    left_out: set[str]

    def headers(self, key: str) -> dict[str, str]:
        """How this API is told who asks."""
        ...

    def chat(self, messages: Sequence[Message], config: GenerationConfig, stream: bool) -> Request:
        """A conversation to be answered; raises UserError for settings that the API does not have."""
        ...

    def complete(self, prompt: Prompt, config: GenerationConfig, stream: bool) -> Request:
        """A text to go on with; raises UserError where the API has no such thing."""
        ...

    def answer(self, body: dict[str, Any]) -> Said:
        """A whole answer; raises BadReply."""
        ...

    def reader(self) -> Reader:
        """One for a streamed answer."""
        ...

    def problem(self, status: int, body: object) -> Problem:
        """What a reply that is not a success, or an event of an error, means."""
        ...


class Remembered:
    """What a provider wants back with a later turn, by the id of the call that it came with; the oldest go first.

    Thinking models sign what they thought before they called a tool, and some refuse the next turn without it.
    """

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def keep(self, call_id: str, what: Any) -> None:
        """Remember it."""
        with self._lock:
            self._kept[call_id] = what
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def find(self, call_id: str) -> Any | None:
        """What was kept, or None."""
        return self._kept.get(call_id)


Settings = Mapping[str, str | None]
"""A field of GenerationConfig -> where an API has it ("a.b"); None: the API has no such thing. "" is not sent."""

_DEFAULTS = {
    name: info.get_default(call_default_factory=True) for name, info in GenerationConfig.model_fields.items()
}


def asked_settings(
    config: GenerationConfig, table: Settings, whose: str, left_out: set[str]
) -> dict[str, Any]:
    """The settings that are not at their defaults, where the API has them, without `format` and the length.

    Raises UserError for one that the API does not have.
    """
    asked: dict[str, Any] = {}
    refused: list[str] = []
    for name, default in _DEFAULTS.items():
        value = getattr(config, name)
        # The temperature is said always: ours is 0 where theirs is 1.
        if name in left_out or (value == default and name != "temperature"):
            continue
        place = table[name]
        if place is None:
            refused.append(name)
        elif place:
            put(asked, place, _plain(name, value))
    if refused:
        raise UserError(
            f"{whose} cannot be asked for {', '.join(refused)}: leave it out, or ask a model of the workspace"
        )
    return asked


def _plain(name: str, value: Any) -> Any:
    if name == "logit_bias":
        return {str(token): bias for token, bias in value.items()}
    return list(value) if isinstance(value, tuple) else value


def put(body: dict[str, Any], place: str, value: Any) -> None:
    """Set `a.b` of a body."""
    *outer, last = place.split(".")
    for name in outer:
        body = body.setdefault(name, {})
    body[last] = value


_MOST_TOKENS = 10_000_000
"""No model reads or writes more in one call."""
ADDED_BY_A_PROVIDER = 4096
"""Tokens that a provider may add to a prompt: how to call tools, words of its own."""
ADDED_BY_A_SERVER = 131_072
"""The same of a server that may be an application: the documents that it found, a conversation that it kept."""
_THOUGHT = 100_000
"""Tokens that a model may think with beyond what it was asked for: not every server counts them against the limit."""


def count(value: object) -> int | None:
    """A number of tokens that an API told: 0 where it is left out, None for what is no number of tokens."""
    if value is None:
        return 0
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def told_tokens(
    prompt: object, written: object, cached: object = None, stored: object = None
) -> Usage | None:
    """The usage that these figures are; None where one of them is no number of tokens."""
    read, wrote, found, kept = count(prompt), count(written), count(cached), count(stored)
    if read is None or wrote is None:
        return None
    # Those of the cache are part of the prompt's, and only say what it cost.
    found = min(read, found or 0)
    return Usage(read, wrote, found, min(read - found, kept or 0))


def is_possible(usage: Usage, request: Request, text: str, most: int, added: int) -> bool:
    """Whether an answer of this text to this request, which was to have at most `most` tokens, can have used that.

    A token has a byte at least, and what was answered has a token at least; `added` may have come to the prompt.
    """
    written = len(text.encode(errors="replace"))
    if (written and not usage.completion_tokens) or usage.completion_tokens > max(most, written) + _THOUGHT:
        return False
    if usage.prompt_tokens > added:
        import json

        sent = len(json.dumps(request.body, ensure_ascii=False).encode(errors="replace"))
        return usage.prompt_tokens <= sent + added
    return usage.prompt_tokens > 0


def as_prompt_text(prompt: Prompt, whose: str) -> str:
    """A prompt that is a text; raises UserError for tokens."""
    if not isinstance(prompt, str):
        raise UserError(f"{whose} reads texts, not tokens: they are another tokenizer's")
    return prompt


@dataclass
class Wrapping:
    """Takes the answer out of `{"answer": ...}`, once it is whole."""

    pieces: list[str] = field(default_factory=list)

    def unwrapped(self) -> str:
        """The answer; as it stands where it is not wrapped after all."""
        import json

        text = "".join(self.pieces)
        try:
            inner = json.loads(text)["answer"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return text
        return inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
