"""Answers in the shapes of OpenAI's completions and chat completions, whole or as a stream of events.

An app's answer carries one field that OpenAI's has not, `yunque`: its citations and its guard's verdicts. A whole
response has it at the top; a stream has it on the chunk that carries `finish_reason`. Other clients pass it over.
"""

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from yunque.llm import FinishReason, Usage
from yunque.server.errors import ApiError, internal_error
from yunque.server.served import Piece


class Shape:
    """How one answer is written down: the ids and names that all its parts share."""

    def __init__(self, chat: bool, model: str, include_usage: bool) -> None:
        self._chat = chat
        self._include_usage = include_usage
        prefix, self._object = ("chatcmpl-", "chat.completion") if chat else ("cmpl-", "text_completion")
        self._head = {
            "id": prefix + secrets.token_hex(12),
            "object": self._object,
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, pieces: AsyncGenerator[Piece]) -> dict[str, Any]:
        """The response that is not streamed."""
        texts: list[str] = []
        last = Piece("")
        async with aclosing(pieces):
            async for last in pieces:
                texts.append(last.text)
        text = "".join(texts)
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._chat
            else {"text": text}
        )
        body = {**self._head, "choices": [_choice(said, last.finish_reason)], "usage": _usage(last.usage)}
        return body if last.extra is None else {**body, "yunque": last.extra}

    async def events(self, first: Piece | None, rest: AsyncIterator[Piece]) -> AsyncGenerator[bytes]:
        """The response as server-sent events; `first` was awaited before, so that an error could be a status.

        An error on the way is an event of its own, `{"error": {...}}`, and the end of the stream.
        """
        if self._chat:
            yield self._event({"delta": {"role": "assistant", "content": "", "refusal": None}})
        usage: Usage | None = None
        try:
            piece = first
            while piece is not None:
                usage = piece.usage or usage
                if piece.text:
                    yield self._event(
                        {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
                    )
                if piece.finish_reason:
                    said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
                    yield self._event(said, piece.finish_reason, piece.extra)
                piece = await anext(rest, None)
        except ApiError as error:
            yield _data(error.body())
            return
        except Exception:
            yield _data(internal_error().body())
            raise
        if self._include_usage:
            yield _data({**self._part(), "choices": [], "usage": _usage(usage)})
        yield b"data: [DONE]\n\n"

    def _part(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"} if self._chat else self._head

    def _event(
        self,
        said: dict[str, Any],
        finish_reason: FinishReason | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        part = {**self._part(), "choices": [_choice(said, finish_reason)]}
        if self._include_usage:
            part["usage"] = None
        if extra is not None:
            part["yunque"] = extra
        return _data(part)


def _choice(said: dict[str, Any], finish_reason: FinishReason | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
