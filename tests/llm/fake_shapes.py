"""What a fake provider says, in the shapes that the public documentation of three APIs gives (read 2026-11).

OpenAI: platform.openai.com/docs/api-reference; Anthropic: platform.claude.com/docs/api/messages; Gemini:
ai.google.dev/api/generate-content. An answer is told whole (`whole_*`) or as the data of stream events (`stream_*`).
"""

import json
from dataclasses import dataclass, field
from typing import Any

CREATED = 1_790_000_000


@dataclass
class Answer:
    """What the fake provider's model says.

    `pieces` joined are the text; `calls` are (name, arguments as JSON). Of the `prompt` tokens, `cached` came out
    of the cache and `written` were put into it (Anthropic tells those three apart, the others do not). `thoughts` are
    tokens that a model thought with. `finish` is in OpenAI's words, with "content_filter" and "refusal".
    """

    pieces: tuple[str, ...] = ("¡Ho", "la!")
    calls: tuple[tuple[str, str], ...] = ()
    finish: str = "stop"
    prompt: int = 12
    completion: int = 5
    cached: int = 0
    written: int = 0
    thoughts: int = 0
    usage: bool = True
    refusal: str = ""
    vectors: list[list[float]] = field(default_factory=lambda: [[0.6, 0.8], [0.0, 2.0]])

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reason(self) -> str:
        return "tool_calls" if self.calls and self.finish == "stop" else self.finish


def as_event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    told = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{head}data: {told}\n\n".encode()


# OpenAI -------------------------------------------------------------------------------------------------------------


def _openai_usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt,
        "completion_tokens": answer.completion,
        "total_tokens": answer.prompt + answer.completion,
        "prompt_tokens_details": {"cached_tokens": answer.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": answer.thoughts, "audio_tokens": 0},
    }


def _openai_reason(answer: Answer) -> str:
    return "stop" if answer.reason == "refusal" else answer.reason


def _openai_call(number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def whole_openai_chat(answer: Answer, model: str) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text,
        "refusal": None,
        "annotations": [],
    }
    if answer.reason == "refusal":
        message |= {"content": None, "refusal": answer.refusal or "I cannot help with that."}
    if answer.calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [_openai_call(number, *call) for number, call in enumerate(answer.calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _openai_reason(answer)}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
    }
    return body | ({"usage": _openai_usage(answer)} if answer.usage else {})


def whole_openai_text(answer: Answer, model: str) -> dict[str, Any]:
    choice = {"text": answer.text, "index": 0, "logprobs": None, "finish_reason": _openai_reason(answer)}
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
    }
    return body | ({"usage": _openai_usage(answer)} if answer.usage else {})


def echoed_openai_text(prompt: str, model: str) -> dict[str, Any]:
    """A prompt that is only scored: a token for each character, the n-th with log-probability -(n % 7) / 4."""
    tokens = list(prompt)
    logprobs = {
        "tokens": tokens,
        "token_logprobs": [None, *(-(n % 7) / 4 for n in range(1, len(tokens)))][: len(tokens)],
        "top_logprobs": None,
        "text_offset": list(range(len(tokens))),
    }
    body = whole_openai_text(Answer((prompt,), prompt=len(tokens), completion=0, finish="length"), model)
    body["choices"][0]["logprobs"] = logprobs
    return body


def stream_openai_chat(answer: Answer, model: str, with_usage: bool = True) -> list[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": model}
    if with_usage:
        head["usage"] = None

    def part(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return as_event({**head, "choices": [choice]})

    events = [part({"role": "assistant", "content": "", "refusal": None})]
    if answer.reason == "refusal":
        events.append(part({"refusal": answer.refusal or "I cannot help with that."}))
    else:
        events += [part({"content": piece}) for piece in answer.pieces]
    for number, (name, arguments) in enumerate(answer.calls):
        call = {"index": number, **_openai_call(number, name, "")}
        events.append(part({"tool_calls": [call]}))
        for piece in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            events.append(part({"tool_calls": [{"index": number, "function": {"arguments": piece}}]}))
    events.append(part({}, _openai_reason(answer)))
    if with_usage and answer.usage:
        events.append(as_event({**head, "choices": [], "usage": _openai_usage(answer)}))
    return [*events, as_event("[DONE]")]


def stream_openai_text(answer: Answer, model: str, with_usage: bool = True) -> list[bytes]:
    head = {"id": "cmpl-1", "object": "text_completion", "created": CREATED, "model": model}

    def part(text: str, finish: str | None = None) -> bytes:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return as_event({**head, "choices": [choice]})

    events = [part(piece) for piece in answer.pieces] + [part("", _openai_reason(answer))]
    if with_usage and answer.usage:
        events.append(as_event({**head, "choices": [], "usage": _openai_usage(answer)}))
    return [*events, as_event("[DONE]")]


def openai_vectors(answer: Answer, model: str, count: int) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": number, "embedding": answer.vectors[number % len(answer.vectors)]}
        for number in range(count)
    ]
    usage = {"prompt_tokens": answer.prompt, "total_tokens": answer.prompt}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def openai_error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# Anthropic ----------------------------------------------------------------------------------------------------------

_ANTHROPIC_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _anthropic_reason(answer: Answer) -> str:
    return _ANTHROPIC_REASONS.get(answer.reason, "refusal")


def _anthropic_usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt,
        "cache_creation_input_tokens": answer.written,
        "cache_read_input_tokens": answer.cached,
        "output_tokens": answer.completion,
        "service_tier": "standard",
    }


def _anthropic_head(model: str) -> dict[str, Any]:
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": model}


def whole_anthropic(answer: Answer, model: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thoughts:
        content.append({"type": "thinking", "thinking": "hm", "signature": "c2ln"})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": json.loads(arguments)}
        for number, (name, arguments) in enumerate(answer.calls)
    ]
    stop = {"stop_reason": _anthropic_reason(answer), "stop_sequence": None}
    body = {**_anthropic_head(model), "content": content, **stop}
    return body | ({"usage": _anthropic_usage(answer)} if answer.usage else {})


def stream_anthropic(answer: Answer, model: str) -> list[bytes]:
    usage = {**_anthropic_usage(answer), "output_tokens": 1}
    message = {
        **_anthropic_head(model),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        **({"usage": usage} if answer.usage else {}),
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
    index = 0
    if answer.thoughts:
        events += [
            {
                "type": "content_block_start",
                "index": index,
                "content_block": {"type": "thinking", "thinking": ""},
            },
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "thinking_delta", "thinking": "hm"},
            },
            {
                "type": "content_block_delta",
                "index": index,
                "delta": {"type": "signature_delta", "signature": "c2ln"},
            },
            {"type": "content_block_stop", "index": index},
        ]
        index += 1
    if answer.text:
        events += [
            {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
        ]
        events += [
            {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": piece}}
            for piece in answer.pieces
        ]
        events.append({"type": "content_block_stop", "index": index})
        index += 1
    for number, (name, arguments) in enumerate(answer.calls):
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        for piece in ("", arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            delta = {"type": "input_json_delta", "partial_json": piece}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
        index += 1
    delta = {"stop_reason": _anthropic_reason(answer), "stop_sequence": None}
    last = {"type": "message_delta", "delta": delta}
    events.append(last | ({"usage": {"output_tokens": answer.completion}} if answer.usage else {}))
    events.append({"type": "message_stop"})
    return [as_event(event, event["type"]) for event in events]


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }
    kind = kinds.get(status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


# Gemini -------------------------------------------------------------------------------------------------------------

_GEMINI_REASONS = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _gemini_usage(answer: Answer) -> dict[str, Any]:
    usage = {
        "promptTokenCount": answer.prompt,
        "candidatesTokenCount": answer.completion,
        "totalTokenCount": answer.prompt + answer.completion + answer.thoughts,
    }
    if answer.cached:
        usage["cachedContentTokenCount"] = answer.cached
    if answer.thoughts:
        usage["thoughtsTokenCount"] = answer.thoughts
    return usage


def _gemini_body(
    answer: Answer, model: str, parts: list[dict[str, Any]], finish: str | None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    body = {"candidates": [candidate], "modelVersion": model, "responseId": "r1"}
    return body | ({"usageMetadata": _gemini_usage(answer)} if answer.usage else {})


def _gemini_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"functionCall": {"name": name, "args": json.loads(arguments)}, "thoughtSignature": "c2ln"}
        for name, arguments in answer.calls
    ]


def whole_gemini(answer: Answer, model: str) -> dict[str, Any]:
    if answer.reason == "refusal":
        blocked = {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": []}, "modelVersion": model}
        return blocked | ({"usageMetadata": {"promptTokenCount": answer.prompt}} if answer.usage else {})
    thought = [{"text": "hm", "thought": True}] if answer.thoughts else []
    text = [{"text": answer.text}] if answer.text else []
    return _gemini_body(
        answer, model, [*thought, *text, *_gemini_calls(answer)], _GEMINI_REASONS[answer.reason]
    )


def stream_gemini(answer: Answer, model: str) -> list[bytes]:
    if answer.reason == "refusal":
        return [as_event(whole_gemini(answer, model))]
    bodies = [_gemini_body(answer, model, [{"text": piece}], None) for piece in answer.pieces if piece]
    if answer.thoughts:
        bodies.insert(0, _gemini_body(answer, model, [{"text": "hm", "thought": True}], None))
    if answer.calls:
        bodies.append(_gemini_body(answer, model, _gemini_calls(answer), None))
    bodies.append(_gemini_body(answer, model, [{"text": ""}], _GEMINI_REASONS[answer.reason]))
    return [as_event(body) for body in bodies]


def gemini_vectors(answer: Answer, count: int) -> dict[str, Any]:
    return {
        "embeddings": [{"values": answer.vectors[number % len(answer.vectors)]} for number in range(count)]
    }


def gemini_error(status: int, message: str, retry_after: float | None = None) -> dict[str, Any]:
    names = {
        400: "INVALID_ARGUMENT",
        403: "PERMISSION_DENIED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
        504: "DEADLINE_EXCEEDED",
    }
    error: dict[str, Any] = {"code": status, "message": message, "status": names.get(status, "UNKNOWN")}
    if retry_after is not None:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_after:g}s"}
        error["details"] = [info]
    return {"error": error}
