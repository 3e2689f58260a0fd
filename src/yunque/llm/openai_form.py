"""A request and an answer in the words of OpenAI's API, from the side of the one who asks."""

from collections.abc import Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, Format, GenerationConfig, JsonFormat, RegexFormat, ToolFormat
from yunque.llm.face import Message, ToolCallPart


def asked_settings(config: GenerationConfig) -> dict[str, Any]:
    """The settings but the length. What OpenAI itself does not know is sent only when it is set.

    Raises UserError for what this client cannot read in an answer.
    """
    if config.candidates > 1 or config.logprobs is not None or config.echo or config.num_beams > 1:
        raise UserError(
            "a model behind a server is asked for one answer: it takes no n, best_of, logprobs, echo or num_beams"
        )
    body: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
    rare = {
        "stop": list(config.stop),
        "seed": config.seed,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in config.logit_bias.items()},
        "top_k": config.top_k,
        "min_p": config.min_p,
        "stop_token_ids": list(config.stop_ids),
        "ignore_eos": config.ignore_end,
    }
    body |= {name: value for name, value in rare.items() if value or (name == "seed" and value is not None)}
    if config.repetition_penalty != 1.0:
        body["repetition_penalty"] = config.repetition_penalty
    if config.typical_p != 1.0:
        body["typical_p"] = config.typical_p
    return body | asked_form(config.format)


def asked_form(form: Format | None) -> dict[str, Any]:
    """The form of the answer; regular expressions and choices by the names that vLLM and Yunque know."""
    match form:
        case JsonFormat(json_schema=None):
            return {"response_format": {"type": "json_object"}}
        case JsonFormat(json_schema=schema):
            named = {"name": "answer", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case RegexFormat(pattern=pattern):
            return {"structured_outputs": {"regex": pattern}}
        case ChoiceFormat(options=options):
            return {"structured_outputs": {"choice": list(options)}}
        case ToolFormat():
            tools = [
                {"type": "function", "function": tool.model_dump(exclude_defaults=False)}
                for tool in form.tools
            ]
            choice = "required" if form.required else "auto"
            return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": form.parallel}
        case None:
            return {}


def asked_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation."""
    return [_asked_message(message) for message in messages]


def _asked_message(message: Message) -> dict[str, Any]:
    asked: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        asked["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        asked["tool_call_id"] = message.tool_call_id
    return asked


def told_calls(said: Any) -> tuple[ToolCallPart, ...]:
    """The pieces of calls in a message, or in the piece of one; raises TypeError or KeyError for something else."""
    parts: list[ToolCallPart] = []
    for place, call in enumerate(said.get("tool_calls") or ()):
        function = call.get("function") or {}
        number, name = call.get("index", place), function.get("name")
        arguments = function.get("arguments") or ""
        if not isinstance(number, int) or not isinstance(arguments, str):
            raise TypeError("no call of a tool")
        parts.append(ToolCallPart(number, arguments, call.get("id") if name else None, name))
    return tuple(parts)
