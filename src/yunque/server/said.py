"""What is common to the answers of all endpoints: pieces put together, tokens and usage in OpenAI's shapes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

from yunque.llm import Chunk, FinishReason, TokenLogprob, ToolCall, Usage
from yunque.llm.face import joined_calls
from yunque.server.served import Piece

# JSON has no minus infinity; this is what OpenAI writes for it.
_LEAST = -9999.0


class UsageBody(TypedDict):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LikelyToken(TypedDict):
    """A token that might have stood in a place."""

    token: str
    logprob: float
    bytes: list[int] | None


class ScoredToken(LikelyToken):
    """A token of an answer, with the likeliest in its place."""

    top_logprobs: list[LikelyToken]


@dataclass
class Said:
    """One answer, whole. `echoed` is the part of it that repeats the prompt."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    pieces: list[Chunk] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """Its text."""
        return "".join(self.texts)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that it makes."""
        return joined_calls(part for piece in self.pieces for part in piece.tool_calls)


@dataclass
class Told:
    """All the answers to a request."""

    said: list[Said]
    usage: Usage | None = None
    extra: dict[str, Any] | None = None


def gather(pieces: Iterable[Chunk], texts: int) -> Told:
    """The pieces of so many texts put together."""
    told = Told([Said() for _ in range(texts)])
    for piece in pieces:
        said = told.said[piece.index]
        said.texts.append(piece.text)
        said.tokens += piece.tokens
        if piece.tool_calls:
            said.pieces.append(piece)
        said.finish_reason = piece.finish_reason or said.finish_reason
        told.usage = piece.usage or told.usage
        told.extra = extra_of(piece) or told.extra
    return told


def extra_of(piece: Chunk) -> dict[str, Any] | None:
    """What an app adds to its answer."""
    return piece.extra if isinstance(piece, Piece) else None


def usage_body(usage: Usage | None) -> UsageBody | None:
    """Usage as completions and chat completions tell it."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def logprob(token: TokenLogprob) -> float | None:
    """The log-probability as JSON can tell it."""
    return None if token.logprob is None else max(token.logprob, _LEAST)


def scored_tokens(tokens: Iterable[TokenLogprob]) -> list[ScoredToken]:
    """The tokens that write text, in the shape of chat completions: joined, their bytes are the text.

    The token that ends an answer writes none, and is left out.
    """
    return [
        {**_likely(token), "top_logprobs": [_likely(each) for each in token.likeliest]}
        for token in tokens
        if token.data
    ]


def _likely(token: TokenLogprob) -> LikelyToken:
    return {
        "token": token.text,
        "logprob": logprob(token) or 0.0,
        "bytes": list(token.data) if token.data else None,
    }
