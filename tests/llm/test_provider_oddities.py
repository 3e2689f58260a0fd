"""What servers do that no documentation says: odd streams, numbers, calls and proxies, and many callers at once."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_provider import Answer, Asked, FakeProvider, Fault

from yunque.generate.config import ChoiceFormat, GenerationConfig
from yunque.llm import Message, ModelUnavailable, ToolCall, Usage
from yunque.llm.face import Chunk, joined_calls
from yunque.llm.network import BadProxy, _proxy
from yunque.llm.open import open_remote
from yunque.llm.openai_wire import OpenAIWire
from yunque.llm.remote import RemoteModel
from yunque.llm.transport import Patience
from yunque.llm.wire import Unanswered

QUESTION = [Message("user", "hello there")]
CONFIG = GenerationConfig(max_new_tokens=50)
PATIENT = Patience(connect=5, between_bytes=10, whole=20)
Step = bytes | float


class RawServer:
    """Answers every request with these bytes; a number is a pause in seconds, after the last the line is cut."""

    def __init__(self, *steps: Step, hold: float = 0.0) -> None:
        self._steps, self._hold = steps, hold
        self._over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            got = b""
            while b"\r\n\r\n" not in got:
                got += connection.recv(65536)
            head, _, body = got.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            while length and len(body) < int(length[1]):
                body += connection.recv(65536)
            for step in self._steps:
                if isinstance(step, float):
                    self._over.wait(step)
                else:
                    connection.sendall(step)
            self._over.wait(self._hold)

    def __enter__(self) -> "RawServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listening.close()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def raw(block: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(block), block)


def event(data: Any) -> bytes:
    return raw(b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n")


def piece(text: str | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    delta = {**({} if text is None else {"content": text}), **more}
    return event({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 6}})


def whole(body: Any) -> bytes:
    told = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(told)}\r\n\r\n"
    return head.encode() + told


def opened(server: RawServer, patience: Patience = PATIENT) -> RemoteModel:
    return open_remote(None, f"{server.url}#m", patience)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    for variable in ("YUNQUE_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(variable, raising=False)
    with FakeProvider() as made:
        monkeypatch.setenv("OPENAI_BASE_URL", made.url("openai"))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.url("anthropic"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
        yield made


# Settings that a model does not take -------------------------------------------------------------------------------


def test_calls_that_learn_of_a_setting_at_the_same_time_are_all_answered(provider: FakeProvider) -> None:
    together = threading.Barrier(6)

    def faults(number: int, asked: Asked) -> Fault | None:
        if number < 6:
            together.wait(5)  # all six were sent before the first refusal
        if "temperature" not in asked.body:
            return None
        return Fault("status", status=400, message="Unsupported value: 'temperature' does not support 0")

    provider.faults = faults
    model = open_remote(None, "openai/gpt-x", PATIENT)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: model.chat(QUESTION, CONFIG), range(6)))
    assert [(answer.text, "takes no temperature" in answer.note) for answer in answers] == [
        ("¡Hola!", True)
    ] * 6
    assert len(provider.asked) == 12


def test_a_setting_that_is_refused_although_it_was_left_out_is_an_error(provider: FakeProvider) -> None:
    """The control: what does not help is not tried for ever."""
    provider.faults = lambda *_: Fault("status", status=400, message="Unsupported value: 'temperature'")
    with pytest.raises(ModelUnavailable, match="status 400"):
        open_remote(None, "openai/gpt-x", PATIENT).chat(QUESTION, CONFIG)
    assert len(provider.asked) == 2


# Signs of life ------------------------------------------------------------------------------------------------------


def shape(chunks: Sequence[Chunk]) -> list[str]:
    return [chunk.text or ("end" if chunk.usage else ".") for chunk in chunks]


def test_a_stream_that_thinks_gives_signs_of_life(provider: FakeProvider) -> None:
    provider.answer = Answer(("hi",), thoughts=9)
    told = shape(list(open_remote(None, "anthropic/claude-x", PATIENT).stream_chat(QUESTION, CONFIG)))
    # Its head, four of the thought, the beginning of the text, a ping.
    assert told[: told.index("hi")] == ["."] * 7
    assert told[-1] == "end"


def test_an_answer_that_is_told_whole_gives_signs_of_life(provider: FakeProvider) -> None:
    provider.answer = Answer(('{"answ', 'er": ', '"no"}'))
    config = GenerationConfig(max_new_tokens=50, format=ChoiceFormat(options=("yes", "no")))
    told = shape(list(open_remote(None, "openai/gpt-x", PATIENT).stream_chat(QUESTION, config)))
    assert [text for text in told if text != "."] == ["no", "end"] and told.index("no") >= 4


@pytest.mark.parametrize(
    ("quiet", "signs"),
    [
        (raw(b"data:\n\n"), 3),
        (raw(b"data: null\n\n"), 3),
        # What a proxy sends by itself says nothing of the model, and no more does half of an event.
        (raw(b": ping\n\n"), 2),
        (raw(b"da"), 2),
    ],
    ids=["nothing", "null", "comment", "a part"],
)
def test_a_heartbeat_is_no_error_and_a_sign_of_life_if_it_is_an_event(quiet: bytes, signs: int) -> None:
    rest = [piece("a"), piece(finish="stop"), event(b"[DONE]"), END]
    if quiet == raw(b"da"):
        rest[0] = raw(b'ta: {"choices": [{"delta": {"content": "a"}}]}\n\n')
    steps = [STREAM, event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), quiet, 0.05]
    with RawServer(*steps, *rest) as server:
        told = shape(list(opened(server).stream_chat(QUESTION, CONFIG)))
    # One for the role, one for the reason of the end.
    assert told == ["."] * (signs - 1) + ["a", ".", "end"]


# Waiting ------------------------------------------------------------------------------------------------------------


def test_a_whole_answer_may_take_longer_to_write_than_a_silence_may() -> None:
    body = {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}
    head, _, rest = whole(body).partition(b"\r\n\r\n")
    quick = Patience(connect=5, between_bytes=0.2, whole=10)
    with RawServer(0.6, whole(body)) as late, RawServer(head, b"\r\n\r\n", 0.6, rest) as late_body:
        assert opened(late, quick).chat(QUESTION, CONFIG).text == "ok"
        assert opened(late_body, quick).chat(QUESTION, CONFIG).text == "ok"
        # The controls: a stream is not silent, and the whole has its limit.
        with pytest.raises(ModelUnavailable, match=r"was silent for 0.2 s"):
            list(opened(late, quick).stream_chat(QUESTION, CONFIG))
        with pytest.raises(ModelUnavailable, match=r"had not finished after 0.3 s"):
            opened(late, Patience(between_bytes=0.2, whole=0.3)).chat(QUESTION, CONFIG)


@pytest.mark.parametrize("last", [[USAGE], []], ids=["usage told", "usage not told"])
@pytest.mark.parametrize("hold", [0.0, 5.0], ids=["cut", "held open"])
def test_a_stream_that_told_why_it_ended_is_an_answer_without_the_mark_of_the_end(
    last: list[bytes], hold: float
) -> None:
    steps = [STREAM, piece("whole answer"), piece(finish="stop"), *last]
    with RawServer(*steps, hold=hold) as server:
        started = time.monotonic()
        chunks = list(opened(server, Patience(between_bytes=0.4, whole=10)).stream_chat(QUESTION, CONFIG))
        assert time.monotonic() - started < 3
    assert "".join(chunk.text for chunk in chunks) == "whole answer"
    assert chunks[-1].usage == (Usage(3, 6) if last else Usage(3, 3))
    assert ("estimated" in chunks[-1].note) == (not last)


@pytest.mark.parametrize("hold", [0.0, 5.0], ids=["cut", "held open"])
def test_a_stream_that_did_not_tell_why_it_ended_is_none(hold: float) -> None:
    """The control."""
    with RawServer(STREAM, piece("half an ans"), hold=hold) as server:
        model = opened(server, Patience(between_bytes=0.4, whole=10))
        with pytest.raises(Unanswered, match=r"broke the connection|was silent") as caught:
            list(model.stream_chat(QUESTION, CONFIG))
    assert caught.value.again and caught.value.usage is None


def test_an_error_after_the_end_is_one() -> None:
    """The control: the provider's own word counts."""
    steps = [STREAM, piece("a", "stop"), event({"error": {"message": "oops"}}), END]
    with RawServer(*steps) as server, pytest.raises(ModelUnavailable, match="oops"):
        list(opened(server).stream_chat(QUESTION, CONFIG))


def test_what_a_broken_stream_had_told_of_its_usage_is_on_the_error(provider: FakeProvider) -> None:
    provider.answer = Answer(("four", "more", "than", "this"))
    provider.faults = [Fault("half_stream", keep=0.6)]
    with pytest.raises(Unanswered) as caught:
        list(open_remote(None, "anthropic/claude-x", PATIENT).stream_chat(QUESTION, CONFIG))
    assert caught.value.usage is not None and caught.value.usage.prompt_tokens == 12
    assert 1 <= caught.value.usage.completion_tokens <= 4
    provider.faults = lambda *_: Fault("status", status=503)
    with pytest.raises(ModelUnavailable) as refused:
        list(open_remote(None, "anthropic/claude-x", PATIENT).stream_chat(QUESTION, CONFIG))
    assert not isinstance(refused.value, Unanswered)


# Usage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "written", "believed"),
    [
        (10, 55, True),
        (3000, 55, True),  # tools, templates and documents of the server's own
        (10, 20_000, True),  # thoughts
        (-5, 7, False),
        (10, -7, False),
        (0, 0, False),
        (10, 0, False),  # nothing written, and yet a text
        (10, "55", False),
        (10, 55.0, False),
        (10, True, False),
        (2**52, 2**52, False),
        (5_000_000, 5, False),  # of a prompt of eleven bytes
        (10, 5_000_000, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_usage_that_cannot_be_true_is_estimated(
    read: Any, written: Any, believed: bool, stream: bool
) -> None:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    body = {"choices": [{"message": {"content": "x" * 240}, "finish_reason": "stop"}], "usage": usage}
    told = [STREAM, piece("x" * 240, "stop"), event({"choices": [], "usage": usage}), event(b"[DONE]"), END]
    with RawServer(*told if stream else [whole(body)]) as server:
        model = opened(server)
        last: Any = list(model.stream_chat(QUESTION, CONFIG))[-1] if stream else model.chat(QUESTION, CONFIG)
    assert last.usage == (Usage(read, written) if believed else Usage(3, 60))
    assert ("estimated" in last.note) == (not believed)


def test_a_server_may_put_documents_before_a_prompt_and_a_provider_does_not(provider: FakeProvider) -> None:
    provider.answer = Answer(prompt=20_000)
    address = open_remote(None, f"{provider.url('openai')}#app/equipaje", PATIENT)
    assert address.chat(QUESTION, CONFIG).usage == Usage(20_000, 5)
    assert open_remote(None, "openai/gpt-x", PATIENT).chat(QUESTION, CONFIG).usage == Usage(3, 2)


@pytest.mark.parametrize(
    ("api", "tell"),
    [
        ("anthropic", lambda told: {"input_tokens": told, "output_tokens": 5}),
        ("gemini", lambda told: {"promptTokenCount": told, "candidatesTokenCount": 5}),
    ],
)
def test_every_api_is_believed_within_reason(api: str, tell: Callable[[Any], dict[str, Any]]) -> None:
    from yunque.llm.anthropic_wire import AnthropicWire
    from yunque.llm.gemini_wire import GeminiWire

    for told, usage in ((12, Usage(12, 5)), (-12, None), ("12", None), (2**60, None)):
        if api == "anthropic":
            body = {"content": [], "stop_reason": "end_turn", "usage": tell(told)}
            assert AnthropicWire("m", "m").answer(body).usage == usage
        else:
            body = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": tell(told)}
            assert GeminiWire("m", "m").answer(body).usage == usage


# Calls of tools -----------------------------------------------------------------------------------------------------


def call(id: str | None, name: str | None, arguments: str, **number: Any) -> dict[str, Any]:
    named = {"name": name} if name is not None else {}
    return {**number, **({"id": id} if id is not None else {}), "function": {**named, "arguments": arguments}}


FIRST, SECOND = ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", '{"y":2}')


@pytest.mark.parametrize(
    "pieces",
    [
        [call("a", "f", '{"x":1}'), call("b", "g", '{"y":2}')],
        [call("a", "f", '{"x":1}', index=0), call("b", "g", '{"y":2}', index=0)],
        [call("a", "f", ""), call(None, None, '{"x":1}'), call("b", "g", '{"y"'), call(None, None, ":2}")],
        [call("a", "f", '{"x"', index=0), call("a", "f", ":1}", index=0), call("b", "g", '{"y":2}', index=1)],
        [call("a", "f", "", index=0), call("z", "", '{"x":1}', index=0), call("b", "g", '{"y":2}', index=1)],
        [
            call("a", "f", "", index=3),
            call("b", "g", '{"y"', index=1),
            call(None, None, '{"x":1}', index=3),
            call(None, None, ":2}", index=1),
        ],
    ],
    ids=["no numbers", "all 0", "no numbers, in pieces", "told each time", "an id each time", "mixed"],
)
def test_calls_are_told_apart_however_a_server_numbers_them(pieces: list[dict[str, Any]]) -> None:
    reader = OpenAIWire("m", "m").reader()
    said = [reader.read({"choices": [{"delta": {"tool_calls": [each]}}]}) for each in pieces]
    assert joined_calls(part for each in said for part in each.calls) == (FIRST, SECOND)


def test_calls_of_a_whole_answer_are_told_apart_and_each_has_an_id() -> None:
    calls = [call("a", "f", '{"x":1}', index=0), call("b", "g", '{"y":2}', index=0), call(None, "f", "{}")]
    message = {"content": None, "tool_calls": calls}
    said = OpenAIWire("m", "m").answer({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    first, second, third = joined_calls(said.calls)
    assert (first, second, third.name) == (FIRST, SECOND, "f") and third.id.startswith("call_")


@pytest.mark.parametrize("name", [None, ""])
def test_a_call_without_a_name_is_no_answer(name: str | None) -> None:
    calls = {"tool_calls": [call("a", name, "{}", index=0)]}
    body = {"choices": [{"message": {"content": None, **calls}}]}
    with RawServer(whole(body)) as server, pytest.raises(ModelUnavailable, match="not a comp") as caught:
        opened(server).chat(QUESTION, CONFIG)
    assert caught.value.again
    with RawServer(STREAM, piece(None, None, **calls), END) as server, pytest.raises(ModelUnavailable):
        list(opened(server).stream_chat(QUESTION, CONFIG))


# Small things of answers --------------------------------------------------------------------------------------------


def test_another_answer_is_not_mixed_into_the_one_that_was_asked_for() -> None:
    pieces = [piece(text, index=index) for index, text in ((0, "A"), (1, "B"), (0, "a"), (1, "b"))]
    with RawServer(STREAM, *pieces, piece(finish="stop"), event(b"[DONE]"), END) as server:
        assert "".join(each.text for each in opened(server).stream_chat(QUESTION, CONFIG)) == "Aa"
    choices = [{"index": n, "message": {"content": "BA"[n]}, "finish_reason": "stop"} for n in (1, 0)]
    with RawServer(
        whole({"choices": [{**each, "index": 1 - n} for n, each in enumerate(choices)]})
    ) as server:
        assert opened(server).chat(QUESTION, CONFIG).text == "B"


@pytest.mark.parametrize("reason", ["error", "model_error", "abort", "server_failure"])
def test_a_model_that_failed_did_not_stop(reason: str) -> None:
    body = {"choices": [{"message": {"content": "half"}, "finish_reason": reason}]}
    with RawServer(whole(body)) as server, pytest.raises(ModelUnavailable, match="broke off") as caught:
        opened(server).chat(QUESTION, CONFIG)
    assert caught.value.again and reason in str(caught.value)
    with RawServer(whole({"choices": [{"message": {"content": "all"}, "finish_reason": "eos"}]})) as server:
        assert opened(server).chat(QUESTION, CONFIG).finish_reason == "stop"


@pytest.mark.parametrize(
    ("error", "again"),
    [
        ({"message": "m", "type": "invalid_request_error", "code": "invalid_api_key"}, False),
        ({"message": "m", "type": "invalid_request_error"}, False),
        ({"message": "m", "code": "insufficient_quota"}, False),
        ({"message": "m", "type": "server_error"}, True),
        ("overloaded", True),
    ],
)
def test_an_error_that_comes_as_an_answer_says_whether_to_ask_again(error: Any, again: bool) -> None:
    with RawServer(whole({"error": error})) as server, pytest.raises(ModelUnavailable) as caught:
        opened(server).chat(QUESTION, CONFIG)
    assert caught.value.again == again
    code = error["code"] if isinstance(error, dict) and "code" in error else ""
    assert ("yunque key set" in str(caught.value)) == (code == "invalid_api_key")


def test_a_refusal_is_put_together() -> None:
    steps = [STREAM, piece(refusal="I'm"), piece(refusal=" sorry"), piece(finish="stop"), END]
    with RawServer(*steps) as server, pytest.raises(ModelUnavailable, match="answer: I'm sorry"):
        list(opened(server).stream_chat(QUESTION, CONFIG))


def test_vectors_without_usage_are_estimated_and_must_say_whose_they_are() -> None:
    rows = [{"index": number, "embedding": [1, number]} for number in (1, 0)]
    for usage in ({}, {"total_tokens": 4}, {"prompt_tokens": -1}, {"prompt_tokens": 10**6}):
        with RawServer(whole({"data": rows, "usage": usage})) as server:
            made = opened(server).embed(["abcdefgh", "b"])
        assert made.prompt_tokens == 3 and made.vectors[0] == [1.0, 0.0]
    body = {"data": [rows[0], rows[0]], "usage": {}}
    with RawServer(whole(body)) as server, pytest.raises(ModelUnavailable, match="holds no vectors"):
        opened(server).embed(["a", "b"])


# Proxies ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_PROXY".upper(), raising=False)
    return lambda address: monkeypatch.setenv("https_proxy", address)


@pytest.mark.parametrize(
    ("address", "url", "auth"),
    [
        ("http://user:p%40ss@10.0.0.1:3128", "http://10.0.0.1:3128", (b"user", b"p@ss")),
        ("http://us%3Aer:@10.0.0.1", "http://10.0.0.1:80", (b"us:er", b"")),
        ("http://[::1]:3128", "http://[::1]:3128", None),
        ("box:3128", "http://box:3128", None),
    ],
)
def test_a_proxys_address_is_understood(
    proxy: Callable[[str], None], address: str, url: str, auth: tuple[bytes, bytes] | None
) -> None:
    proxy(address)
    assert _proxy("https", "api.example.com") == {"proxy_url": url, "proxy_auth": auth}


@pytest.mark.parametrize(
    "address", ["socks5://u:secret@127.0.0.1:1080", "socks5h://x", "http://:secret@", "http://x:y"]
)
def test_a_proxy_that_cannot_be_used_is_not_passed_by(proxy: Callable[[str], None], address: str) -> None:
    proxy(address)
    with pytest.raises(BadProxy):
        _proxy("https", "api.example.com")
    with pytest.raises(ModelUnavailable, match=r"cannot be asked: .*proxy") as caught:
        open_remote(None, "https://api.example.com/v1#m", PATIENT).chat(QUESTION, CONFIG)
    assert not caught.value.again and "secret" not in str(caught.value)


def test_a_proxy_that_refuses_is_a_clear_sentence(proxy: Callable[[str], None]) -> None:
    with RawServer(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n") as server:
        proxy(server.url.removesuffix("/v1"))
        with pytest.raises(ModelUnavailable, match="the proxy answered 407 Proxy") as caught:
            open_remote(None, "https://api.example.com/v1#m", PATIENT).chat(QUESTION, CONFIG)
    assert not caught.value.again


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".com"])
def test_a_host_that_has_no_name_is_a_clear_sentence(host: str) -> None:
    with pytest.raises(ModelUnavailable, match="cannot be asked"):
        open_remote(None, f"http://{host}/v1#m", PATIENT).chat(QUESTION, CONFIG)
