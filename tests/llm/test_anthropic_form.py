"""What Anthropic is asked, and what is made of its answers, in its own words."""

import json
from typing import Any

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, JsonFormat, RegexFormat, Tool, ToolFormat
from yunque.llm import Message, ToolCall, Usage
from yunque.llm.anthropic_form import FORM_TOOL, sayable
from yunque.llm.anthropic_wire import AnthropicWire
from yunque.llm.face import joined_calls
from yunque.llm.wire import BadReply

CONFIG = GenerationConfig(max_new_tokens=9)
USER = Message("user", "¿?")


@pytest.fixture
def wire() -> AnthropicWire:
    return AnthropicWire("claude-x", "anthropic/claude-x")


def asked(wire: AnthropicWire, messages: list[Message], config: GenerationConfig = CONFIG) -> dict[str, Any]:
    return wire.chat(messages, config, stream=False).body


def test_system_messages_are_one_text_and_roles_take_turns(wire: AnthropicWire) -> None:
    talk = [Message("system", "a"), USER, Message("user", "b"), Message("system", "c")]
    body = asked(wire, [*talk, Message("assistant", "d"), Message("user", "e")])
    assert body["system"] == "a\n\nc"
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert [block["text"] for block in body["messages"][0]["content"]] == ["¿?", "b"]
    assert body["max_tokens"] == 9


def test_results_of_tools_are_the_users_and_come_first(wire: AnthropicWire) -> None:
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "f", "nonsense"))
    talk = [USER, Message("assistant", "ya", calls), Message("tool", "7", tool_call_id="c1")]
    talk += [Message("user", "¿y?"), Message("tool", "8", tool_call_id="c2")]
    turns = asked(wire, talk)["messages"]
    assert [block["type"] for block in turns[1]["content"]] == ["text", "tool_use", "tool_use"]
    assert [block["input"] for block in turns[1]["content"][1:]] == [{"a": 1}, {"arguments": "nonsense"}]
    assert [block["type"] for block in turns[2]["content"]] == ["tool_result", "tool_result", "text"]


def test_blank_text_is_not_sent_and_the_user_begins(wire: AnthropicWire) -> None:
    assert len(asked(wire, [USER, Message("assistant", " \n")])["messages"]) == 1
    for talk in ([Message("system", "a")], [Message("assistant", "a"), USER]):
        with pytest.raises(UserError, match="begins with a message of the user"):
            asked(wire, talk)


def test_settings_that_it_does_not_have_are_refused(wire: AnthropicWire) -> None:
    for config, word in (
        (GenerationConfig(seed=1), "seed"),
        (GenerationConfig(presence_penalty=1), "presence_penalty"),
        (GenerationConfig(temperature=1.5), "temperature 1.5"),
        (GenerationConfig(format=RegexFormat(pattern="a")), "pattern"),
    ):
        with pytest.raises(UserError, match=word):
            asked(wire, [USER], config)
    body = asked(wire, [USER], GenerationConfig(stop=("FIN",), top_k=3, top_p=0.5))
    assert (body["stop_sequences"], body["top_k"], body["top_p"]) == (["FIN"], 3, 0.5)


def test_a_schema_is_asked_for_with_the_output_format_or_a_tool(wire: AnthropicWire) -> None:
    plain = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}
    body = asked(wire, [USER], GenerationConfig(format=JsonFormat(json_schema=plain)))
    schema = body["output_config"]["format"]["schema"]
    assert schema["additionalProperties"] is False
    assert "minimum" not in schema["properties"]["n"]
    free = {"type": "object", "additionalProperties": {"type": "integer"}}
    for form in (JsonFormat(json_schema=free), JsonFormat()):
        body = asked(wire, [USER], GenerationConfig(format=form))
        assert body["tool_choice"]["type"] == "any"
        assert body["tools"][0]["name"] == FORM_TOOL
    said = wire.answer(
        {
            "content": [{"type": "tool_use", "id": "t", "name": FORM_TOOL, "input": {"ñ": 1}}],
            "stop_reason": "tool_use",
        }
    )
    assert (json.loads(said.text), said.calls, said.reason) == ({"ñ": 1}, (), "stop")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "object"}}},
        {"type": "object", "properties": {"a": {"oneOf": []}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "object", "properties": {"a": True}},
    ],
)
def test_what_the_output_format_cannot_say_is_known(schema: dict[str, Any]) -> None:
    assert sayable(schema) is None


def test_a_model_that_takes_no_forced_tool_is_asked_otherwise(wire: AnthropicWire) -> None:
    told = {"error": {"type": "invalid_request_error", "message": "tool_choice: forced use is not supported"}}
    problem = wire.problem(400, told)
    assert problem.setting == "tool_choice"
    wire.left_out.add(problem.setting)
    body = asked(wire, [USER], GenerationConfig(format=JsonFormat()))
    assert body["tool_choice"]["type"] == "auto" and FORM_TOOL in body["system"]
    old = {
        "error": {"type": "invalid_request_error", "message": "output_config: Extra inputs are not permitted"}
    }
    assert wire.problem(400, old).setting == "output_config"


def test_thinking_goes_back_with_the_call_that_it_led_to(wire: AnthropicWire) -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    said = wire.answer({"content": [thought, call], "stop_reason": "tool_use"})
    talk = [
        USER,
        Message("assistant", "", joined_calls(said.calls)),
        Message("tool", "7", tool_call_id="toolu_1"),
    ]
    assert asked(wire, talk)["messages"][1]["content"][0] == thought
    # Another model's calls have none.
    assert asked(AnthropicWire("y", "y"), talk)["messages"][1]["content"][0]["type"] == "tool_use"


def test_the_cache_is_counted_as_part_of_the_prompt(wire: AnthropicWire) -> None:
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 20,
        "output_tokens": 7,
    }
    said = wire.answer(
        {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn", "usage": usage}
    )
    assert said.usage == Usage(130, 7, 100, 20)


def test_thoughts_are_no_part_of_the_answer_and_unknown_events_are_passed_over(wire: AnthropicWire) -> None:
    reader = wire.reader()
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "of_tomorrow"}},
        {"type": "of_tomorrow"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "a"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "b"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    assert "".join(reader.read(event).text for event in events) == "ab"
    assert reader.usage() == Usage(3, 9)
    with pytest.raises(BadReply):
        reader.read({"type": "content_block_delta", "index": 5, "delta": {"type": "input_json_delta"}})


def test_tools_are_declared(wire: AnthropicWire) -> None:
    tools = ToolFormat(tools=(Tool(name="f", description="d"),), required=True, parallel=False)
    body = asked(wire, [USER], GenerationConfig(format=tools))
    assert body["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
