"""OpenAI's chat completions, completions and embeddings: the wire of OpenAI, vLLM, Ollama, llama-server and Yunque.

https://platform.openai.com/docs/api-reference (read 2026-11).
"""

import re
from collections.abc import Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm.face import FinishReason, Message, Prompt, ToolCallPart, Usage
from yunque.llm.openai_form import (
    Calls,
    Dialect,
    asked_form,
    asked_messages,
    openai_settings,
    told_usage,
)
from yunque.llm.wire import BROKEN, BadReply, Problem, Request, Said

NO_COMPLETION = "answered JSON that is not a completion"
_REASONS: dict[str, FinishReason] = {
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
}
# Not OpenAI's words, but those of servers that tell so that they gave up ("error", "model_error", "abort"...).
_FAILED = re.compile(r"error|abort|fail|cancel", re.IGNORECASE)
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
_BAD_KEYS = ("invalid_api_key", "authentication_error", "permission_error", "account_deactivated")
_WRONG_REQUESTS = ("invalid_request_error", "model_not_found", "not_found_error")
_OVERFLOWS = ("context_length_exceeded", "exceed_context_size_error")
_OVERFLOW_WORDS = re.compile(
    r"context (?:length|window|size)|prompt is too long|input tokens exceed|exceeds? the context",
    re.IGNORECASE,
)
# What a model may refuse to be told how to do, without which its answer is still an answer to the same question.
LEFT_OUT = ("top_p", "temperature", "top_k", "seed", "presence_penalty", "frequency_penalty")
_REFUSES = re.compile(
    r"unsupported|not support|deprecated|cannot both|not permitted|only the default", re.IGNORECASE
)


class OpenAIWire:
    """The API for one model; `whose` is the model's name, for what is said to a user."""

    def __init__(self, model: str, whose: str, dialect: Dialect | None = None) -> None:
        self.model = model
        self.left_out: set[str] = set()
        self._whose = whose
        self._dialect = dialect or Dialect()

    def headers(self, key: str) -> dict[str, str]:
        """A bearer token."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def chat(self, messages: Sequence[Message], config: GenerationConfig, stream: bool) -> Request:
        """A conversation to be answered."""
        # OpenAI's own newer models refuse the name that everyone else knows.
        length = "max_completion_tokens" if self._dialect.hosted else "max_tokens"
        form, wrapped = asked_form(config.format, self._dialect, self._whose)
        body = self._body({length: config.max_new_tokens}, config, stream)
        if "reasoning_effort" in self.left_out and isinstance(config.format, ToolFormat):
            body["reasoning_effort"] = "none"
        return Request("/chat/completions", {**body, **form, "messages": asked_messages(messages)}, wrapped)

    def complete(self, prompt: Prompt, config: GenerationConfig, stream: bool) -> Request:
        """A text to go on with."""
        form, wrapped = asked_form(config.format, self._dialect, self._whose)
        if form and self._dialect.hosted:
            raise UserError(f"{self._whose} can be asked for a form in a conversation only")
        body = self._body({"max_tokens": config.max_new_tokens}, config, stream)
        asked = prompt if isinstance(prompt, str) else list(prompt)
        return Request("/completions", {**body, **form, "prompt": asked}, wrapped)

    def _body(self, length: dict[str, int], config: GenerationConfig, stream: bool) -> dict[str, Any]:
        settings = openai_settings(config, self._dialect.settings, self._whose, self.left_out)
        body = {"model": self.model, **length, **settings}
        return body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})

    def answer(self, body: dict[str, Any]) -> Said:
        """A whole answer of either kind."""
        try:
            choice = _first(body["choices"]) or body["choices"][0]
            message = choice.get("message")
            text = choice["text"] if message is None else message.get("content")
            said = _said(choice, message or {}, text, Calls().told(message or {}, whole=True))
        except BROKEN:
            raise BadReply(NO_COMPLETION) from None
        said.usage = told_usage(body)
        if said.reason is None:
            said.reason = "tool_calls" if said.calls else "stop"
        return said

    def reader(self) -> "OpenAIReader":
        """One for a streamed answer."""
        return OpenAIReader()

    def problem(self, status: int, body: object) -> Problem:
        """`{"error": {"message", "type", "param", "code"}}`, and the shapes of servers that say it more shortly."""
        error = body.get("error", body) if isinstance(body, dict) else None
        if not isinstance(error, dict):
            return Problem(error if isinstance(error, str) else "")
        message = error.get("message") or error.get("detail") or ""
        message = message if isinstance(message, str) else ""
        kind = str(error.get("code") or error.get("type") or "")
        overflow = kind in _OVERFLOWS or error.get("type") in _OVERFLOWS
        overflow = overflow or (status in (400, 413, 422) and bool(_OVERFLOW_WORDS.search(message)))
        again = kind not in _NO_CREDIT
        told = {kind, error.get("type")} if isinstance(error.get("type"), str) else {kind}
        if told & {*_BAD_KEYS}:
            kind, again = "bad_key", False
        elif not status and told & {*_WRONG_REQUESTS}:
            again = False  # an error that came as an answer has no status that would say so
        setting = (
            refused_setting(message, error.get("param")) if status in (400, 422) and not overflow else ""
        )
        if not setting and error.get("param") == "reasoning_effort" and "'none'" in message:
            setting = "reasoning_effort"
        return Problem(message, kind, overflow, _room(message, error), setting, again)


class OpenAIReader:
    """Reads the chunks of a streamed completion."""

    def __init__(self) -> None:
        self.finished = False
        self.ended = False
        self._usage: Usage | None = None
        self._calls = Calls()

    def read(self, event: dict[str, Any]) -> Said:
        """One chunk."""
        if event.get("usage"):
            self._usage = told_usage(event)
        choices = event.get("choices")
        if not choices:
            if choices is None and "usage" not in event:
                raise BadReply("streamed JSON that is not a completion")
            # Figures alone, after the end, are the last thing before [DONE], which some servers do not send.
            self.ended = self.finished and self._usage is not None
            return Said()
        try:
            choice = choices[0] if len(choices) == 1 and not choices[0].get("index") else _first(choices)
            if choice is None:
                return Said()  # of another answer than the one that was asked for
            delta = choice.get("delta")
            if delta is None:
                return self._ending(_said(choice, {}, choice.get("text")))
            # The way of nearly every chunk.
            if (
                len(delta) == 1
                and type(text := delta.get("content")) is str
                and not choice.get("finish_reason")
            ):
                return Said(text)
            calls = self._calls.told(delta) if delta.get("tool_calls") else ()
            return self._ending(_said(choice, delta, delta.get("content"), calls))
        except BROKEN:
            raise BadReply("streamed JSON that is not a completion") from None

    def _ending(self, said: Said) -> Said:
        self.finished = self.finished or said.reason is not None
        return said

    def usage(self) -> Usage | None:
        """The tokens, once the chunk that tells them came."""
        return self._usage


def _first(choices: Any) -> dict[str, Any] | None:
    """The answer that was asked for, of several that a server gives all the same."""
    return next((each for each in choices if not each.get("index")), None)


def _said(
    choice: dict[str, Any], message: dict[str, Any], text: object, calls: tuple[ToolCallPart, ...] = ()
) -> Said:
    """Raises TypeError for what is no text."""
    text = "" if text is None else text
    if isinstance(text, list):  # parts of content, which some servers send
        text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
    if not isinstance(text, str):
        raise TypeError("no text")
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    if isinstance(reason, str) and _FAILED.search(reason):
        raise BadReply(f"broke off in the middle of its answer ({reason[:40]})")
    # Some servers say "" or "null" until the end.
    told = reason if isinstance(reason, str) and reason not in ("", "null") else None
    said = Said(text, calls, None if told is None else _REASONS.get(told, "stop"))
    if isinstance(refusal, str) and refusal:
        said.declined = refusal
    elif reason == "content_filter":
        said.declined = "its content filter stopped the answer"
    return said


def refused_setting(message: str, param: object = None) -> str:
    """The setting that a model says it does not take; "" where the refusal is about something else."""
    if param in LEFT_OUT and isinstance(param, str):
        return param if _REFUSES.search(message) else ""
    if _REFUSES.search(message):
        for name in LEFT_OUT:
            if re.search(rf"[`'\"]{name}[`'\"]", message):
                return name
    return ""


def _room(message: str, error: dict[str, Any]) -> int:
    """How many tokens would fit after the prompt, where the message lets that be worked out."""
    context, prompt = error.get("n_ctx"), error.get("n_prompt_tokens")
    if isinstance(context, int) and isinstance(prompt, int):
        return max(0, context - prompt)
    if fits := re.search(r"at most (\d+) tokens fit", message):
        return int(fits[1])
    most = re.search(r"context length is (?:only )?(\d+)", message)
    asked = re.search(r"\((\d+) (?:in|from) the (?:messages|prompt|input)", message)
    asked = asked or re.search(
        r"(?:resulted in|contains at least|has|passed) (\d+) (?:input )?tokens", message
    )
    return max(0, int(most[1]) - int(asked[1])) if most and asked else 0
