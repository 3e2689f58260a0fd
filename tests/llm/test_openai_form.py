"""What a model behind a server is asked in OpenAI's words, tools and forms too."""

import json
from typing import Any

import httpx
import pytest

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat, Tool, ToolFormat
from yunque.llm import Message, ToolCall
from yunque.llm.openai_compatible import OpenAICompatibleModel

TOOLS = ToolFormat(tools=(Tool(name="f", description="d"),), required=True, parallel=False)
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def model_that_gets(answers: list[Any], asked: list[Any], stream: bool = False) -> OpenAICompatibleModel:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        if not stream:
            return httpx.Response(200, json=answers[0])
        lines = "".join(f"data: {json.dumps(each)}\n\n" for each in answers) + "data: [DONE]\n\n"
        return httpx.Response(200, text=lines)

    model = OpenAICompatibleModel("http://127.0.0.1:1/v1", "m")
    model._client = httpx.Client(transport=httpx.MockTransport(answer))
    return model


def test_tools_are_asked_for_and_their_calls_read() -> None:
    asked: list[Any] = []
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    model = model_that_gets([{"choices": [{"message": message, "finish_reason": "tool_calls"}]}], asked)
    talk = [
        Message("user", "¿?"),
        Message("assistant", "", (ToolCall("x", "f", "{}"),)),
        Message("tool", "7", tool_call_id="x"),
    ]
    answer = model.chat(talk, GenerationConfig(format=TOOLS))
    assert (answer.finish_reason, answer.tool_calls) == ("tool_calls", (ToolCall("call_1", "f", '{"a": 1}'),))
    (body,) = asked
    assert body["tools"][0]["function"]["name"] == "f"
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert body["messages"][2] == {"role": "tool", "content": "7", "tool_call_id": "x"}


def test_calls_in_a_stream_are_put_together() -> None:
    pieces = [{"index": 0, **CALL, "function": {"name": "f", "arguments": ""}}]
    pieces += [{"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}")]
    answers = [{"choices": [{"delta": {"tool_calls": [piece]}, "finish_reason": None}]} for piece in pieces]
    answers.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    model = model_that_gets(answers, [], stream=True)
    chunks = list(model.stream_chat([Message("user", "¿?")], GenerationConfig(format=TOOLS)))
    from yunque.llm.face import joined_calls

    calls = joined_calls(part for chunk in chunks for part in chunk.tool_calls)
    assert calls == (ToolCall("call_1", "f", '{"a": 1}'),)
    assert chunks[-1].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"presence_penalty": 0.5, "logit_bias": {7: 1.0}},
            {"presence_penalty": 0.5, "logit_bias": {"7": 1.0}},
        ),
        ({"format": JsonFormat()}, {"response_format": {"type": "json_object"}}),
        ({"format": ChoiceFormat(options=("a", "b"))}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"seed": 0, "stop": ("x",)}, {"seed": 0, "stop": ["x"]}),
    ],
)
def test_settings_have_the_names_of_the_api(config: dict[str, Any], expected: dict[str, Any]) -> None:
    asked: list[Any] = []
    model = model_that_gets([{"choices": [{"text": "a", "finish_reason": "stop"}]}], asked)
    model.complete([1, 2], GenerationConfig(**config))
    plain = {"model": "m", "max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "prompt": [1, 2]}
    assert asked[0] == {**plain, **expected}


def test_what_cannot_be_read_in_an_answer_is_not_asked_for() -> None:
    model = model_that_gets([], [])
    for more in ({"n": 2}, {"logprobs": 1}, {"echo": True}):
        with pytest.raises(UserError, match="one answer"):
            model.complete("a", GenerationConfig(**more))
