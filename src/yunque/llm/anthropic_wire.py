"""Anthropic's Messages API. https://platform.claude.com/docs/en/api/messages (read 2026-11)."""

import json
import re
from collections.abc import Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.anthropic_form import ANTHROPIC, FORM_TOOL, asked_conversation, asked_form
from yunque.llm.face import FinishReason, Message, Prompt, ToolCallPart, Usage
from yunque.llm.openai_wire import refused_setting
from yunque.llm.wire import (
    BROKEN,
    BadReply,
    Problem,
    Remembered,
    Request,
    Said,
    as_prompt_text,
    asked_settings,
    count,
    told_tokens,
)

_VERSION = "2023-06-01"
_NO_MESSAGE = "answered JSON that is not a message"
_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_AGAIN = ("rate_limit_error", "api_error", "overloaded_error", "timeout_error")


class AnthropicWire:
    """The API for one model."""

    def __init__(self, model: str, whose: str) -> None:
        self.model = model
        self.left_out: set[str] = set()
        self._whose = whose
        self._thoughts = Remembered()

    def headers(self, key: str) -> dict[str, str]:
        """The key, and the version of the API."""
        return {"anthropic-version": _VERSION, **({"x-api-key": key} if key else {})}

    def chat(self, messages: Sequence[Message], config: GenerationConfig, stream: bool) -> Request:
        """A conversation to be answered."""
        if config.temperature > 1:
            raise UserError(f"temperature {config.temperature:g}: {self._whose} takes from 0 to 1")
        thoughts = Remembered() if "thinking" in self.left_out else self._thoughts
        system, turns = asked_conversation(messages, thoughts)
        form, wrapped, as_tool = asked_form(config.format, self.left_out, self._whose)
        if as_tool and "tool_choice" in self.left_out:
            system = f"{system}\n\nAnswer only by calling the tool `{FORM_TOOL}`.".strip()
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": config.max_new_tokens,
            **asked_settings(config, ANTHROPIC, self._whose, self.left_out),
            **({"system": system} if system else {}),
            **form,
            "messages": turns,
        }
        return Request("/messages", body | ({"stream": True} if stream else {}), wrapped)

    def complete(self, prompt: Prompt, config: GenerationConfig, stream: bool) -> Request:
        """A text to go on with: the API has conversations only, so it is the message of a user."""
        return self.chat([Message("user", as_prompt_text(prompt, self._whose))], config, stream)

    def answer(self, body: dict[str, Any]) -> Said:
        """A whole answer, read as the stream that would have told it."""
        reader = self.reader()
        try:
            blocks = body["content"]
            said = reader.read({"type": "message_start", "message": body})
            for index, block in enumerate(blocks):
                _add(
                    said, reader.read({"type": "content_block_start", "index": index, "content_block": block})
                )
            stop = {"stop_reason": body.get("stop_reason"), "stop_details": body.get("stop_details")}
            _add(said, reader.read({"type": "message_delta", "delta": stop}))
            reader.read({"type": "message_stop"})
        except (*BROKEN, BadReply):
            raise BadReply(_NO_MESSAGE) from None
        said.usage = reader.usage()
        said.reason = said.reason or ("tool_calls" if said.calls else "stop")
        return said

    def reader(self) -> "AnthropicReader":
        """One for a streamed answer."""
        return AnthropicReader(self._thoughts)

    def problem(self, status: int, body: object) -> Problem:
        """`{"type": "error", "error": {"type", "message"}}`."""
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            return Problem(error if isinstance(error, str) else "")
        message, kind = str(error.get("message") or ""), str(error.get("type") or "")
        overflow = bool(re.search(r"prompt is too long|exceed context limit|context window", message))
        most = re.search(r"(\d+) \+ \d+ > (\d+)", message)
        room = max(0, int(most[2]) - int(most[1])) if most else 0
        setting = "" if overflow or status != 400 else self._setting(message)
        return Problem(message, kind, overflow, room, setting, kind in _AGAIN)

    def _setting(self, message: str) -> str:
        """What to ask for otherwise next time: this model's own words say that it does not take it."""
        if re.search(r"output_config|output_format|structured outputs?", message):
            return "output_config"
        if "tool_choice" in message:
            return "tool_choice"
        if "thinking" in message and "block" in message:
            return "thinking"
        return refused_setting(message)


class AnthropicReader:
    """Reads the events of a streamed message."""

    def __init__(self, thoughts: Remembered) -> None:
        self.finished = False
        self.ended = False
        self._thoughts = thoughts
        self._thought: list[dict[str, Any]] = []
        self._kinds: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._counts: dict[str, int | None] = {}

    def read(self, event: dict[str, Any]) -> Said:
        """One event."""
        try:
            match event.get("type"):
                case "content_block_delta":
                    return self._delta(event["index"], event["delta"])
                case "content_block_start":
                    return self._start(event["index"], event["content_block"])
                case "message_start":
                    self._count(event["message"].get("usage"))
                case "message_delta":
                    self._count(event.get("usage"))
                    return self._stopped(event["delta"])
                case "message_stop":
                    self.ended = True
                case str():
                    pass  # ping, the end of a block, and what is yet to be invented
                case _:
                    raise TypeError("no event")
        except BROKEN:
            raise BadReply("streamed JSON that is not an event of a message") from None
        return Said()

    def usage(self) -> Usage | None:
        """The tokens: the API counts those of its cache apart from the prompt's others."""
        if "input_tokens" not in self._counts:
            return None
        counts = [self._counts.get(name, 0) for name in _COUNTS]
        read, written, cached, stored = counts
        if read is None or written is None or cached is None or stored is None:
            return None
        return told_tokens(read + cached + stored, written, cached, stored)

    def _count(self, usage: Any) -> None:
        """Later counts replace earlier ones: they are totals."""
        if isinstance(usage, dict):
            self._counts |= {name: count(usage[name]) for name in _COUNTS if usage.get(name) is not None}

    def _start(self, index: int, block: dict[str, Any]) -> Said:
        kind = block["type"]
        self._kinds[index] = kind
        if kind == "text":
            return Said(_text(block.get("text", "")))
        if kind in ("thinking", "redacted_thinking"):
            self._thought.append(dict(block))
        if kind != "tool_use":
            return Said()
        # A form that was asked for as a tool is the answer, not a call.
        given = block.get("input") or {}
        arguments = json.dumps(given, ensure_ascii=False) if given else ""
        if block["name"] == FORM_TOOL:
            self._kinds[index] = "form"
            return Said(arguments)
        number = self._numbers[index] = len(self._numbers)
        if self._thought and number == 0:
            self._thoughts.keep(block["id"], [*self._thought])
        return Said(calls=(ToolCallPart(number, arguments, _text(block["id"]), _text(block["name"])),))

    def _delta(self, index: int, delta: dict[str, Any]) -> Said:
        match delta["type"]:
            case "text_delta":
                return Said(_text(delta["text"]))
            case "input_json_delta":
                piece = _text(delta["partial_json"])
                if self._kinds.get(index) == "form":
                    return Said(piece)
                return Said(calls=(ToolCallPart(self._numbers[index], piece),)) if piece else Said()
            case "thinking_delta":
                self._thought[-1]["thinking"] = self._thought[-1].get("thinking", "") + delta["thinking"]
            case "signature_delta":
                self._thought[-1]["signature"] = delta["signature"]
        return Said()

    def _stopped(self, delta: dict[str, Any]) -> Said:
        reason = delta.get("stop_reason")
        self.finished = self.finished or reason is not None
        if reason == "refusal":
            details = delta.get("stop_details")
            category = details.get("category") if isinstance(details, dict) else None
            return Said(reason="stop", declined="it refused" + (f" ({category})" if category else ""))
        if reason is None:
            return Said()
        told = _REASONS.get(reason, "stop")
        # The call of the form's tool is the end of an answer.
        return Said(reason="stop" if told == "tool_calls" and not self._numbers else told)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _add(said: Said, more: Said) -> None:
    said.text += more.text
    said.calls += more.calls
    said.reason = more.reason or said.reason
    said.declined = more.declined or said.declined
