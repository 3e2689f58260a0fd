"""What is particular to servers that speak OpenAI's API: the wording of a request, odd servers, Yunque's own."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from fake_provider import Answer, Asked, FakeProvider, Fault

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, Tool, ToolFormat
from yunque.llm import Message, ModelUnavailable, Usage, open_model
from yunque.llm.open import open_remote
from yunque.llm.transport import Patience
from yunque.workspace import Workspace

QUESTION = [Message("user", "¿Qué tal?")]
CONFIG = GenerationConfig(max_new_tokens=5)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    for variable in ("YUNQUE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    with FakeProvider() as made:
        yield made


def address(provider: FakeProvider) -> str:
    return provider.url("openai") + "#mini"


def test_a_conversation_is_asked_with_the_settings(provider: FakeProvider) -> None:
    config = GenerationConfig(max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("FIN",), seed=3)
    completion = open_remote(None, address(provider)).chat([Message("system", "sé breve"), *QUESTION], config)
    assert completion.model == address(provider)
    assert provider.asked[0].path == "/v1/chat/completions"
    assert provider.asked[0].body == {
        "model": "mini",
        "messages": [{"role": "system", "content": "sé breve"}, {"role": "user", "content": "¿Qué tal?"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["FIN"],
        "seed": 3,
    }


def test_openai_itself_is_told_the_length_by_its_newer_name(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url("openai"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake")
    open_remote(None, "openai/mini").chat(QUESTION, CONFIG)
    assert provider.asked[0].body["max_completion_tokens"] == 5
    assert "max_tokens" not in provider.asked[0].body


def test_cached_tokens_are_part_of_the_prompts(provider: FakeProvider) -> None:
    provider.answer = Answer(prompt=100, completion=7, cached=60, thoughts=3)
    model = open_remote(None, address(provider))
    assert model.chat(QUESTION, CONFIG).usage == Usage(100, 7, 60)
    assert list(model.stream_chat(QUESTION, CONFIG))[-1].usage == Usage(100, 7, 60)


def test_a_model_opened_by_its_name_is_asked_again(provider: FakeProvider, tmp_path: Any) -> None:
    provider.faults = [Fault("status", status=502), Fault("reset_before_headers")]
    model = open_model(Workspace.open(tmp_path / "ws"), address(provider))
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"
    assert len(provider.asked) == 3


def test_a_stream_that_broke_off_is_not_begun_again_behind_ones_back(
    provider: FakeProvider, tmp_path: Any
) -> None:
    provider.faults = [Fault("half_stream")]
    chunks = open_model(Workspace.open(tmp_path / "ws"), address(provider)).stream_chat(QUESTION, CONFIG)
    assert next(chunks).text == "¡Ho"
    with pytest.raises(ModelUnavailable, match="in the middle"):
        list(chunks)
    assert len(provider.asked) == 1


def test_a_server_that_does_not_stream_is_understood(provider: FakeProvider) -> None:
    def whole(_: int, asked: Asked) -> Fault | None:
        asked.body["stream"] = False
        return None

    provider.faults = whole
    chunks = list(open_remote(None, address(provider)).stream_chat(QUESTION, CONFIG))
    assert ("".join(chunk.text for chunk in chunks), chunks[-1].finish_reason) == ("¡Hola!", "stop")
    assert chunks[-1].usage == Usage(12, 5)


@pytest.mark.parametrize(
    "body",
    [b"hola", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}', b"[" * 9999],
)
@pytest.mark.parametrize("stream", [False, True])
def test_garbage_is_one_clear_sentence(provider: FakeProvider, body: bytes, stream: bool) -> None:
    provider.faults = [Fault("status", status=200, body=body)]
    model = open_remote(None, address(provider))
    with pytest.raises(ModelUnavailable, match=r"not JSON|not a completion|in the middle"):
        list(model.stream_chat(QUESTION, CONFIG)) if stream else model.chat(QUESTION, CONFIG)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": "model is loading"}', "model is loading"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "message": "bad\\n\\u0007 thing"}', "bad thing"),
        (b"plain words", "plain words"),
        (b"<html><b>502</b></html>", r"status 502$"),
        (b"\xff\xfe", "status 502"),
    ],
)
def test_errors_of_every_shape_are_told(provider: FakeProvider, body: bytes, words: str) -> None:
    provider.faults = [Fault("status", status=502, body=body)]
    with pytest.raises(ModelUnavailable, match=words):
        open_remote(None, address(provider)).chat(QUESTION, CONFIG)


def test_an_empty_account_is_not_asked_again(provider: FakeProvider) -> None:
    provider.faults = [Fault("status", status=429, code="insufficient_quota")]
    with pytest.raises(ModelUnavailable) as caught:
        open_remote(None, address(provider)).chat(QUESTION, CONFIG)
    assert not caught.value.again


def test_nobody_listening_is_a_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        model = open_remote(None, f"http://127.0.0.1:{taken.getsockname()[1]}/v1#mini", Patience(connect=2))
        with pytest.raises(ModelUnavailable, match="cannot be reached") as caught:
            model.chat(QUESTION, CONFIG)
    assert caught.value.again


def test_a_text_that_is_no_text_is_sent_as_far_as_it_is_one(provider: FakeProvider) -> None:
    open_remote(None, address(provider)).chat([Message("user", "a\ud800b😀")], CONFIG)
    assert provider.asked[0].body["messages"][0]["content"] == "a\ufffdb😀"


@pytest.mark.parametrize(
    "url", ["http://h/v1", "http://#m", "http://me:pw@h/v1#m", "http://h:x/v1#m", "http://h/v1?a#m"]
)
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_remote(None, url)
    assert "pw" not in str(caught.value).replace("password", "")


def test_the_fake_providers_shapes_are_those_that_openais_own_client_reads(provider: FakeProvider) -> None:
    """The oracle: what the official client makes of the fake provider is what ours does."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=provider.url("openai"), api_key="sk-fake", max_retries=0)
    calls = (("weather", '{"city": "Vigo"}'),)
    ours = open_remote(None, address(provider))
    for answer in (Answer(cached=4), Answer((), calls), Answer(finish="length")):
        provider.answer = answer
        told = client.chat.completions.create(model="mini", messages=[{"role": "user", "content": "?"}])
        read = ours.chat(QUESTION, CONFIG)
        choice = told.choices[0]
        assert (choice.message.content or "", choice.finish_reason) == (read.text, read.finish_reason)
        assert [call.function.arguments for call in choice.message.tool_calls or ()] == [
            call.arguments for call in read.tool_calls
        ]
        details = told.usage.prompt_tokens_details
        assert (
            Usage(told.usage.prompt_tokens, told.usage.completion_tokens, details.cached_tokens) == read.usage
        )
        stream = client.chat.completions.create(
            model="mini", messages=[], stream=True, stream_options={"include_usage": True}
        )
        texts = [part.choices[0].delta.content or "" for part in stream if part.choices]
        assert "".join(texts) == "".join(chunk.text for chunk in ours.stream_chat(QUESTION, CONFIG))
    vectors = client.embeddings.create(model="mini", input=["a", "b"], encoding_format="float")
    assert [len(row.embedding) for row in vectors.data] == [2, 2]
    provider.answer, provider.faults = Answer(), lambda *_: Fault("status", status=429)
    with pytest.raises(openai.RateLimitError, match="out of order"):
        client.chat.completions.create(model="mini", messages=[])
    assert json.dumps(provider.asked[0].body)


def test_a_model_that_takes_tools_only_without_reasoning_is_asked_so(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url("openai"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake")
    message = "Function tools with reasoning_effort are not supported. Set reasoning_effort to 'none'."
    error = {"error": {"message": message, "type": "invalid_request_error", "param": "reasoning_effort"}}

    def faults(_: int, asked: Asked) -> Fault | None:
        refused = "tools" in asked.body and asked.body.get("reasoning_effort") != "none"
        return Fault("status", status=400, body=json.dumps(error).encode()) if refused else None

    provider.faults = faults
    model = open_remote(None, "openai/gpt-x")
    tools = GenerationConfig(format=ToolFormat(tools=(Tool(name="f"),)))
    assert "without reasoning" in model.chat(QUESTION, tools).note
    assert model.chat(QUESTION, CONFIG).note == ""
    assert "reasoning_effort" not in provider.asked[-1].body


def test_half_of_a_surrogate_pair_can_be_written_out_again(provider: FakeProvider) -> None:
    choice = (
        r'{"choices": [{"message": {"content": "a\ud800b \ud83d\ude00 \u00f1"}, "finish_reason": "stop"}]}'
    )
    provider.faults = [Fault("status", status=200, body=b"\xef\xbb\xbf" + choice.encode())]
    assert open_remote(None, address(provider)).chat(QUESTION, CONFIG).text == "a\ufffdb 😀 ñ"
    delta = r'data: {"choices": [{"delta": {"content": "\ud800ñ"}, "finish_reason": "stop"}]}' + "\n\n"
    headers = {"content-type": "text/event-stream"}
    body = b"\xef\xbb\xbf" + delta.encode()
    provider.faults = lambda *_: Fault("status", status=200, body=body, headers=headers)
    chunks = list(open_remote(None, address(provider)).stream_chat(QUESTION, CONFIG))
    assert chunks[0].text == "\ufffdñ"


def test_a_server_that_says_that_it_gave_up_has_not_answered(provider: FakeProvider) -> None:
    provider.answer = Answer(finish="abort")
    model = open_remote(None, address(provider))
    for ask in (lambda: model.chat(QUESTION, CONFIG), lambda: list(model.stream_chat(QUESTION, CONFIG))):
        with pytest.raises(ModelUnavailable, match=r"in the middle of its answer \(abort\)") as caught:
            ask()
        assert caught.value.again


def test_a_servers_cookies_are_not_kept(provider: FakeProvider) -> None:
    model = open_remote(None, address(provider))
    provider.faults = [Fault("status", status=200, body=b"{}", headers={"set-cookie": "a=" + "b" * 3000})]
    with pytest.raises(ModelUnavailable):
        model.chat(QUESTION, CONFIG)
    model.chat(QUESTION, CONFIG)
    assert "cookie" not in provider.asked[1].headers
