"""What Gemini is asked, and what is made of its answers, in its own words."""

import json
from typing import Any

import pytest

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat, Tool, ToolFormat
from yunque.llm import Message, ToolCall, Usage
from yunque.llm.face import joined_calls
from yunque.llm.gemini_wire import GeminiWire
from yunque.llm.wire import BadReply

CONFIG = GenerationConfig(max_new_tokens=9)
USER = Message("user", "¿?")


@pytest.fixture
def wire() -> GeminiWire:
    return GeminiWire("gem", "gemini/gem")


def asked(wire: GeminiWire, messages: list[Message], config: GenerationConfig = CONFIG) -> dict[str, Any]:
    return wire.chat(messages, config, stream=False).body


def test_the_system_text_is_apart_and_roles_take_turns(wire: GeminiWire) -> None:
    request = wire.chat(
        [Message("system", "a"), USER, Message("user", "b"), Message("assistant", "c")], CONFIG, True
    )
    assert request.path == "/models/gem:streamGenerateContent?alt=sse"
    assert request.body["systemInstruction"] == {"parts": [{"text": "a"}]}
    assert [(turn["role"], len(turn["parts"])) for turn in request.body["contents"]] == [
        ("user", 2),
        ("model", 1),
    ]
    assert request.body["generationConfig"] == {"maxOutputTokens": 9, "temperature": 0.0}


def test_settings_have_its_names_or_are_refused(wire: GeminiWire) -> None:
    config = GenerationConfig(max_new_tokens=9, top_p=0.5, top_k=3, stop=("x",), seed=0, presence_penalty=1)
    assert asked(wire, [USER], config)["generationConfig"] == {
        "maxOutputTokens": 9,
        "temperature": 0.0,
        "topP": 0.5,
        "topK": 3,
        "stopSequences": ["x"],
        "seed": 0,
        "presencePenalty": 1.0,
    }
    with pytest.raises(UserError, match="gemini/gem cannot be asked for min_p"):
        asked(wire, [USER], GenerationConfig(min_p=0.1))
    with pytest.raises(UserError, match="texts, not tokens"):
        wire.complete([1, 2], CONFIG, stream=False)


def test_forms_are_asked_for(wire: GeminiWire) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    config = asked(wire, [USER], GenerationConfig(format=JsonFormat(json_schema=schema)))["generationConfig"]
    assert (config["responseMimeType"], config["responseJsonSchema"]) == ("application/json", schema)
    config = asked(wire, [USER], GenerationConfig(format=JsonFormat()))["generationConfig"]
    assert "responseJsonSchema" not in config
    request = wire.chat([USER], GenerationConfig(format=ChoiceFormat(options=("a", "b"))), stream=False)
    assert request.wrapped
    tools = ToolFormat(tools=(Tool(name="f", description="d"),), required=True)
    body = asked(wire, [USER], GenerationConfig(format=tools))
    assert body["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == {"type": "object"}
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


def test_the_signature_of_a_call_goes_back_with_it(wire: GeminiWire) -> None:
    part = {"functionCall": {"name": "f", "args": {"a": "ñ"}}, "thoughtSignature": "c2ln"}
    other = {"functionCall": {"name": "f", "args": {}}}
    said = wire.answer({"candidates": [{"content": {"parts": [part, other]}, "finishReason": "STOP"}]})
    calls = joined_calls(said.calls)
    assert said.reason == "tool_calls" and json.loads(calls[0].arguments) == {"a": "ñ"}
    talk = [USER, Message("assistant", "", calls), Message("tool", "7", tool_call_id=calls[1].id)]
    parts = asked(wire, talk)["contents"][1]["parts"]
    assert parts[0]["thoughtSignature"] == "c2ln" and "thoughtSignature" not in parts[1]
    result = asked(wire, talk)["contents"][2]["parts"][0]["functionResponse"]
    assert (result["name"], result["response"], result["id"]) == ("f", {"result": 7}, calls[1].id)
    # A call that another model made has the mark that the API asks for.
    parts = asked(GeminiWire("x", "x"), talk)["contents"][1]["parts"]
    assert parts[0]["thoughtSignature"] == "skip_thought_signature_validator"


def test_a_result_without_its_call_is_the_callers_mistake(wire: GeminiWire) -> None:
    talk = [
        USER,
        Message("assistant", "", (ToolCall("a", "f", "{}"),)),
        Message("tool", "7", tool_call_id="b"),
    ]
    with pytest.raises(UserError, match="the call 'b'"):
        asked(wire, talk)


def test_thoughts_are_written_tokens_but_no_text(wire: GeminiWire) -> None:
    body = {
        "candidates": [
            {"content": {"parts": [{"text": "hm", "thought": True}, {"text": "sí"}]}, "finishReason": "STOP"}
        ],
        "usageMetadata": {
            "promptTokenCount": 10,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 30,
            "cachedContentTokenCount": 4,
        },
    }
    said = wire.answer(body)
    assert (said.text, said.usage) == ("sí", Usage(10, 32, 4))


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "LANGUAGE"])
def test_an_answer_that_was_stopped_says_by_what(wire: GeminiWire, reason: str) -> None:
    assert reason in wire.answer({"candidates": [{"finishReason": reason}]}).declined
    blocked = wire.answer({"promptFeedback": {"blockReason": reason}})
    assert f"the prompt was blocked ({reason})" in blocked.declined
    assert not wire.answer({"candidates": [{"content": {}, "finishReason": "STOP"}]}).declined


def test_a_model_that_failed_by_itself_has_not_answered(wire: GeminiWire) -> None:
    with pytest.raises(BadReply, match="MALFORMED_FUNCTION_CALL"):
        wire.answer({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]})


def test_errors_say_how_long_to_wait(wire: GeminiWire) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    error = {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [info]}}
    for body in (error, [error]):
        problem = wire.problem(429, body)
        assert (problem.after, problem.again, problem.message) == (34.5, True, "quota")
    bad_key = {
        "error": {"code": 400, "message": "API key not valid. Please pass one", "status": "INVALID_ARGUMENT"}
    }
    assert wire.problem(400, bad_key).kind == "bad_key"


@pytest.mark.parametrize(
    "body", [{}, {"candidates": 7}, {"candidates": [{"content": {"parts": [{"text": 3}]}}]}]
)
def test_what_is_no_answer_is_a_bad_reply(wire: GeminiWire, body: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        wire.answer(body)
