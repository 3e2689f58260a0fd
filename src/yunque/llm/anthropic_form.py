"""A conversation, tools and forms in the words of Anthropic's Messages API."""

import json
from collections.abc import Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, Format, JsonFormat, RegexFormat, Tool, ToolFormat
from yunque.llm.face import Message
from yunque.llm.openai_form import accepted_id, is_object, wrapping
from yunque.llm.wire import Remembered, Settings

ANTHROPIC: Settings = {
    "max_new_tokens": "",
    "format": "",
    "truncate": "",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
    "seed": None,
    "min_p": None,
    "typical_p": None,
    "repetition_penalty": None,
    "presence_penalty": None,
    "frequency_penalty": None,
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
# The tool that a form is asked for with, where `output_config` cannot say it.
FORM_TOOL = "yunque_answer"
_UNSAID = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "maxItems",
        "uniqueItems",
        "minProperties",
        "maxProperties",
        "contains",
        "patternProperties",
    }
)
_UNSAYABLE = frozenset({"oneOf", "not", "if", "prefixItems", "dependentSchemas", "$dynamicRef"})


def asked_conversation(messages: Sequence[Message], thoughts: Remembered) -> tuple[str, list[dict[str, Any]]]:
    """The system text, and what `user` and `assistant` said in turn; raises UserError where the user did not begin.

    Results of tools are blocks of the user's next turn; what came with a call goes back with it.
    """
    system = "\n\n".join(
        message.content for message in messages if message.role == "system" and message.content
    )
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message, thoughts)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        # The results come first in a turn: the API refuses text between a call and its result.
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if not turns or turns[0]["role"] != "user":
        raise UserError("a conversation with a model of Anthropic begins with a message of the user")
    return system, turns


def _blocks(message: Message, thoughts: Remembered) -> list[dict[str, Any]]:
    if message.role == "tool":
        id = accepted_id(message.tool_call_id or "")
        return [{"type": "tool_result", "tool_use_id": id, "content": message.content}]
    # Blocks of blank text are refused.
    text = [{"type": "text", "text": message.content}] if message.content.strip() else []
    calls = [
        {
            "type": "tool_use",
            "id": accepted_id(call.id),
            "name": call.name,
            "input": as_object(call.arguments),
        }
        for call in message.tool_calls
    ]
    thought = thoughts.find(message.tool_calls[0].id) if message.tool_calls else None
    return [*(thought or ()), *text, *calls]


def as_object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object; a model may have written something else, which is sent as such."""
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        read = arguments
    return read if isinstance(read, dict) else {"arguments": read}


def asked_form(form: Format | None, left_out: set[str], whose: str) -> tuple[dict[str, Any], bool, bool]:
    """The form of the answer; whether the answer is wrapped in an object; whether it comes as the call of a tool.

    JSON is asked for with `output_config` where the API's subset of JSON Schema can say it, else with a tool that
    must be called. Newer models refuse the latter, older ones the former: see `left_out`.
    """
    match form:
        case None:
            return {}, False, False
        case RegexFormat():
            raise UserError(
                f"{whose} cannot be asked for a pattern: ask for JSON or a choice, or a local model"
            )
        case ToolFormat():
            return _tools_asked(form, left_out), False, False
        case ChoiceFormat(options=options):
            schema: Any = {"type": "string", "enum": list(options)}
        case JsonFormat(json_schema=schema):
            schema = {"type": "object"} if schema is None else schema
    wrapped = not is_object(schema)
    schema = wrapping(schema) if wrapped else schema
    said = sayable(schema) if "output_config" not in left_out else None
    if said is not None:
        return {"output_config": {"format": {"type": "json_schema", "schema": said}}}, wrapped, False
    tool = Tool(name=FORM_TOOL, description="Give your answer by calling this tool, once.", parameters=schema)
    return _tools_asked(ToolFormat(tools=(tool,), required=True, parallel=False), left_out), wrapped, True


def _tools_asked(form: ToolFormat, left_out: set[str]) -> dict[str, Any]:
    tools = []
    for tool in form.tools:
        described = {"description": tool.description} if tool.description else {}
        tools.append({"name": tool.name, **described, "input_schema": {"type": "object", **tool.parameters}})
    choice: dict[str, Any] = {"type": "any" if form.required and "tool_choice" not in left_out else "auto"}
    if not form.parallel:
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


def sayable(schema: Any) -> Any | None:
    """The schema in the subset that `output_config` takes, or None where it cannot be said there.

    Bounds are dropped: whoever asked checks the answer in any case. Objects of unknown properties and recursion are
    what cannot be said.
    """
    try:
        return _said(schema, depth=0)
    except _Unsayable:
        return None


class _Unsayable(Exception):
    pass


def _said(schema: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > 20 or _UNSAYABLE & schema.keys():
        raise _Unsayable
    refers = schema.get("$ref")
    # What refers to its own root is recursive.
    if refers is not None and not str(refers).startswith("#/"):
        raise _Unsayable
    said: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _UNSAID or (key == "minItems" and value not in (0, 1)):
            continue
        if key in ("properties", "$defs", "definitions"):
            said[key] = {name: _said(inner, depth + 1) for name, inner in value.items()}
        elif key in ("anyOf", "allOf"):
            said[key] = [_said(inner, depth + 1) for inner in value]
        elif key == "items":
            said[key] = _said(value, depth + 1)
        else:
            said[key] = value
    if schema.get("type") == "object" or "properties" in schema:
        if not schema.get("properties") or schema.get("additionalProperties") not in (None, False):
            raise _Unsayable
        said["additionalProperties"] = False
    return said
