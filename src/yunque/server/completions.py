"""`/v1/completions`: a model goes on with one or many texts, or only scores them."""

import secrets
import time
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from yunque.llm import Chunk, FinishReason, Prompt, TokenLogprob, Usage
from yunque.server.errors import ApiError
from yunque.server.parsing import refuse
from yunque.server.requests import GenerationRequest, TokenId, only
from yunque.server.said import UsageBody, extra_of, gather, logprob, usage_body
from yunque.server.sending import event
from yunque.server.served import Settings, Target

_DEFAULT_TOKENS = 16  # OpenAI's
_MOST_TEXTS = 2048
# More of one request would keep others from the model.
_MOST_AT_ONCE = 16

# Of a long list that is wrong all over, one place is enough.
_Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_Texts = Annotated[list[str], Field(min_length=1, max_length=_MOST_TEXTS, fail_fast=True)]
_ManyIds = Annotated[list[_Ids], Field(min_length=1, max_length=_MOST_TEXTS, fail_fast=True)]
Prompts = str | _Ids | _Texts | _ManyIds
"""A text, the tokens of one, or a list of one of these."""


def as_list(prompts: Prompts) -> list[Prompt]:
    """All the texts, one or many."""
    if isinstance(prompts, str):
        return [prompts]
    first = prompts[0]
    return [prompts] if isinstance(first, int) else list(prompts)  # type: ignore[list-item, arg-type]


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions. A prompt is a text or its tokens; of several each gets `n` answers."""

    prompt: Prompts
    best_of: int | None = Field(default=None, ge=1, le=128)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: only("") = None  # type: ignore[valid-type]

    def prompts(self) -> list[Prompt]:
        """All the prompts."""
        return as_list(self.prompt)

    def settings(self) -> Settings:
        """The settings of the generation."""
        if self.stream and (self.best_of or 0) > self.texts:
            refuse("best_of: the best are known at the end only, so they cannot be streamed", "best_of")
        candidates = max(self.best_of or 1, self.texts)
        if len(self.prompts()) * candidates > _MOST_TEXTS:
            refuse(f"prompt: at most {_MOST_TEXTS} texts are written for one request", "prompt")
        more = {
            "best_of": self.best_of,
            "echo": bool(self.echo),
            "logprobs": self.logprobs,
            "format": self.format(),
        }
        return self.chosen(self.max_tokens, _DEFAULT_TOKENS, **more)


class LegacyLogprobs(TypedDict):
    """A list for each fact about the tokens of a text, in their order."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One text; in a stream a piece of it."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionBody(TypedDict):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[UsageBody | None]
    yunque: NotRequired[dict[str, Any]]


def answered(target: Target, asked: CompletionRequest, settings: Settings) -> Iterator[Chunk]:
    """The answers to all prompts as one stream; those of prompt p have the indices from p * n up."""
    prompts = asked.prompts()
    if len(prompts) == 1:
        return target.complete(prompts[0], settings)
    return _side_by_side([target.prepare(prompt, settings) for prompt in prompts], asked.texts)


def _side_by_side(streams: Sequence[Callable[[], Iterator[Chunk]]], texts: int) -> Generator[Chunk]:
    """A piece of each stream in turn, until the last one ends; the usage of all is on the very last piece.

    Another is begun where one has ended.
    """
    usage = Usage(0, 0)
    waiting = deque(enumerate(streams))
    under_way = dict[int, Iterator[Chunk]]()
    with ExitStack() as stack:
        stack.callback(_close_all, under_way)
        while waiting or under_way:
            while waiting and len(under_way) < _MOST_AT_ONCE:
                number, begin = waiting.popleft()
                under_way[number] = begin()
            for number, stream in list(under_way.items()):
                piece = next(stream, None)
                if piece is None:
                    del under_way[number]
                    continue
                if piece.usage:
                    usage = usage + piece.usage
                    next(stream, None)  # it ends itself
                    del under_way[number]
                told = usage if piece.usage and not under_way and not waiting else None
                yield replace(piece, index=number * texts + piece.index, usage=told)


def _close_all(streams: Mapping[int, Iterator[Chunk]]) -> None:
    with ExitStack() as stack:
        for stream in streams.values():
            if isinstance(stream, Generator):
                stack.callback(stream.close)


class CompletionShape:
    """Writes an answer of /v1/completions."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked
        self._texts = len(asked.prompts()) * asked.texts
        self._id = "cmpl-" + secrets.token_hex(12)
        self._created = int(time.time())
        self._offsets = [_Offsets() for _ in range(self._texts)]
        self._usage: Usage | None = None

    def whole(self, pieces: Iterable[Chunk]) -> Mapping[str, object]:
        """See `Shape`."""
        told = gather(pieces, self._texts)
        choices = [
            self._choice(index, said.text, said.tokens, said.finish_reason)
            for index, said in enumerate(told.said)
        ]
        body = self._body(choices)
        body["usage"] = usage_body(told.usage)
        return _with_extra(body, told.extra)

    def begin(self) -> Iterable[bytes]:
        """See `Shape`."""
        return ()

    def piece(self, piece: Chunk) -> Iterable[bytes]:
        """See `Shape`."""
        self._usage = piece.usage or self._usage
        if piece.text or piece.tokens or piece.finish_reason:
            body = self._body([self._choice(piece.index, piece.text, piece.tokens, piece.finish_reason)])
            if self._asked.include_usage:
                body["usage"] = None
            yield event(_with_extra(body, extra_of(piece)))

    def end(self) -> Iterable[bytes]:
        """See `Shape`."""
        if self._asked.include_usage:
            body = self._body([])
            body["usage"] = usage_body(self._usage)
            yield event(body)
        yield b"data: [DONE]\n\n"

    def broken(self, error: ApiError) -> Iterable[bytes]:
        """See `Shape`."""
        return (event(error.body()),)

    def _body(self, choices: list[CompletionChoice]) -> CompletionBody:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, tokens: Sequence[TokenLogprob], reason: FinishReason | None
    ) -> CompletionChoice:
        told = self._legacy(index, tokens) if self._asked.logprobs is not None else None
        assert reason != "tool_calls"
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}

    def _legacy(self, index: int, tokens: Sequence[TokenLogprob]) -> LegacyLogprobs:
        offsets = self._offsets[index]
        return {
            "tokens": [_shown(token) for token in tokens],
            "token_logprobs": [logprob(token) for token in tokens],
            "top_logprobs": [_top(token) for token in tokens],
            "text_offset": [offsets.of(token) for token in tokens],
        }


class _Offsets:
    """Where each token begins in the text; a letter in several tokens begins with the first of them."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")
        self._length = 0

    def of(self, token: TokenLogprob) -> int:
        offset = self._length
        self._length += len(self._decoder.decode(token.data))
        return offset


def _shown(token: TokenLogprob) -> str:
    """A token as OpenAI names it here: its text, and one that is no whole letters by its bytes."""
    try:
        return token.data.decode("utf-8") if token.data else token.text
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the one that stands there if it is none of them."""
    if token.logprob is None:
        return None
    told: dict[str, float] = {}
    for each in (*token.likeliest, token):
        told.setdefault(_shown(each), logprob(each) or 0.0)
    return told


def _with_extra(body: CompletionBody, extra: dict[str, Any] | None) -> CompletionBody:
    return body if extra is None else {**body, "yunque": extra}
