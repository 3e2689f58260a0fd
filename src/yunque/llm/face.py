"""One face for every model: what an application may ask of a model, wherever that model runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """What a model answered; `model` is the name of the one that did."""

    text: str
    model: str
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one carries `finish_reason`, `usage` and `model` (the name of the one
    that answered), and may have no text."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    model: str | None = None


class LanguageModel(Protocol):
    """A model that can be asked. `local` is True when nothing leaves this machine."""

    name: str
    local: bool

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        ...

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        ...

    def complete(self, prompt: str, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        ...

    def stream_complete(self, prompt: str, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        ...


class ModelUnavailable(Exception):
    """A model could not answer (unreachable, refused, broken reply); a router may try the next one."""


class ContextOverflow(UserError):
    """A prompt and the answer asked for are longer together than a model's context; `room` tokens would still fit."""

    def __init__(self, message: str, room: int) -> None:
        super().__init__(message)
        self.room = room
