"""A request and an answer in the words of OpenAI's API, from the side of the one who asks."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, Format, GenerationConfig, JsonFormat, RegexFormat, ToolFormat
from yunque.llm.face import Message, ToolCallPart, Usage
from yunque.llm.wire import Settings, asked_settings, told_tokens

# OpenAI's own names, and those that vLLM gave to what OpenAI does not have; Yunque knows all of them.
COMPATIBLE: Settings = {
    "max_new_tokens": "",
    "format": "",
    "truncate": "",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "stop_ids": "stop_token_ids",
    "ignore_end": "ignore_eos",
    "n": None,
    "best_of": None,
    "logprobs": None,
    "echo": None,
    "num_beams": None,
    "length_penalty": None,
}
_NOT_OPENAIS = ("top_k", "min_p", "typical_p", "repetition_penalty", "stop_ids", "ignore_end")
_OPENAI: Settings = {**COMPATIBLE, **dict.fromkeys(_NOT_OPENAIS)}


@dataclass(frozen=True)
class Dialect:
    """How a server's API differs from the others that are called compatible.

    `hosted` is OpenAI's own: another name for the length, and strict about what a strict schema is. `patterns`: it
    takes regular expressions and choices by the names that vLLM gave them.
    """

    settings: Settings = field(default_factory=lambda: COMPATIBLE)
    hosted: bool = False
    patterns: bool = True


DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(_OPENAI, hosted=True, patterns=False),
    "ollama": Dialect({**_OPENAI, "logit_bias": None}, patterns=False),
    "vllm": Dialect({**COMPATIBLE, "typical_p": None}),
    "llamacpp": Dialect(
        {**COMPATIBLE, "repetition_penalty": "repeat_penalty", "stop_ids": None}, patterns=False
    ),
}


def openai_settings(
    config: GenerationConfig, table: Settings, whose: str, left_out: set[str]
) -> dict[str, Any]:
    """The settings but the length and the form; raises UserError for one that `table` does not have."""
    if config.candidates > 1 or config.logprobs is not None or config.echo or config.num_beams > 1:
        raise UserError(
            "a model behind a server is asked for one answer: it takes no n, best_of, logprobs, echo or num_beams"
        )
    return asked_settings(config, table, whose, left_out)


def asked_form(form: Format | None, dialect: Dialect, whose: str) -> tuple[dict[str, Any], bool]:
    """The form of the answer, and whether the answer will be wrapped in an object; raises UserError."""
    hosted = dialect.hosted
    match form:
        case JsonFormat(json_schema=None):
            return {"response_format": {"type": "json_object"}}, False
        case JsonFormat(json_schema=schema):
            wrapped = hosted and not is_object(schema)
            return _schema_asked(wrapping(schema) if wrapped else schema, hosted), wrapped
        case RegexFormat() if not dialect.patterns:
            raise UserError(
                f"{whose} cannot be asked for a pattern: ask for JSON or a choice, or a local model"
            )
        case RegexFormat(pattern=pattern):
            return {"structured_outputs": {"regex": pattern}}, False
        case ChoiceFormat(options=options):
            if not dialect.patterns:
                return _schema_asked(wrapping({"type": "string", "enum": list(options)}), hosted), True
            return {"structured_outputs": {"choice": list(options)}}, False
        case ToolFormat():
            return _tools_asked(form), False
        case None:
            return {}, False


def _schema_asked(schema: Any, hosted: bool) -> dict[str, Any]:
    strict = keeps_to_strict(schema) if hosted else True
    named = {"name": "answer", "schema": schema, "strict": strict}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _tools_asked(form: ToolFormat) -> dict[str, Any]:
    tools = [{"type": "function", "function": tool.model_dump(exclude_defaults=False)} for tool in form.tools]
    choice = "required" if form.required else "auto"
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": form.parallel}


def is_object(schema: Any) -> bool:
    """Whether what a schema describes is an object, so that an API that only makes objects can make it."""
    return isinstance(schema, dict) and schema.get("type") == "object"


def wrapping(schema: Any) -> dict[str, Any]:
    """The schema of `{"answer": ...}`."""
    inner = {} if schema is True else schema
    outer: dict[str, Any] = {
        "type": "object",
        "properties": {"answer": inner},
        "required": ["answer"],
        "additionalProperties": False,
    }
    # Definitions are looked for at the root.
    for name in ("$defs", "definitions"):
        if isinstance(inner, dict) and name in inner:
            outer[name] = inner[name]
            outer["properties"] = {"answer": {key: inner[key] for key in inner if key != name}}
            inner = outer["properties"]["answer"]
    return outer


def keeps_to_strict(schema: Any) -> bool:
    """Whether every object of a schema requires all its properties and allows no others (OpenAI's `strict`)."""
    if isinstance(schema, list):
        return all(map(keeps_to_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(
            properties
        ):
            return False
        return all(map(keeps_to_strict, properties.values())) and all(
            keeps_to_strict(value) for key, value in schema.items() if key in ("$defs", "definitions")
        )
    return all(
        keeps_to_strict(value) for key, value in schema.items() if key not in ("enum", "const", "default")
    )


def asked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation."""
    return [_asked_message(message) for message in messages]


def _asked_message(message: Message) -> dict[str, Any]:
    asked: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        asked["tool_calls"] = [
            {
                "id": accepted_id(call.id),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        asked["tool_call_id"] = accepted_id(message.tool_call_id)
    return asked


def accepted_id(id: str) -> str:
    """The id of a call, as every provider takes it: the one that is asked may not be the one that made it up."""
    if re.fullmatch(r"[A-Za-z0-9_-]{1,40}", id):
        return id
    return "call_" + hashlib.sha256(id.encode("utf-8", errors="replace")).hexdigest()[:24]


class Calls:
    """Puts the calls of one answer in order. Not every server numbers them as it should: where a piece brings another
    id and a name it begins another call, whatever its number, and a piece without a number goes on with the last."""

    def __init__(self) -> None:
        self._open: dict[object, ToolCallPart] = {}
        """The last call that began under each number of the server's."""
        self._count = 0
        self._last: object = None

    def told(self, said: Any, whole: bool = False) -> tuple[ToolCallPart, ...]:
        """The pieces of calls in a message, or in the piece of one; raises TypeError for what is no call.

        In a `whole` answer each is a call by itself.
        """
        return tuple(self._part(call, whole) for call in said.get("tool_calls") or ())

    def _part(self, call: Any, whole: bool) -> ToolCallPart:
        function = call.get("function") or {}
        number, id, name = call.get("index"), call.get("id") or "", function.get("name") or ""
        arguments = function.get("arguments") or ""
        # Ollama's own shape has the arguments as an object.
        if isinstance(arguments, dict):
            import json

            arguments = json.dumps(arguments, ensure_ascii=False)
        if not all(isinstance(each, str) for each in (id, name, arguments)):
            raise TypeError("no call of a tool")
        known = self._open.get(self._last if number is None else number)
        if whole or known is None or _begins_another(known, number, id, name):
            if not name:
                raise TypeError("a call without a name")
            # A result is told by the id of its call.
            id = id or f"call_{secrets.token_hex(12)}"
            known = ToolCallPart(self._count, arguments, id, name)
            self._count += 1
            self._last = known.number if number is None else number
            self._open[self._last] = known
            return known
        if number is not None:
            self._last = number
        return ToolCallPart(known.number, arguments)


def _begins_another(known: ToolCallPart, number: object, id: str, name: str) -> bool:
    """Whether a piece that comes under the number of a known call is the first of another.

    Some servers repeat a call's id and name with each of its pieces, some give each piece an id of its own.
    """
    if not name:
        return False
    return id != known.id if id else number is None or name != known.name


def told_usage(body: dict[str, Any]) -> Usage | None:
    """The tokens, if they were told; those of the cache are part of the prompt's."""
    usage = body.get("usage")
    if not isinstance(usage, dict) or usage.get("prompt_tokens") is None:
        return None
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return told_tokens(
        usage["prompt_tokens"],
        usage.get("completion_tokens"),
        details.get("cached_tokens"),
        details.get("cache_write_tokens"),
    )
