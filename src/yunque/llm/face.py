"""One face for every model: what an application may ask of a model, wherever that model runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.message import Message as Message
from yunque.generate.message import ToolCall as ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]
Prompt = str | Sequence[int]
"""A text to go on with, or its tokens."""


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written.

    Of those read, `cached_tokens` came out of a provider's cache, and `cache_write_tokens` were put into it.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True)
class Cost:
    """US dollars by a price list, and the date of that list; what runs here costs nothing, and has none."""

    usd: float
    prices_of: str = ""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.usd + other.usd, self.prices_of or other.prices_of)


@dataclass(frozen=True)
class Completion:
    """What a model answered; `model` is the name of the one that did.

    `cost` is None where no price is known; `note` says what a user should know of how it came about (another model
    answered because this one could not).
    """

    text: str
    model: str
    finish_reason: FinishReason
    usage: Usage
    tool_calls: tuple[ToolCall, ...] = ()
    cost: Cost | None = None
    note: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """A token, with the text or the name that it is shown by and the bytes that it writes (none, if it is special).

    `logprob` is in nats; None for the first token of a prompt. `likeliest` are the best in its place, best first.
    """

    text: str
    data: bytes
    logprob: float | None
    likeliest: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class ToolCallPart:
    """A piece of the call with this number, from 0 up; its first piece carries `id` and `name`."""

    number: int
    arguments: str
    id: str | None = None
    name: str | None = None


def joined_calls(parts: Iterable[ToolCallPart]) -> tuple[ToolCall, ...]:
    """The calls that these pieces make up."""
    heads: dict[int, ToolCallPart] = {}
    arguments: dict[int, list[str]] = {}
    for part in parts:
        heads.setdefault(part.number, part)
        arguments.setdefault(part.number, []).append(part.arguments)
    return tuple(
        ToolCall(head.id or "", head.name or "", "".join(arguments[number])) for number, head in heads.items()
    )


# Not frozen: one is made for each token, and a frozen one takes three times as long to make.
@dataclass(slots=True)
class Chunk:
    """A piece of a streamed answer; the last one carries `finish_reason`, `usage` and `model` (the name of the one
    that answered), `cost` and `note` as a Completion has them, and may have no text.

    With `restart` all that was streamed before is void: the model broke off, and the answer begins again.

    Of several answers to one request, `index` says which this belongs to: each has its own `finish_reason`, and the
    last chunk of all the `usage`. `tokens` are those that the piece came from, if log-probabilities were asked for;
    `echoed` is a piece of the prompt.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    model: str | None = None
    index: int = 0
    echoed: bool = False
    tokens: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallPart, ...] = ()
    cost: Cost | None = None
    note: str = ""
    restart: bool = False


@dataclass(frozen=True)
class Embeddings:
    """A vector of length 1 for each text, how many tokens were read for them, and what that cost."""

    vectors: list[list[float]]
    prompt_tokens: int
    cost: Cost | None = None


class LanguageModel(Protocol):
    """A model that can be asked. `local` is True when nothing leaves this machine.

    The tools that it may call are in the configuration's `format`.
    """

    name: str
    local: bool

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        ...

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        ...

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        ...

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        ...


class EmbeddingModel(Protocol):
    """A model that gives texts vectors, by which they can be compared."""

    name: str

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text; raises ContextOverflow."""
        ...


class ScoringModel(Protocol):
    """A model that tells how likely answers are to it."""

    name: str

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer to a conversation, with its end; raises ContextOverflow."""
        ...


class ModelUnavailable(Exception):
    """A model could not answer (unreachable, refused, broken reply); a router may try the next one.

    `again` says that the same model may answer when it is asked again, `after` how many seconds it asks to be left
    alone first.
    """

    def __init__(self, message: str, again: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.after = after


class ContextOverflow(UserError):
    """A prompt and the answer asked for are longer together than a model's context; `room` tokens would still fit."""

    def __init__(self, message: str, room: int) -> None:
        super().__init__(message)
        self.room = room
