"""Gemini's generateContent and its embeddings. https://ai.google.dev/api/generate-content (read 2026-11)."""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, Format, GenerationConfig, JsonFormat, RegexFormat, ToolFormat
from yunque.llm.anthropic_form import as_object
from yunque.llm.face import FinishReason, Message, Prompt, ToolCallPart, Usage
from yunque.llm.openai_form import accepted_id, wrapping
from yunque.llm.openai_wire import refused_setting
from yunque.llm.wire import (
    BROKEN,
    BadReply,
    Problem,
    Remembered,
    Request,
    Said,
    Settings,
    as_prompt_text,
    asked_settings,
    count,
    told_tokens,
)

GEMINI: Settings = {
    "max_new_tokens": "",
    "format": "",
    "truncate": "",
    "temperature": "generationConfig.temperature",
    "top_p": "generationConfig.topP",
    "top_k": "generationConfig.topK",
    "stop": "generationConfig.stopSequences",
    "seed": "generationConfig.seed",
    "presence_penalty": "generationConfig.presencePenalty",
    "frequency_penalty": "generationConfig.frequencyPenalty",
    "min_p": None,
    "typical_p": None,
    "repetition_penalty": None,
    "logit_bias": None,
    "stop_ids": None,
    "ignore_end": None,
    "n": None,
    "best_of": None,
    "logprobs": None,
    "echo": None,
    "num_beams": None,
    "length_penalty": None,
}
# What the API says should stand in a call whose signature is not known (one that another model made).
_NO_SIGNATURE = "skip_thought_signature_validator"
_REASONS: dict[str, FinishReason] = {"STOP": "stop", "MAX_TOKENS": "length"}
# The model's own failure, no judgement on what was asked.
_FAILED = frozenset(
    {"OTHER", "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"}
)


class GeminiWire:
    """The API for one model."""

    def __init__(self, model: str, whose: str) -> None:
        self.model = model
        self.left_out: set[str] = set()
        self._whose = whose
        self._signatures = Remembered()

    def headers(self, key: str) -> dict[str, str]:
        """The key, in a header: in the address it would get into logs."""
        return {"x-goog-api-key": key} if key else {}

    def chat(self, messages: Sequence[Message], config: GenerationConfig, stream: bool) -> Request:
        """A conversation to be answered."""
        body: dict[str, Any] = {"contents": self._contents(messages)}
        system = [{"text": each.content} for each in messages if each.role == "system" and each.content]
        if system:
            body["systemInstruction"] = {"parts": system}
        body["generationConfig"] = {"maxOutputTokens": config.max_new_tokens}
        settings = asked_settings(config, GEMINI, self._whose, self.left_out)
        body["generationConfig"] |= settings.get("generationConfig", {})
        wrapped = _ask_form(body, config.format, self._whose)
        if not body["contents"]:
            raise UserError("a conversation with a model of Gemini needs a message of the user")
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return Request(f"/models/{self.model}:{method}", body, wrapped)

    def complete(self, prompt: Prompt, config: GenerationConfig, stream: bool) -> Request:
        """A text to go on with: the API has conversations only, so it is the message of a user."""
        return self.chat([Message("user", as_prompt_text(prompt, self._whose))], config, stream)

    def _contents(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Turns of `user` and `model`; those of one role after the other are one."""
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        contents: list[dict[str, Any]] = []
        for message in messages:
            if message.role == "system":
                continue
            role = "model" if message.role == "assistant" else "user"
            parts = self._parts(message, names)
            if contents and contents[-1]["role"] == role:
                contents[-1]["parts"] += parts
            elif parts:
                contents.append({"role": role, "parts": parts})
        return contents

    def _parts(self, message: Message, names: dict[str, str]) -> list[dict[str, Any]]:
        if message.role == "tool":
            id = message.tool_call_id or ""
            if id not in names:
                raise UserError(
                    f"the result of a tool is for the call {id!r}, which the conversation does not have"
                )
            told = {"id": accepted_id(id), "name": names[id], "response": _response(message.content)}
            return [{"functionResponse": told}]
        parts: list[dict[str, Any]] = [{"text": message.content}] if message.content else []
        for number, call in enumerate(message.tool_calls):
            args = as_object(call.arguments)
            part: dict[str, Any] = {
                "functionCall": {"id": accepted_id(call.id), "name": call.name, "args": args}
            }
            signature = self._signatures.find(call.id)
            # Of calls side by side only the first is signed.
            if signature or number == 0:
                part["thoughtSignature"] = signature or _NO_SIGNATURE
            parts.append(part)
        return parts

    def answer(self, body: dict[str, Any]) -> Said:
        """A whole answer, which is a stream of one event."""
        reader = self.reader()
        try:
            said = reader.read(body)
        except BadReply as error:
            raise BadReply(str(error).replace("streamed", "answered")) from None
        said.usage = reader.usage()
        said.reason = said.reason or "stop"
        return said

    def reader(self) -> "GeminiReader":
        """One for a streamed answer."""
        return GeminiReader(self._signatures)

    def problem(self, status: int, body: object) -> Problem:
        """`{"error": {"code", "message", "status", "details"}}`, or a list with one of them."""
        body = body[0] if isinstance(body, list) and body else body
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            return Problem(error if isinstance(error, str) else "")
        message, kind = str(error.get("message") or ""), str(error.get("status") or "")
        overflow = status == 400 and bool(re.search(r"token count.*exceeds the maximum", message))
        details = error.get("details")
        after, bad_key = None, "API key not valid" in message
        for detail in details if isinstance(details, list) else ():
            delay = detail.get("retryDelay") if isinstance(detail, dict) else None
            if isinstance(delay, str) and re.fullmatch(r"\d+(\.\d+)?s", delay):
                after = float(delay[:-1])
        setting = refused_setting(message) if status == 400 and not overflow else ""
        again = kind in ("RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
        return Problem(message, "bad_key" if bad_key else kind, overflow, 0, setting, again, after)


class GeminiReader:
    """Reads the events of a streamed answer: each is a whole GenerateContentResponse."""

    def __init__(self, signatures: Remembered) -> None:
        self.finished = False
        self.ended = False
        self._signatures = signatures
        self._calls = 0
        self._usage: Usage | None = None

    def read(self, event: dict[str, Any]) -> Said:
        """One event."""
        try:
            self._count(event.get("usageMetadata"))
            candidates = event.get("candidates")
            blocked = (event.get("promptFeedback") or {}).get("blockReason")
            if blocked and not candidates:
                return Said(reason="stop", declined=f"the prompt was blocked ({blocked})")
            if self.finished:
                return Said()  # nothing belongs to an answer that has told its end, but its usage
            if not candidates:
                if "usageMetadata" not in event and "promptFeedback" not in event:
                    raise TypeError("no candidates")
                return Said()
            # The first has no index; another is no part of the answer that was asked for.
            first = next((each for each in candidates if not each.get("index")), None)
            return self._said(first) if first is not None else Said()
        except BROKEN:
            raise BadReply("streamed JSON that is not a completion") from None

    def usage(self) -> Usage | None:
        """The tokens; what a model thought is part of what it wrote."""
        return self._usage

    def _count(self, told: Any) -> None:
        if not isinstance(told, dict) or told.get("promptTokenCount") is None:
            return
        read = [count(told.get(name)) for name in ("promptTokenCount", "toolUsePromptTokenCount")]
        wrote = [count(told.get(name)) for name in ("candidatesTokenCount", "thoughtsTokenCount")]
        if None in read or None in wrote:
            self._usage = None
            return
        sums = sum(each or 0 for each in read), sum(each or 0 for each in wrote)
        self._usage = told_tokens(*sums, told.get("cachedContentTokenCount"))

    def _said(self, candidate: dict[str, Any]) -> Said:
        said = Said()
        for part in (candidate.get("content") or {}).get("parts") or ():
            if "functionCall" in part:
                said.calls += (self._call(part),)
            elif "text" in part and not part.get("thought"):
                said.text += part["text"]
        finish = candidate.get("finishReason")
        if finish in (None, "FINISH_REASON_UNSPECIFIED"):
            return said
        self.finished = True
        if finish in _FAILED:
            raise BadReply(f"broke off in the middle of its answer ({finish})")
        said.reason = "tool_calls" if self._calls and finish == "STOP" else _REASONS.get(finish, "stop")
        if finish not in _REASONS:
            said.declined = f"it stopped the answer ({finish})"
        return said

    def _call(self, part: dict[str, Any]) -> ToolCallPart:
        call = part["functionCall"]
        id = str(call.get("id") or f"call_{secrets.token_hex(12)}")
        if signature := part.get("thoughtSignature"):
            self._signatures.keep(id, signature)
        number = self._calls
        self._calls += 1
        if not isinstance(call["name"], str):
            raise TypeError("no name")
        return ToolCallPart(number, json.dumps(call.get("args") or {}, ensure_ascii=False), id, call["name"])


def _response(content: str) -> dict[str, Any]:
    """What a tool gave, as the object that the API wants."""
    try:
        read = json.loads(content)
    except (ValueError, RecursionError):
        read = content
    return read if isinstance(read, dict) else {"result": read}


def _ask_form(body: dict[str, Any], form: Format | None, whose: str) -> bool:
    """Put the form of the answer into a request, and say whether the answer will be wrapped in an object."""
    match form:
        case None:
            return False
        case RegexFormat():
            raise UserError(
                f"{whose} cannot be asked for a pattern: ask for JSON or a choice, or a local model"
            )
        case ToolFormat():
            declared = [
                {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}
                for tool in form.tools
            ]
            body["tools"] = [{"functionDeclarations": declared}]
            if not form.parallel:
                note = {"text": "Call at most one function at a time."}
                body.setdefault("systemInstruction", {"parts": []})["parts"].append(note)
            mode = "ANY" if form.required else "AUTO"
            body["toolConfig"] = {"functionCallingConfig": {"mode": mode}}
            return False
        case ChoiceFormat(options=options):
            schema: Any = wrapping({"type": "string", "enum": list(options)})
        case JsonFormat(json_schema=schema):
            schema = wrapping({}) if schema is True else schema
    body["generationConfig"]["responseMimeType"] = "application/json"
    if schema is not None:
        body["generationConfig"]["responseJsonSchema"] = schema
    return isinstance(form, ChoiceFormat) or (isinstance(form, JsonFormat) and form.json_schema is True)
