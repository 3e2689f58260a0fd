"""The server as OpenAI's own client sees it; the models here are scripted, so that every answer is known."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

import yunque.server.served
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, LanguageModel, Message, ModelUnavailable, ScriptedModel
from yunque.server.service import ServeOptions
from yunque.workspace import Workspace

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "¿Cuántas maletas?"}]
ANSWER = "Una maleta de 23 kg, señora."
TOOL = {"type": "function", "function": {"name": "f"}}


class Recording(ScriptedModel):
    """Keeps the settings of each request, and says how far a stream was read."""

    def __init__(self, script: Any = lambda _: ANSWER) -> None:
        super().__init__(script)
        self.configs: list[GenerationConfig] = []
        self.given = 0
        self.ended = threading.Event()

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        self.configs.append(config)
        try:
            for chunk in super().stream_chat(messages, config):
                self.given += 1
                yield chunk
        finally:
            self.ended.set()


@pytest.fixture
def served(
    workspace: Workspace, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[LanguageModel], Any]:
    """Starts a server whose model `mini` is the one given."""

    def with_model(model: LanguageModel, **options: Any) -> Any:
        workspace.put("model", "mini", {"config.json": b"{}"})
        monkeypatch.setattr(yunque.server.served, "open_model", lambda *_: model)
        return start(workspace, **options)

    return with_model


def test_a_conversation_is_answered_with_usage(served: Any) -> None:
    model = Recording()
    client = served(model).client()
    answer = client.chat.completions.create(
        model="mini",
        messages=[{"role": "developer", "content": "breve"}, *QUESTION],
        max_completion_tokens=20,
        temperature=0.5,
        top_p=0.9,
        stop=["FIN", "END"],
        seed=7,
        user="somebody",
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        6,
        9,
    )
    assert model.asked[0] == [Message("system", "breve"), Message("user", "¿Cuántas maletas?")]
    assert model.configs[0] == GenerationConfig(
        max_new_tokens=20, temperature=0.5, top_p=0.9, stop=("FIN", "END"), seed=7
    )


def test_a_length_that_is_reached_is_said(served: Any) -> None:
    answer = (
        served(Recording()).client().chat.completions.create(model="mini", messages=QUESTION, max_tokens=2)
    )
    assert answer.choices[0].message.content == "Una maleta"
    assert answer.choices[0].finish_reason == "length"


def test_a_stream_is_the_same_answer_in_pieces(served: Any) -> None:
    client = served(Recording()).client()
    chunks = list(
        client.chat.completions.create(
            model="mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert len([text for text in texts if text]) == 6
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_has_no_usage_unless_it_is_asked_for(served: Any) -> None:
    chunks = list(
        served(Recording()).client().chat.completions.create(model="mini", messages=QUESTION, stream=True)
    )
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_a_text_is_gone_on_with(served: Any) -> None:
    client = served(Recording()).client()
    whole = client.completions.create(model="mini", prompt="Érase una vez")
    assert (whole.choices[0].text, whole.object) == (ANSWER, "text_completion")
    stream = client.completions.create(model="mini", prompt=["Érase una vez"], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == ANSWER


def test_models_are_listed_and_every_form_of_a_name_is_answered(served: Any, workspace: Workspace) -> None:
    client = served(Recording()).client()
    workspace.put("dataset", "mini", {"rows.jsonl": b""})  # the same name in another kind is no obstacle
    assert [model.id for model in client.models.list()] == ["mini"]
    for name in ("mini", "model/mini", "mini@1", "model/mini@1"):
        assert (
            client.chat.completions.create(model=name, messages=QUESTION).choices[0].message.content == ANSWER
        )
        assert client.models.retrieve(name).id == name


@pytest.mark.parametrize(
    "name", ["nada", "mini@9", "dataset/mini", "http://127.0.0.1:1/v1#x", "../mini", "MINI"]
)
def test_a_model_that_is_not_there_is_404_and_nothing_else_is_opened(served: Any, name: str) -> None:
    client = served(Recording()).client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=QUESTION)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(name)


def test_parts_of_type_text_are_a_message(served: Any) -> None:
    model = Recording()
    parts: Any = [{"type": "text", "text": "¿Cuántas"}, {"type": "text", "text": "maletas?"}]
    served(model).client().chat.completions.create(
        model="mini", messages=[{"role": "user", "content": parts}]
    )
    assert model.asked[0] == [Message("user", "¿Cuántas\nmaletas?")]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"logprobs": 3}, "logprobs", "boolean"),
        ({"top_logprobs": 3}, "top_logprobs", "`logprobs` is true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "already"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "no tool 'g'",
        ),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "tools", "one form"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be one of"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "must provide"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "one form"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"audio": {}}, "audio", "not supported"),
        ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "pattern"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({"temperature": 10**400}, "temperature", "number"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream only"),
        ({"temprature": 1}, "temprature", "Unrecognized request argument"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["a"] * 33}, "stop", "at most 32"),
        ({"stop": 7}, "stop", "string"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hola"}, "messages", "list"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "must be one of"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must provide"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1"),
        (
            {"messages": [{"role": "tool", "content": "7", "tool_call_id": "x"}]},
            "messages[0].tool_call_id",
            "no message before it",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "text",
        ),
        ({"messages": None}, "messages", "must provide"),
        ({"model": 7}, "model", "string"),
        ({"stream": "yes"}, "stream", "boolean"),
    ],
)
def test_a_wrong_parameter_is_400_and_named(
    served: Any, change: dict[str, Any], param: str, words: str
) -> None:
    running = served(Recording())
    body = {"model": "mini", "messages": QUESTION, **change}
    response = httpx.post(f"{running.url}/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]


def test_neutral_and_unused_parameters_change_nothing(served: Any) -> None:
    answer = (
        served(Recording())
        .client()
        .chat.completions.create(
            model="mini",
            messages=QUESTION,
            n=1,
            logprobs=False,
            presence_penalty=0,
            tools=[],
            response_format={"type": "text"},
            store=False,
            metadata={"a": "b"},
            seed=None,
            extra_body={"top_k": 5},
        )
    )
    assert answer.choices[0].message.content == ANSWER


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "mini", "model": "mini", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "mini", "metadata": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"model": "mini", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"1": 1e999}}',
        b"[" * 100_000,
        b'{"model": "mini", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "mini", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "mini", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_400(served: Any, body: bytes) -> None:
    response = httpx.post(f"{served(Recording()).url}/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=UTF-8", 200),
        ("Application/JSON", 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_a_body_that_says_it_is_something_else_than_json_is_415(served: Any, kind: str, status: int) -> None:
    body = json.dumps({"model": "mini", "messages": QUESTION})
    response = httpx.post(
        f"{served(Recording()).url}/chat/completions", content=body, headers={"content-type": kind}
    )
    assert response.status_code == status
    if status != 200:
        assert response.json()["error"]["code"] == "unsupported_media_type"


def test_a_body_that_is_too_long_is_413_also_when_its_length_is_not_told(served: Any) -> None:
    running = served(Recording())
    long = json.dumps({"model": "mini", "messages": [{"role": "user", "content": "x" * 4_000_000}]}).encode()
    assert httpx.post(f"{running.url}/completions", content=long).status_code == 413
    assert httpx.post(f"{running.url}/completions", content=iter([long])).status_code == 413


def test_unknown_paths_and_methods_have_the_same_shape_of_error(served: Any) -> None:
    running = served(Recording())
    missing = httpx.get(f"{running.url}/nothing")
    wrong = httpx.get(f"{running.url}/chat/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (
        405,
        "method_not_allowed",
        "POST",
    )


def test_a_model_that_is_away_is_503_and_a_mistake_of_the_user_400(served: Any) -> None:
    running = served(Recording([ModelUnavailable("mini is away"), UserError("too long")]))
    with pytest.raises(openai.InternalServerError, match="mini is away") as away:
        running.client().chat.completions.create(model="mini", messages=QUESTION)
    assert away.value.status_code == 503
    with pytest.raises(openai.BadRequestError, match="too long"):
        running.client().chat.completions.create(model="mini", messages=QUESTION, stream=True)


def test_a_bug_is_500_and_tells_the_client_and_the_log_nothing_of_the_request(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    running = served(Recording([RuntimeError("secreto de Ana"), "hola"]))
    with pytest.raises(openai.InternalServerError) as caught:
        running.client().chat.completions.create(model="mini", messages=QUESTION)
    assert caught.value.status_code == 500
    assert "Ana" not in str(caught.value) and "Ana" not in caplog.text
    assert "RuntimeError at " in caplog.text
    assert (
        running.client().chat.completions.create(model="mini", messages=QUESTION).choices[0].message.content
        == "hola"
    )


@pytest.mark.parametrize(
    ("error", "words"), [(ModelUnavailable("mini broke off"), "mini broke off"), (KeyError("x"), "failed")]
)
def test_an_error_in_mid_stream_is_an_event(served: Any, error: Exception, words: str) -> None:
    class Breaking(ScriptedModel):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            del messages, config
            yield Chunk("Una ")
            raise error

    stream = (
        served(Breaking([])).client().chat.completions.create(model="mini", messages=QUESTION, stream=True)
    )
    texts = []
    with pytest.raises(openai.APIError, match=words):
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert "".join(texts) == "Una "


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_the_generation(served: Any, stream: bool) -> None:
    class Endless(Recording):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            del messages, config
            try:
                while True:
                    self.given += 1
                    yield Chunk("y ")
                    time.sleep(0.005)
            finally:
                self.ended.set()

    model = Endless()
    body = {"model": "mini", "messages": QUESTION, "stream": stream}
    url = f"{served(model).url}/chat/completions"
    # Patient enough that the model has begun, also on a busy machine, before the client gives up.
    patience = httpx.Timeout(10, read=1.5)
    with suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=patience) as response:
        next(response.iter_bytes())
    assert model.ended.wait(15)
    assert model.given >= 1


def test_the_event_loop_answers_while_models_are_busy_and_too_many_are_told_so(
    served: Any,
) -> None:
    release = threading.Event()

    def slow(_: Sequence[Message]) -> str:
        release.wait(10)
        return ANSWER

    running = served(Recording(slow), options=ServeOptions(workers=4, most_waiting=64))
    statuses: list[int] = []

    def ask() -> None:
        body = {"model": "mini", "messages": QUESTION}
        statuses.append(httpx.post(f"{running.url}/chat/completions", json=body, timeout=20).status_code)

    threads = [threading.Thread(target=ask) for _ in range(75)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while 429 not in statuses and time.monotonic() < deadline:
        time.sleep(0.02)
    assert httpx.get(f"{running.root}/health", timeout=2).json()["status"] == "ok"
    assert [model.id for model in running.client().models.list()] == ["mini"]
    release.set()
    for thread in threads:
        thread.join(20)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 64
