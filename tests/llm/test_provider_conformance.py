"""One suite for every adapter: the same conversation, the same faults, against a fake provider on this machine."""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fake_provider import Answer, FakeProvider, Fault

from yunque.errors import UserError
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat, Tool, ToolFormat
from yunque.llm import Message, ModelUnavailable, ToolCall, Usage
from yunque.llm.face import Chunk, Completion, ContextOverflow, joined_calls
from yunque.llm.open import open_remote
from yunque.llm.remote import RemoteModel
from yunque.llm.transport import Patience
from yunque.llm.wire import Declined

QUESTION = [Message("system", "Sé breve."), Message("user", "¿Qué tal?")]
CONFIG = GenerationConfig(max_new_tokens=50)
PATIENT = Patience(connect=5, between_bytes=10, whole=20)
QUICK = Patience(connect=5, between_bytes=0.2, whole=20)
TOOLS = ToolFormat(tools=(Tool(name="weather", description="d", parameters={"type": "object"}),))
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass
class Adapter:
    """One way to reach the fake provider."""

    api: str
    name: str
    variable: str | None
    key: str | None

    def open(self, provider: FakeProvider, patience: Patience = PATIENT) -> RemoteModel:
        name = self.name if self.variable else f"{provider.url('openai')}#fake-small"
        return open_remote(None, name, patience)


ADAPTERS = [
    Adapter("openai", "openai/fake-small", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
    Adapter("anthropic", "anthropic/fake-small", "ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"),
    Adapter("gemini", "gemini/fake-small", "GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"),
    Adapter("openai", "ollama/fake-small", "OLLAMA_HOST", None),
    Adapter("openai", "vllm/fake-small", "VLLM_BASE_URL", None),
    Adapter("openai", "address", None, "YUNQUE_API_KEY"),
]
KEY = "sk-fake-0123456789"


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as made:
        yield made


@pytest.fixture
def provider(running: FakeProvider) -> FakeProvider:
    running.answer, running.faults, running.connections = Answer(), (), 0
    running.asked.clear()
    return running


def named(adapter: Adapter) -> str:
    return adapter.name.partition("/")[0]


@pytest.fixture(params=ADAPTERS, ids=named)
def adapter(
    request: pytest.FixtureRequest, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> Adapter:
    chosen: Adapter = request.param
    for each in ADAPTERS:
        for variable in (each.variable, each.key):
            if variable:
                monkeypatch.delenv(variable, raising=False)
    if chosen.variable:
        monkeypatch.setenv(chosen.variable, provider.url(chosen.api))
    if chosen.key:
        monkeypatch.setenv(chosen.key, KEY)
    return chosen


@pytest.fixture
def model(adapter: Adapter, provider: FakeProvider) -> Iterator[RemoteModel]:
    opened = adapter.open(provider)
    yield opened
    opened.close()


def joined(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def ask(model: RemoteModel, stream: bool, config: GenerationConfig = CONFIG) -> Completion:
    """The answer, put together from a stream if it is one."""
    if not stream:
        return model.chat(QUESTION, config)
    chunks = list(model.stream_chat(QUESTION, config))
    last = chunks[-1]
    assert last.finish_reason and last.usage and last.model
    calls = joined_calls(part for chunk in chunks for part in chunk.tool_calls)
    return Completion(joined(chunks), last.model, last.finish_reason, last.usage, calls, last.cost, last.note)


# Of those that share a wire one is enough where the connection is what is tried.
EACH_WIRE = pytest.mark.parametrize("adapter", ADAPTERS[:3], ids=named, indirect=True)
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@BOTH
def test_a_conversation_is_answered(model: RemoteModel, provider: FakeProvider, stream: bool) -> None:
    answer = ask(model, stream)
    assert (answer.text, answer.finish_reason, answer.model) == ("¡Hola!", "stop", model.name)
    assert answer.usage == Usage(12, 5)
    assert provider.asked[0].stream == stream
    assert provider.asked[0].model == "fake-small"


@BOTH
def test_a_stream_is_told_piece_by_piece_and_a_text_is_gone_on_with(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    provider.answer = Answer(("a", "b\u2028", "ñ"))
    if stream:
        chunks = list(model.stream_complete("Érase", CONFIG))
        # Between them are signs of life, which say nothing.
        assert [chunk.text for chunk in chunks if chunk.text] == ["a", "b\u2028", "ñ"]
        assert chunks[-1].finish_reason and chunks[-1].usage
        assert all(chunk.usage is None and chunk.finish_reason is None for chunk in chunks[:-1])
    else:
        assert model.complete("Érase", CONFIG).text == "ab\u2028ñ"
    assert "Érase" in json.dumps(provider.asked[0].body, ensure_ascii=False)


@BOTH
def test_an_answer_that_was_cut_says_so(model: RemoteModel, provider: FakeProvider, stream: bool) -> None:
    provider.answer = Answer(finish="length")
    assert ask(model, stream).finish_reason == "length"


@BOTH
def test_calls_of_tools_are_read_and_their_results_sent_back(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    calls = (("weather", '{"city": "Málaga"}'), ("weather", '{"city": "Vigo"}'))
    provider.answer = Answer((), calls)
    answer = ask(model, stream, GenerationConfig(max_new_tokens=50, format=TOOLS))
    assert answer.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]
    assert len({call.id for call in answer.tool_calls}) == 2
    provider.answer = Answer()
    talk = [*QUESTION, Message("assistant", "", answer.tool_calls)]
    talk += [Message("tool", f"{n} grados", tool_call_id=call.id) for n, call in enumerate(answer.tool_calls)]
    assert model.chat(talk, GenerationConfig(max_new_tokens=50, format=TOOLS)).text == "¡Hola!"
    sent = json.dumps(provider.asked[-1].body, ensure_ascii=False)
    assert "0 grados" in sent and "1 grados" in sent and "Vigo" in sent


@BOTH
def test_json_by_a_schema_is_asked_for(model: RemoteModel, provider: FakeProvider, stream: bool) -> None:
    provider.answer = Answer(('{"city": ', '"Vigo"}'))
    config = GenerationConfig(max_new_tokens=50, format=JsonFormat(json_schema=SCHEMA))
    assert json.loads(ask(model, stream, config).text) == {"city": "Vigo"}
    assert '"city"' in json.dumps(provider.asked[0].body)


@BOTH
def test_a_choice_is_one_of_the_texts(model: RemoteModel, provider: FakeProvider, stream: bool) -> None:
    config = GenerationConfig(max_new_tokens=50, format=ChoiceFormat(options=("sí", "no")))
    wrapped = model.provider in ("openai", "anthropic", "gemini", "ollama")
    provider.answer = Answer(('{"answer":', ' "sí"}')) if wrapped else Answer(("s", "í"))
    assert ask(model, stream, config).text == "sí"
    assert '"no"' in json.dumps(provider.asked[0].body)


@BOTH
def test_a_refusal_is_told_and_is_not_an_answer(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    for finish in ("refusal", "content_filter"):
        provider.answer = Answer(finish=finish)
        with pytest.raises(Declined, match="declined to answer") as caught:
            ask(model, stream)
        assert not caught.value.again
        assert caught.value.usage is not None


@BOTH
def test_usage_that_is_not_told_is_estimated_and_says_so(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    provider.answer = Answer(usage=False)
    answer = ask(model, stream)
    # 20 bytes were asked ("Sé breve.¿Qué tal?" has 21), "¡Hola!" is 7.
    assert answer.usage == Usage(-(-len("Sé breve.¿Qué tal?".encode()) // 4), 2)
    assert "estimated" in answer.note


FAULTS = {
    "502": Fault("status", status=502),
    "529": Fault("status", status=529),
    "reset before": Fault("reset_before_headers"),
    "closed before": Fault("close_before_headers"),
    "reset after": Fault("reset_after_headers"),
    "reset midway": Fault("reset_midway"),
    "half": Fault("half"),
    "half a stream": Fault("half_stream"),
    "short length": Fault("short_length"),
    "long length": Fault("long_length"),
    "garbage": Fault("garbage"),
    "wrong shape": Fault("wrong_shape"),
    "wrong UTF-8": Fault("wrong_utf8"),
    "empty": Fault("empty"),
    "a web page": Fault("html"),
    "an error event": Fault("error_event"),
    "broken gzip": Fault("broken_gzip"),
}


@EACH_WIRE
@BOTH
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_clear_sentence_and_may_be_tried_again(
    model: RemoteModel, provider: FakeProvider, stream: bool, fault: Fault
) -> None:
    provider.answer = Answer(tuple("abcdefghij"))
    provider.faults = [fault]
    with pytest.raises(ModelUnavailable) as caught:
        ask(model, stream)
    assert caught.value.again, caught.value
    message = str(caught.value)
    assert message.startswith(model.name) and "\n" not in message and KEY not in message
    assert len(provider.asked) == 1  # one attempt
    # The control, and that the connections are none the worse for it: the next call is answered, or the one after,
    # where bytes that belong to nothing were left in a connection.
    with contextlib.suppress(ModelUnavailable):
        ask(model, stream)
    assert ask(model, stream).text == "abcdefghij"


@EACH_WIRE
@BOTH
@pytest.mark.parametrize("kind", ["silence", "silence_midway"])
def test_silence_is_given_up(adapter: Adapter, provider: FakeProvider, stream: bool, kind: str) -> None:
    if kind == "silence" and not stream:
        pytest.skip("an answer that is not streamed may be silent until it is written")
    model = adapter.open(provider, QUICK)
    provider.faults = [Fault(kind, seconds=3)]
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"was silent for 0.2 s") as caught:
        ask(model, stream)
    assert caught.value.again
    assert time.monotonic() - started < 2.5


@EACH_WIRE
@BOTH
def test_a_drip_is_given_up_when_the_whole_takes_too_long(
    adapter: Adapter, provider: FakeProvider, stream: bool
) -> None:
    model = adapter.open(provider, Patience(connect=5, between_bytes=10, whole=0.4))
    provider.faults = [Fault("drip", seconds=0.03)]
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"had not finished after 0.4 s"):
        ask(model, stream)
    assert 0.3 < time.monotonic() - started < 3


@EACH_WIRE
def test_endless_comments_are_given_up(adapter: Adapter, provider: FakeProvider) -> None:
    model = adapter.open(provider, Patience(connect=5, between_bytes=10, whole=0.4))
    provider.faults = [Fault("endless", seconds=0.05)]
    with pytest.raises(ModelUnavailable, match=r"had not finished after 0.4 s"):
        ask(model, stream=True)


@EACH_WIRE
@BOTH
@pytest.mark.parametrize("kind", ["huge", "gzip_bomb"])
def test_what_would_fill_the_memory_is_not_read(
    model: RemoteModel, provider: FakeProvider, stream: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yunque.llm.transport._MOST_BYTES", 1_000_000)
    monkeypatch.setattr("yunque.llm.transport._MOST_BYTES_OF_A_STREAM", 1_000_000)
    provider.faults = [Fault(kind, size=8_000_000)]
    with pytest.raises(ModelUnavailable, match="sent more than 1 MB"):
        ask(model, stream)


def test_what_comes_after_the_end_is_not_read(model: RemoteModel, provider: FakeProvider) -> None:
    provider.faults = [Fault("double_done")]
    assert ask(model, stream=True).text in ("¡Hola!",)


@BOTH
def test_a_body_called_by_another_type_is_read_all_the_same(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    provider.faults = [Fault("wrong_type")]
    assert ask(model, stream).text == "¡Hola!"


@BOTH
@pytest.mark.parametrize(
    ("headers", "after"),
    [({"retry-after": "7"}, 7.0), ({"retry-after-ms": "250", "retry-after": "1"}, 0.25), ({}, None)],
)
def test_a_limit_says_how_long_to_wait(
    model: RemoteModel, provider: FakeProvider, stream: bool, headers: dict[str, str], after: float | None
) -> None:
    provider.faults = [Fault("status", status=429, headers=headers)]
    with pytest.raises(ModelUnavailable, match="status 429: the fake provider") as caught:
        ask(model, stream)
    assert (caught.value.again, caught.value.after) == (True, after)


def test_a_date_to_wait_for_is_understood(model: RemoteModel, provider: FakeProvider) -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    provider.faults = [Fault("status", status=503, headers={"retry-after": date})]
    with pytest.raises(ModelUnavailable) as caught:
        ask(model, stream=False)
    assert caught.value.after == pytest.approx(60, abs=2)


@BOTH
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_says_which_one_to_set(
    model: RemoteModel, provider: FakeProvider, adapter: Adapter, stream: bool, status: int
) -> None:
    provider.faults = [Fault("status", status=status, message=f"bad key {KEY}")]
    with pytest.raises(ModelUnavailable, match="yunque key set") as caught:
        ask(model, stream)
    assert not caught.value.again
    assert (adapter.key or "_KEY") in str(caught.value)
    assert KEY not in str(caught.value)


def test_an_unknown_model_is_not_asked_for_again(model: RemoteModel, provider: FakeProvider) -> None:
    provider.faults = [Fault("status", status=404)]
    with pytest.raises(ModelUnavailable, match="does not know this model") as caught:
        ask(model, stream=False)
    assert not caught.value.again


@BOTH
def test_a_prompt_that_is_too_long_is_an_overflow(
    model: RemoteModel, provider: FakeProvider, adapter: Adapter, stream: bool
) -> None:
    message, room = {
        "openai": (
            "This model's maximum context length is 100 tokens. However, you requested 120 tokens "
            "(70 in the messages, 50 in the completion).",
            30,
        ),
        "anthropic": ("input length and `max_tokens` exceed context limit: 70 + 50 > 100, decrease it", 30),
        "gemini": ("The input token count (120) exceeds the maximum number of tokens allowed (100).", 0),
    }[adapter.api]
    provider.faults = [Fault("status", status=400, message=message)]
    with pytest.raises(ContextOverflow) as caught:
        ask(model, stream)
    assert caught.value.room == room


@BOTH
def test_a_setting_that_the_model_does_not_take_is_left_out_and_told(
    model: RemoteModel, provider: FakeProvider, stream: bool
) -> None:
    def faults(_: int, asked: Any) -> Fault | None:
        if "temperature" in json.dumps(asked.body):
            return Fault("status", status=400, message="`temperature` is deprecated for this model.")
        return None

    provider.faults = faults
    config = GenerationConfig(max_new_tokens=50, temperature=0.7)
    answer = ask(model, stream, config)
    assert answer.text == "¡Hola!" and "takes no temperature" in answer.note
    assert len(provider.asked) == 2
    assert ask(model, stream, config).text == "¡Hola!"
    assert len(provider.asked) == 3  # it was learned


def test_a_refusal_of_something_else_is_not_tried_without_it(
    model: RemoteModel, provider: FakeProvider
) -> None:
    provider.faults = lambda *_: Fault("status", status=400, message="messages.0: role is not supported")
    with pytest.raises(ModelUnavailable, match=r"status 400: messages\.0"):
        ask(model, stream=False)
    assert len(provider.asked) == 1


def test_a_redirect_is_not_followed_with_the_key(model: RemoteModel, provider: FakeProvider) -> None:
    with FakeProvider() as elsewhere:
        provider.faults = [Fault("redirect", location=elsewhere.url("openai") + "/chat/completions")]
        with pytest.raises(ModelUnavailable, match="elsewhere"):
            ask(model, stream=False)
        assert elsewhere.asked == []


def test_the_key_is_sent_as_the_api_wants_it(
    model: RemoteModel, provider: FakeProvider, adapter: Adapter
) -> None:
    ask(model, stream=False)
    headers, told = provider.asked[0].headers, provider.asked[0]
    header = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}.get(adapter.api, "authorization")
    value = f"Bearer {KEY}" if adapter.api == "openai" else KEY
    assert headers.get(header) == (value if adapter.key else None)
    assert KEY not in told.path and KEY not in json.dumps(told.body)


def test_several_answers_are_refused_before_anything_is_sent(
    model: RemoteModel, provider: FakeProvider
) -> None:
    for more in ({"n": 2}, {"logprobs": 1}, {"echo": True}, {"num_beams": 2}):
        for ask_it in (model.chat, model.stream_chat):
            with pytest.raises(UserError):
                ask_it(QUESTION, GenerationConfig(**more))
    assert provider.asked == []


def test_threads_share_a_model(model: RemoteModel, provider: FakeProvider) -> None:
    from concurrent.futures import ThreadPoolExecutor

    provider.answer = lambda asked: Answer((asked.headers["content-length"],))
    texts = ["x" * n for n in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: model.complete(text, CONFIG).text, texts))
    lengths = [int(answer) for answer in answers]
    assert [b - a for a, b in itertools.pairwise(lengths)] == [1] * 23


@BOTH
def test_connections_are_used_again(model: RemoteModel, provider: FakeProvider, stream: bool) -> None:
    for _ in range(4):
        ask(model, stream)
    assert provider.connections == 1


def test_a_call_of_a_tool_written_as_no_object_is_sent_back_as_one(
    model: RemoteModel, provider: FakeProvider
) -> None:
    talk = [*QUESTION, Message("assistant", "", (ToolCall("c!", "weather", "Vigo"),))]
    talk.append(Message("tool", "7", tool_call_id="c!"))
    assert model.chat(talk, CONFIG).text == "¡Hola!"
    assert "c!" not in json.dumps(provider.asked[0].body)
