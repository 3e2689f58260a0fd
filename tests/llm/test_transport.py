"""One attempt: how long it may take, how another thread ends it, and what is left of its connection."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from fake_provider import FakeProvider, Fault

from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable
from yunque.llm.open import open_remote
from yunque.llm.remote import RemoteModel
from yunque.llm.sse import MOST_BYTES_OF_AN_EVENT, EventParser, TooLong
from yunque.llm.transport import Patience
from yunque.llm.under_way import UnderWay

QUESTION = [Message("user", "¿?")]
CONFIG = GenerationConfig()
PATIENT = Patience(connect=5, between_bytes=10, whole=20)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    monkeypatch.delenv("YUNQUE_API_KEY", raising=False)
    with FakeProvider() as made:
        yield made


@pytest.fixture
def model(provider: FakeProvider) -> Iterator[RemoteModel]:
    opened = open_remote(None, provider.url("openai") + "#mini", PATIENT)
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", ["silence", "silence_midway", "drip", "endless"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_is_kept_wherever_the_call_waits(
    model: RemoteModel, provider: FakeProvider, kind: str, stream: bool
) -> None:
    provider.faults = [Fault(kind, seconds=5 if "silence" in kind else 0.02)]
    call = UnderWay(time.monotonic() + 0.2)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="had not answered by the deadline") as caught, call.current():
        list(model.stream_chat(QUESTION, CONFIG)) if stream else model.chat(QUESTION, CONFIG)
    assert caught.value.again
    assert 0.15 < time.monotonic() - started < 3


def test_a_deadline_that_has_passed_sends_nothing(model: RemoteModel, provider: FakeProvider) -> None:
    with pytest.raises(ModelUnavailable, match="deadline"), UnderWay(time.monotonic() - 1).current():
        model.chat(QUESTION, CONFIG)
    assert provider.asked == []


@pytest.mark.parametrize("kind", ["silence", "silence_midway"])
def test_a_call_is_stopped_from_another_thread(model: RemoteModel, provider: FakeProvider, kind: str) -> None:
    provider.faults = [Fault(kind, seconds=5)]
    call = UnderWay()
    threading.Timer(0.1, call.stop).start()
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="was stopped") as caught, call.current():
        model.chat(QUESTION, CONFIG)
    assert time.monotonic() - started < 3
    assert not caught.value.again
    # The control: a call that nobody stops is answered, over a new connection.
    with UnderWay().current():
        assert model.chat(QUESTION, CONFIG).text == "¡Hola!"


def test_a_stopped_call_says_so_at_its_next_step(model: RemoteModel) -> None:
    call = UnderWay()
    chunks = call.following(model.stream_chat(QUESTION, CONFIG))
    assert next(chunk.text for chunk in chunks if chunk.text) == "¡Ho"
    call.stop()
    # What has arrived already may still be told.
    try:
        rest = "".join(chunk.text for chunk in chunks)
    except ModelUnavailable as error:
        assert "was stopped" in str(error)
    else:
        assert rest == "la!"


def test_a_stream_may_be_read_by_several_threads_one_after_the_other(model: RemoteModel) -> None:
    chunks = model.stream_chat(QUESTION, CONFIG)
    texts: list[str] = []

    def read() -> None:
        if chunk := next(chunks, None):
            texts.append(chunk.text)

    for _ in range(8):
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
    assert "".join(texts) == "¡Hola!"


def test_a_stream_that_nobody_reads_on_lets_its_connection_go(
    model: RemoteModel, provider: FakeProvider
) -> None:
    provider.faults = [Fault("silence_midway", seconds=5)]
    chunks = model.stream_chat(QUESTION, CONFIG)
    assert next(chunk.text for chunk in chunks if chunk.text)
    chunks.close()  # type: ignore[attr-defined]
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"
    assert provider.connections == 2


def test_a_connection_that_the_server_closed_meanwhile_is_not_used(
    model: RemoteModel, provider: FakeProvider
) -> None:
    provider.faults = [Fault("half")]
    with pytest.raises(ModelUnavailable):
        model.chat(QUESTION, CONFIG)
    assert [model.chat(QUESTION, CONFIG).text for _ in range(2)] == ["¡Hola!", "¡Hola!"]


def test_headers_without_end_are_given_up() -> None:
    """A server that sends headers for ever: neither a silence nor a body."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        stopped = threading.Event()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not stopped.wait(0.02):
                    try:
                        connection.sendall(b"x: y\r\n")
                    except OSError:
                        return

        threading.Thread(target=serve, daemon=True).start()
        patience = Patience(connect=5, between_bytes=10, whole=0.3)
        model = open_remote(None, f"http://127.0.0.1:{listening.getsockname()[1]}/v1#m", patience)
        with pytest.raises(ModelUnavailable, match="had not finished"):
            model.chat(QUESTION, CONFIG)
        stopped.set()


def test_what_answers_no_http_is_a_clear_sentence() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        model = open_remote(None, f"http://127.0.0.1:{listening.getsockname()[1]}/v1#m", PATIENT)
        with pytest.raises(ModelUnavailable, match="broke the connection"):
            model.chat(QUESTION, CONFIG)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    model: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"


def test_a_proxy_of_the_environment_is_asked_for_other_machines(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{provider.server_port}")
    model = open_remote(None, "http://yunque.invalid:8000/v1#mini", PATIENT)
    assert model.chat(QUESTION, CONFIG).text == "¡Hola!"
    assert provider.asked[0].path == "http://yunque.invalid:8000/v1/chat/completions"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    stream = ": c\r\ndata: a\u2028ñ\r\rdata:b\ndata: c\n\nevent: x\ndata: [DONE]\n\ndata: cut".encode()
    blocks = [stream[place : place + size] for place in range(0, len(stream), size)]
    parser = EventParser()
    told = [data.decode() for block in blocks for data in parser.feed(block)]
    assert told == ["a\u2028ñ", "b\nc", "[DONE]"]


def test_the_last_event_may_end_in_a_carriage_return() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r\r") == [b"a"]
    # A line feed that follows is the other half of the last one's end, not an empty line.
    assert [*parser.feed(b"\ndata: b\r"), *parser.feed(b"\n"), *parser.feed(b"\n")] == [b"b"]


def test_a_long_line_is_read_in_time_that_grows_with_it() -> None:
    def seconds(size: int) -> float:
        parser, block = EventParser(), b"x" * 1024
        started = time.process_time()
        parser.feed(b"data: ")
        for _ in range(size // len(block)):
            parser.feed(block)
        [data] = parser.feed(b"\n\n")
        assert len(data) == size
        return time.process_time() - started

    # Read again with each block, it took 14 s.
    assert seconds(4 * 1024 * 1024) < 2


def test_one_event_has_a_limit_and_a_stream_of_many_has_not() -> None:
    parser, block = EventParser(), b"x" * 1_000_000
    parser.feed(b"data: ")
    with pytest.raises(TooLong):
        for _ in range(MOST_BYTES_OF_AN_EVENT // len(block) + 1):
            parser.feed(block)
    lines = EventParser()
    with pytest.raises(TooLong):
        for _ in range(MOST_BYTES_OF_AN_EVENT // len(block) + 1):
            lines.feed(b"data: " + block + b"\n")
    several = EventParser()
    assert sum(len(several.feed(b"data: " + block + b"\r\r")) for _ in range(40)) == 40


def test_a_server_that_goes_on_after_the_end_does_not_hold_the_answer_up(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each API's end, then silence on an open connection: the last piece is told at once."""
    for api, variable in (("openai", "OPENAI_BASE_URL"), ("anthropic", "ANTHROPIC_BASE_URL")):
        monkeypatch.setenv(variable, provider.url(api))
        monkeypatch.setenv(variable.replace("BASE_URL", "API_KEY"), "k")
        provider.faults = lambda *_: Fault("silence_midway", keep=1.0, seconds=3)
        chunks = open_remote(None, f"{api}/mini", PATIENT).stream_chat(QUESTION, CONFIG)
        started = time.monotonic()
        while not next(chunks).finish_reason:
            pass
        assert time.monotonic() - started < 2
        assert list(chunks) == []
        assert time.monotonic() - started < 2.5
