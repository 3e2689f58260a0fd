"""A conversation with tools as a model reads it: which functions it may call, the calls it made, and what came back.

A model whose chat template knows tools is told of them by its template. Any other reads of them in its system message
and sees the results of its calls as a message of the user.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yunque.errors import UserError
from yunque.generate.config import Tool
from yunque.generate.conversation import encode_prompt
from yunque.generate.message import Message, ToolCall
from yunque.model import EncoderDecoder, LanguageModel
from yunque.tokenizer import Tokenizer


def encode_conversation(
    tokenizer: Tokenizer, model: LanguageModel, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[int]:
    """A conversation as the model is to be asked, with the tools that it may call.

    Raises UserError where the tokenizer cannot write it.
    """
    if not tools and all(message.role != "tool" and not message.tool_calls for message in messages):
        return encode_prompt(tokenizer, model, [(message.role, message.content) for message in messages])
    if not isinstance(model, EncoderDecoder) and tokenizer.writes_tools:
        described = [{"type": "function", "function": _described(tool)} for tool in tools]
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return tokenizer.encode_chat([_fields(message, names) for message in messages], True, described)[0]
    said = _in_words(messages)
    if not tools:
        return encode_prompt(tokenizer, model, said)
    told = told_of(tools)
    try:
        return encode_prompt(tokenizer, model, _put_first(said, "system", told))
    except UserError:
        if said[0][0] == "system":
            raise
        # Some templates know no system message.
        return encode_prompt(tokenizer, model, _put_first(said, "user", told))


def told_of(tools: Iterable[Tool]) -> str:
    """What a model that was taught no form of its own is told of its tools."""
    described = "\n".join(json.dumps(_described(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions:\n{described}\n"
        "A call is written as one line of this form, and nothing else is written then:\n"
        '<tool_call>{"name": "the function", "arguments": {"its argument": "a value"}}</tool_call>'
    )


def _described(tool: Tool) -> dict[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "parameters": tool.parameters}


def _fields(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    """A message as chat templates know it; `names` are those of the functions called, by the id of the call."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": _as_value(call)} for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        fields |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id, "")}
    return fields


def _as_value(call: ToolCall) -> dict[str, Any]:
    """A call with its arguments as a value; text that is no JSON (an answer was cut off in it) stays text."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return {"name": call.name, "arguments": arguments}


def _in_words(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The conversation in roles and texts only; results that follow one another are one message."""
    said: list[tuple[str, str]] = []
    after_result = False
    for message in messages:
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if after_result:
                result = f"{said.pop()[1]}\n{result}"
            said.append(("user", result))
        else:
            calls = [
                f"<tool_call>{json.dumps(_as_value(call), ensure_ascii=False)}</tool_call>"
                for call in message.tool_calls
            ]
            said.append((message.role, "\n".join([*([message.content] if message.content else []), *calls])))
        after_result = message.role == "tool"
    return said


def _put_first(said: list[tuple[str, str]], role: str, text: str) -> list[tuple[str, str]]:
    """The conversation with `text` at the end of its system message, or at the beginning of the first of `role`."""
    first = next((place for place, (who, _) in enumerate(said) if who == role), None)
    if first is None or (role == "system" and first > 0):
        return [(role, text), *said]
    content = said[first][1]
    joined = f"{content}\n\n{text}" if role == "system" else f"{text}\n\n{content}"
    return [*said[:first], (role, joined), *said[first + 1 :]]
