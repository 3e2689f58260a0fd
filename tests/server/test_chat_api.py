"""/v1/chat/completions through OpenAI's client: several answers, log-probabilities, forms, tools."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from plain_engine import PlainEngine, plain

import yunque.server.served
from yunque.generate.config import (
    ChoiceFormat,
    GenerationConfig,
    JsonFormat,
    RegexFormat,
    Tool,
    ToolFormat,
)
from yunque.llm import LanguageModel, open_model
from yunque.workspace import Artifact, Workspace

QUESTION: Any = [{"role": "user", "content": "¿Qué tiempo hace en Ávila?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Now", "parameters": SCHEMA},
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
CALLS = (
    'Miro. <tool_call>{"name": "weather", "arguments": {"city": "Ávila"}}</tool_call>\n'
    '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
)


@pytest.fixture
def serve(
    workspace: Workspace,
    put_tiny_model: Callable[..., Artifact],
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Any, PlainEngine]]:
    """Starts a server with the tiny model, or with one that says what it is told to."""

    def serve(*script: str) -> tuple[Any, PlainEngine]:
        put_tiny_model(workspace)
        real: Any = open_model(workspace, "mini")
        # Rotary positions know no end; the conversations here are longer than the 128 tokens of its configuration.
        real.engine.context = 1024
        model: Any = plain(real, *script)
        opened: LanguageModel = model
        monkeypatch.setattr(yunque.server.served, "open_model", lambda *_: opened)
        return start(workspace), model.engine

    return serve


def ask(running: Any, **more: Any) -> Any:
    asked = {"model": "mini", "messages": QUESTION, "max_tokens": 200, **more}
    return running.client().chat.completions.create(**asked)


def test_n_answers_are_n_choices_also_in_a_stream(serve: Any) -> None:
    running, _ = serve()
    asked: dict[str, Any] = {"n": 3, "seed": 1, "max_tokens": 8}
    whole = ask(running, **asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) == 3
    texts, reasons = ["", "", ""], [None, None, None]
    chunks = list(ask(running, **asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens > 8


def test_the_bytes_of_the_logprobs_are_the_answer(serve: Any) -> None:
    running, _ = serve("¿Sí? 👩")
    whole = ask(running, logprobs=True, top_logprobs=4)
    told = whole.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == "¿Sí? 👩"
    assert len(told) == whole.usage.completion_tokens - 1  # the end token writes nothing
    for token in told:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        assert [each.logprob for each in token.top_logprobs] == sorted(
            (each.logprob for each in token.top_logprobs), reverse=True
        )
    streamed = [
        token
        for chunk in ask(running, logprobs=True, top_logprobs=4, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == told
    bare = ask(running, logprobs=True).choices[0].logprobs.content
    assert all(token.top_logprobs == [] for token in bare)
    assert ask(running).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("asked", "config"),
    [
        (
            {"presence_penalty": 1.5, "frequency_penalty": -1},
            {"presence_penalty": 1.5, "frequency_penalty": -1.0},
        ),
        ({"logit_bias": {"5": -100, "7": 2.5}}, {"logit_bias": {5: -100.0, 7: 2.5}}),
        (
            {"extra_body": {"top_k": 4, "min_p": 0.1, "typical_p": 0.9}},
            {"top_k": 4, "min_p": 0.1, "typical_p": 0.9},
        ),
        ({"extra_body": {"top_k": -1, "repetition_penalty": 1.2}}, {"repetition_penalty": 1.2}),
        ({"extra_body": {"stop_token_ids": [7], "ignore_eos": True}}, {"stop_ids": (7,), "ignore_end": True}),
        ({"stop": "FIN", "seed": -5}, {"stop": ("FIN",), "seed": -5}),
        ({"response_format": {"type": "json_object"}}, {"format": JsonFormat()}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}},
            {"format": JsonFormat(json_schema=SCHEMA)},
        ),
        ({"extra_body": {"guided_json": SCHEMA}}, {"format": JsonFormat(json_schema=SCHEMA)}),
        ({"extra_body": {"guided_regex": "a+"}}, {"format": RegexFormat(pattern="a+")}),
        ({"extra_body": {"guided_choice": ["sí", "no"]}}, {"format": ChoiceFormat(options=("sí", "no"))}),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, {"format": RegexFormat(pattern="a+")}),
        (
            {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
            {"format": JsonFormat(json_schema=SCHEMA)},
        ),
        ({"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto"}, {}),
    ],
)
def test_every_parameter_reaches_the_engine(
    serve: Any, asked: dict[str, Any], config: dict[str, Any]
) -> None:
    running, engine = serve("Sí")
    ask(running, **asked)
    assert engine.configs[0] == GenerationConfig(max_new_tokens=200, temperature=1.0, **config)


def test_calls_of_tools_are_told_apart_from_the_text(serve: Any) -> None:
    running, engine = serve(CALLS)
    answer = ask(running, tools=[WEATHER, CLOCK])
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("Miro.", "tool_calls")
    assert [call.function.name for call in message.tool_calls] == ["weather", "clock"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Ávila"}
    assert len({call.id for call in message.tool_calls}) == 2
    assert engine.configs[0].format == ToolFormat(
        tools=(Tool(name="weather", description="Now", parameters=SCHEMA), Tool(name="clock"))
    )


def test_a_stream_of_calls_is_the_same_calls_in_pieces(serve: Any) -> None:
    running, _ = serve(CALLS)
    text, names, ids, arguments = "", {}, {}, {0: "", 1: ""}
    for chunk in ask(running, tools=[WEATHER, CLOCK], stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            if call.function.name:
                names[call.index], ids[call.index] = call.function.name, call.id
            arguments[call.index] += call.function.arguments or ""
    assert (text, names, choice.finish_reason) == ("Miro.", {0: "weather", 1: "clock"}, "tool_calls")
    assert [json.loads(each) for each in arguments.values()] == [{"city": "Ávila"}, {}]
    assert all(id.startswith("call_") for id in ids.values())


@pytest.mark.parametrize(
    ("choice", "parallel", "expected"),
    [
        ("none", None, None),
        (None, None, (["weather", "clock"], False, True)),
        ("auto", False, (["weather", "clock"], False, False)),
        ("required", None, (["weather", "clock"], True, True)),
        ({"type": "function", "function": {"name": "clock"}}, None, (["clock"], True, False)),
    ],
)
def test_the_choice_of_a_tool(serve: Any, choice: Any, parallel: Any, expected: Any) -> None:
    running, engine = serve("No hace falta.")
    asked = {"tool_choice": choice, "parallel_tool_calls": parallel}
    more = {name: value for name, value in asked.items() if value is not None}
    answer = ask(running, tools=[WEATHER, CLOCK], **more)
    assert answer.choices[0].message.content == "No hace falta." and answer.choices[0].finish_reason == "stop"
    form = engine.configs[0].format
    assert (form and ([tool.name for tool in form.tools], form.required, form.parallel)) == expected


def test_a_conversation_with_results_is_read_with_its_calls(serve: Any) -> None:
    running, engine = serve(CALLS)
    asked = ask(running, tools=[WEATHER, CLOCK]).choices[0].message
    turns = [*QUESTION, asked.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "12 °C"} for call in asked.tool_calls]
    ask(running, messages=turns, tools=[WEATHER], max_tokens=20)
    read = engine.tokenizer.decode(engine.prompts[-1])
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Ávila"}}</tool_call>' in read
    assert '<tool_call>{"name": "clock", "arguments": {}}</tool_call>' in read
    assert read.count("<tool_response>\n12 °C\n</tool_response>") == 2
    assert "weather" in engine.tokenizer.decode(engine.prompts[0])


def test_an_answer_cut_off_in_a_call_says_so(serve: Any) -> None:
    running, engine = serve(CALLS)
    cut = len(engine.tokenizer.encode(CALLS[:60]))
    answer = ask(running, tools=[CLOCK], max_tokens=cut)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls[0].function.arguments.startswith('{"city"')


def test_text_that_some_clients_would_break_a_line_at_is_sent_whole(serve: Any) -> None:
    text = "uno\u2028dos\u0085tres\r\ncuatro"
    running, _ = serve(text)
    body = {"model": "mini", "messages": QUESTION, "stream": True, "max_tokens": 50}
    with httpx.stream("POST", f"{running.url}/chat/completions", json=body, timeout=30) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(parts) == text


def test_an_app_takes_no_parameter_that_would_change_its_answers_shape() -> None:
    from yunque.errors import UserError
    from yunque.server.served import Settings
    from yunque.server.served_app import ServedApp

    app = ServedApp.__new__(ServedApp)
    app.ref = "app/equipaje@1"
    for more in ({"n": 2}, {"logprobs": 1}, {"format": JsonFormat()}, {"echo": True}):
        with pytest.raises(UserError, match="one answer"):
            app.complete("¿?", Settings(GenerationConfig(**more), True))
    with pytest.raises(UserError, match="reads text"):
        app.complete([1, 2], Settings(GenerationConfig(), True))
