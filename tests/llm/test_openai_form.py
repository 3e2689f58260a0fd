"""What a model behind a server is asked in OpenAI's words, tools and forms too."""

from typing import Any

import pytest

from yunque.errors import UserError
from yunque.generate.config import (
    ChoiceFormat,
    GenerationConfig,
    JsonFormat,
    RegexFormat,
    Tool,
    ToolFormat,
)
from yunque.llm import Message, ToolCall
from yunque.llm.face import ToolCallPart, joined_calls
from yunque.llm.openai_form import DIALECTS, keeps_to_strict
from yunque.llm.openai_wire import OpenAIWire

TOOLS = ToolFormat(tools=(Tool(name="f", description="d"),), required=True, parallel=False)
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.fixture
def wire() -> OpenAIWire:
    return OpenAIWire("m", "http://h/v1#m")


def test_tools_are_asked_for_and_their_calls_read(wire: OpenAIWire) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    talk = [
        Message("user", "¿?"),
        Message("assistant", "", (ToolCall("x", "f", "{}"),)),
        Message("tool", "7", tool_call_id="x"),
    ]
    body = wire.chat(talk, GenerationConfig(format=TOOLS), stream=False).body
    said = wire.answer({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert (said.reason, joined_calls(said.calls)) == ("tool_calls", (ToolCall("call_1", "f", '{"a": 1}'),))
    assert body["tools"][0]["function"]["name"] == "f"
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert body["messages"][2] == {"role": "tool", "content": "7", "tool_call_id": "x"}


def test_calls_in_a_stream_are_put_together(wire: OpenAIWire) -> None:
    pieces = [{"index": 0, **CALL, "function": {"name": "f", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    events = [{"choices": [{"delta": {"tool_calls": [piece]}, "finish_reason": None}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    reader = wire.reader()
    said = [reader.read(event) for event in events]
    parts: list[ToolCallPart] = [part for each in said for part in each.calls]
    assert joined_calls(parts) == (ToolCall("call_1", "f", '{"a": 1}'),)
    assert said[-1].reason == "tool_calls"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"presence_penalty": 0.5, "logit_bias": {7: 1.0}},
            {"presence_penalty": 0.5, "logit_bias": {"7": 1.0}},
        ),
        ({"format": JsonFormat()}, {"response_format": {"type": "json_object"}}),
        ({"format": ChoiceFormat(options=("a", "b"))}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"format": RegexFormat(pattern="a+")}, {"structured_outputs": {"regex": "a+"}}),
        ({"seed": 0, "stop": ("x",)}, {"seed": 0, "stop": ["x"]}),
        ({"top_k": 5, "ignore_end": True}, {"top_k": 5, "ignore_eos": True}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
    ],
)
def test_settings_have_the_names_of_the_api(
    wire: OpenAIWire, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = wire.complete([1, 2], GenerationConfig(**config), stream=False).body
    plain = {"model": "m", "max_tokens": 64, "temperature": 0.0, "prompt": [1, 2]}
    assert body == {**plain, **expected}


def test_what_cannot_be_read_in_an_answer_is_not_asked_for(wire: OpenAIWire) -> None:
    for more in ({"n": 2}, {"logprobs": 1}, {"echo": True}):
        with pytest.raises(UserError, match="one answer"):
            wire.complete("a", GenerationConfig(**more), stream=False)


def test_openai_is_not_asked_for_what_others_have() -> None:
    wire = OpenAIWire("gpt", "openai/gpt", DIALECTS["openai"])
    for more, word in (({"top_k": 5}, "top_k"), ({"min_p": 0.1, "ignore_end": True}, "min_p, ignore_end")):
        with pytest.raises(UserError, match=f"openai/gpt cannot be asked for {word}"):
            wire.chat([Message("user", "a")], GenerationConfig(**more), stream=False)
    with pytest.raises(UserError, match="pattern"):
        config = GenerationConfig(format=RegexFormat(pattern="a"))
        wire.chat([Message("user", "a")], config, stream=False)


def test_a_schema_is_called_strict_only_where_openai_takes_it_so() -> None:
    strict = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    loose = {**strict, "required": []}
    wire = OpenAIWire("gpt", "openai/gpt", DIALECTS["openai"])
    for schema, expected in ((strict, True), (loose, False), ({"type": "object"}, False)):
        assert keeps_to_strict(schema) is expected
        config = GenerationConfig(format=JsonFormat(json_schema=schema))
        asked = wire.chat([Message("user", "a")], config, stream=False)
        assert asked.body["response_format"]["json_schema"]["strict"] is expected
        assert not asked.wrapped
    config = GenerationConfig(format=JsonFormat(json_schema={"type": "array", "items": strict}))
    asked = wire.chat([Message("user", "a")], config, stream=False)
    assert asked.wrapped and asked.body["response_format"]["json_schema"]["schema"]["required"] == ["answer"]


@pytest.mark.parametrize(
    ("message", "room"),
    [
        (
            "This model's maximum context length is 128 tokens. However, you requested 1020 tokens (20 in the "
            "messages, 1000 in the completion).",
            108,
        ),
        (
            "'max_tokens' is too large: 1000. This model's maximum context length is 128 tokens and your request has "
            "20 input tokens (1000 > 128 - 20).",
            108,
        ),
        (
            "You passed 20 input tokens and requested 1000 output tokens. However, the model's context length is "
            "only 128 tokens.",
            108,
        ),
        ("Input tokens exceed the configured limit of 100 tokens. Your messages resulted in 200 tokens.", 0),
        ("the context of mini is 128 tokens: at most 28 tokens fit behind it, context length", 28),
    ],
)
def test_the_room_that_is_left_is_read_from_the_servers_words(
    wire: OpenAIWire, message: str, room: int
) -> None:
    problem = wire.problem(
        400, {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    )
    assert (problem.overflow, problem.room) == (True, room)


def test_llama_servers_numbers_are_read(wire: OpenAIWire) -> None:
    error = {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 90, "n_ctx": 100}
    assert (wire.problem(400, {"error": error}).overflow, wire.problem(400, {"error": error}).room) == (
        True,
        10,
    )
    assert not wire.problem(400, {"error": {"message": "no such setting"}}).overflow
