"""Providers that misbehave in ways nobody thought of: whatever comes back is an answer, or one clear sentence."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_provider import Answer, Asked, FakeProvider, Fault
from fake_shapes import (
    stream_anthropic,
    stream_gemini,
    stream_openai_chat,
    whole_anthropic,
    whole_gemini,
    whole_openai_chat,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable
from yunque.llm.anthropic_wire import AnthropicWire
from yunque.llm.face import ContextOverflow, ToolCallPart, Usage
from yunque.llm.gemini_wire import GeminiWire
from yunque.llm.open import open_remote
from yunque.llm.openai_wire import OpenAIWire
from yunque.llm.transport import Patience
from yunque.llm.wire import BadReply, Problem, Said, Wire

QUESTION = [Message("user", "¿?")]
CONFIG = GenerationConfig()
WIRES = {"openai": OpenAIWire, "anthropic": AnthropicWire, "gemini": GeminiWire}
ANSWER = Answer(("ñ", "b"), (("f", '{"a": 1}'),), cached=2, thoughts=3)
WORDS = """choices message delta content text tool_calls function name arguments finish_reason refusal usage index id
    prompt_tokens completion_tokens prompt_tokens_details cached_tokens type error code param candidates parts thought
    functionCall args finishReason usageMetadata promptTokenCount candidatesTokenCount promptFeedback blockReason role
    content_block tool_use partial_json stop_reason message_start content_block_start content_block_delta text_delta
    input_json_delta message_delta message_stop thinking thinking_delta signature_delta status details retryDelay 5s
    input input_tokens output_tokens stop_details category SAFETY STOP stop length n_ctx n_prompt_tokens"""
words = st.sampled_from(WORDS.split())
leaves = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | words | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)


def changed(draw: Any, value: Any) -> Any:
    """A reply with some of its parts replaced by something else, or gone."""
    if draw(st.integers(0, 14)) == 0:
        return draw(values)
    if isinstance(value, dict):
        return {key: changed(draw, each) for key, each in value.items() if draw(st.integers(0, 19))}
    if isinstance(value, list):
        return [changed(draw, each) for each in value]
    return value


def looks_right(said: Said) -> bool:
    usage = said.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) if usage else ()
    return (
        type(said.text) is str
        and type(said.declined) is str
        and said.reason in (None, "stop", "length", "tool_calls")
        and isinstance(usage, Usage | None)
        and all(type(count) is int and count >= 0 for count in counts)
        and all(isinstance(part, ToolCallPart) and type(part.arguments) is str for part in said.calls)
    )


def wholes(api: str) -> dict[str, Any]:
    make = {"openai": whole_openai_chat, "anthropic": whole_anthropic, "gemini": whole_gemini}[api]
    return make(ANSWER, "m")


def streams(api: str) -> list[bytes]:
    make: Any = {"openai": stream_openai_chat, "anthropic": stream_anthropic, "gemini": stream_gemini}[api]
    return list(make(ANSWER, "m"))


def wire_of(api: str) -> Wire:
    made: Wire = WIRES[api]("m", "m")  # type: ignore[abstract]
    return made


@pytest.mark.parametrize("api", WIRES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_whole_answer_of_any_shape_is_read_or_refused(api: str, data: st.DataObject) -> None:
    body = data.draw(values) if data.draw(st.booleans()) else changed(data.draw, wholes(api))
    if not isinstance(body, dict):
        return
    try:
        said = wire_of(api).answer(body)
    except BadReply:
        return
    assert looks_right(said), said


@pytest.mark.parametrize("api", WIRES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_events_of_any_shape_are_read_or_refused(api: str, data: st.DataObject) -> None:
    reader = wire_of(api).reader()
    for event in streams(api):
        told = event.rpartition(b"data: ")[2].strip()
        if told == b"[DONE]":
            continue
        body = changed(data.draw, json.loads(told))
        if not isinstance(body, dict):
            continue
        try:
            said = reader.read(body)
        except BadReply:
            return
        assert looks_right(said), said
    assert isinstance(reader.usage(), Usage | None)


@pytest.mark.parametrize("api", WIRES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(status=st.sampled_from([0, 400, 401, 413, 422, 429, 500]), inner=values, code=values, whole=values)
def test_errors_of_any_shape_are_a_problem(api: str, status: int, inner: Any, code: Any, whole: Any) -> None:
    error = {"message": inner, "type": code, "code": code, "param": inner, "details": inner, "status": code}
    for body in (whole, {"error": inner}, {"error": error}, [{"error": error}]):
        problem = wire_of(api).problem(status, body)
        assert isinstance(problem, Problem) and type(problem.message) is str and problem.room >= 0


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as made:
        yield made


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", WIRES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bytes_that_were_changed_are_an_answer_or_one_sentence(
    running: FakeProvider, api: str, stream: bool, data: st.DataObject
) -> None:
    whole = json.dumps(wholes(api), ensure_ascii=False).encode()
    content = bytearray(b"".join(streams(api)) if stream else whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "cut", "drop", "double"]))
        if how == "flip":
            content[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[max(1, place) :]
        else:
            end = min(len(content), place + data.draw(st.integers(1, 60)))
            content[place:end] = (
                b"" if how == "drop" and len(content) - (end - place) > 1 else content[place:end] * 2
            )
    kind = "text/event-stream" if stream else "application/json"
    fault = Fault("status", status=200, body=bytes(content), headers={"content-type": kind})
    running.faults = lambda *_: fault
    model = model_at(running, api)
    try:
        if stream:
            list(model.stream_chat(QUESTION, CONFIG))
        else:
            model.chat(QUESTION, CONFIG)
    except (ModelUnavailable, ContextOverflow) as error:
        assert "\n" not in str(error)


def model_at(running: FakeProvider, api: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", running.url("openai"))
        patch.setenv("ANTHROPIC_BASE_URL", running.url("anthropic"))
        patch.setenv("GOOGLE_GEMINI_BASE_URL", running.url("gemini"))
        model = open_remote(None, f"{api}/m", Patience(connect=5, between_bytes=10, whole=20))
    model._key = lambda: "k"
    return model


def test_one_in_two_calls_that_fail_leave_the_others_whole(running: FakeProvider) -> None:
    kinds = [
        "reset_midway",
        "garbage",
        "half",
        "empty",
        "status",
        "close_before_headers",
        "half_stream",
        "html",
    ]

    def faults(number: int, _: Asked) -> Fault | None:
        return Fault(kinds[number // 2 % len(kinds)]) if number % 2 else None

    running.faults = faults
    running.asked.clear()
    answered = 0
    for api in WIRES:
        model = model_at(running, api)
        for stream in (False, True) * 16:
            try:
                if stream:
                    text = "".join(chunk.text for chunk in model.stream_chat(QUESTION, CONFIG))
                else:
                    text = model.chat(QUESTION, CONFIG).text
                assert text == "¡Hola!"
                answered += 1
            except ModelUnavailable as error:
                assert error.again
    assert answered == 48
