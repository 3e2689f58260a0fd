"""Tool calls told apart from text, whole or bit by bit."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.generate.tool_calls import CallDelta, ContentDelta, ToolStream, WrittenCall, parse_tool_calls

CALL = '<tool_call>{"name": "tiempo", "arguments": {"ciudad": "A}\\"{ Coruña", "días": [1, 2]}}</tool_call>'
TOLD = WrittenCall("tiempo", '{"ciudad": "A}\\"{ Coruña", "días": [1, 2]}')
CASES = {
    "Nada que llamar. ": ("Nada que llamar. ", []),
    CALL: ("", [TOLD]),
    f"Miro el tiempo.\n{CALL}": ("Miro el tiempo.", [TOLD]),
    f"{CALL}\n{CALL}\n": ("", [TOLD, TOLD]),
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>': ("", [WrittenCall("f", "{}")]),
    '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>': ("", [WrittenCall("f", '{"a": 1}')]),
    '<tool_call>{"name":"f","parameters":{"a":1}}</tool_call>': ("", [WrittenCall("f", '{"a":1}')]),
    '<tool_call>{"name": "f"}</tool_call>': ("", [WrittenCall("f", "{}")]),
    "<tool_call>no es JSON</tool_call>": ("<tool_call>no es JSON</tool_call>", []),
    "a < b <tool": ("a < b <tool", []),
    "<": ("<", []),
    "Miro. \n<tool_call": ("Miro.", []),
    "<tool_": ("", []),
    f"{CALL}\n<tool_ca": ("", [TOLD]),
    "<tool_caja": ("<tool_caja", []),
    "uno <tool_call>{": ("uno<tool_call>{", []),
    '<tool_call>{"name": "f", "arguments": {"a": ': ("", [WrittenCall("f", '{"a": ')]),
    "": ("", []),
}


@pytest.mark.parametrize("text", CASES)
def test_calls_are_told_apart_from_text(text: str) -> None:
    assert parse_tool_calls(text) == CASES[text]


@settings(deadline=None)
@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(1, 9), max_size=60))
def test_it_makes_no_difference_how_the_text_comes(text: str, lengths: list[int]) -> None:
    stream, deltas, rest = ToolStream(), [], text
    for length in lengths:
        deltas += stream.feed(rest[:length])
        rest = rest[length:]
    deltas += [*stream.feed(rest), *stream.finish()]
    content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    calls: list[WrittenCall] = []
    for delta in deltas:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append(WrittenCall(delta.name, ""))
            assert delta.index == len(calls) - 1
            calls[-1] = WrittenCall(calls[-1].name, calls[-1].arguments + delta.arguments)
    assert (content, calls) == CASES[text]


def test_arguments_come_as_they_are_written() -> None:
    stream = ToolStream()
    assert stream.feed('<tool_call>{"name": "f", "argum') == []
    assert stream.feed('ents": {"a"') == [CallDelta(0, "f"), CallDelta(0, arguments='{"a"')]
    assert stream.feed(": [1") == [CallDelta(0, arguments=": [1")]
    assert stream.feed("]}}</tool") == [CallDelta(0, arguments="]}")]
    assert stream.feed("_call>") == stream.finish() == []


def test_what_may_become_a_call_is_held_back() -> None:
    stream = ToolStream()
    assert stream.feed("bien <tool_ca") == [ContentDelta("bien")]
    assert stream.feed("ja> ") == [ContentDelta(" <tool_caja>")]
    assert stream.finish() == [ContentDelta(" ")]


def test_arguments_are_json_as_it_was_written() -> None:
    _, [call] = parse_tool_calls(CALL)
    assert json.loads(call.arguments) == {"ciudad": 'A}"{ Coruña', "días": [1, 2]}
