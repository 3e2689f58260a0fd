"""The client for OpenAI-compatible servers, against a server on this machine that misbehaves."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable, Usage
from yunque.llm.openai_compatible import OpenAICompatibleModel, Patience

ANSWER = {
    "choices": [
        {"message": {"role": "assistant", "content": "¡Olé!"}, "text": "¡Olé!", "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}
QUESTION = [Message("user", "¿Qué tal?")]
CONFIG = GenerationConfig(max_new_tokens=5)
QUICK = Patience(connect=2, between_bytes=0.4, whole=5, attempts=3, first_wait=0.01, longest_wait=0.5)


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the server's script, with its number counted from 0."""

    server: "FakeServer"

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = json.loads(self.rfile.read(length))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.server.script(self, len(self.server.seen) - 1)

    def reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, *blocks: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for block in blocks:
            self.wfile.write(block)
            self.wfile.flush()

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    script: Callable[[Handler, int], None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away, or a connection that a script has cut

    def model(self, patience: Patience = QUICK) -> OpenAICompatibleModel:
        return OpenAICompatibleModel.from_url(f"http://127.0.0.1:{self.server_port}/v1#mini", patience)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv("YUNQUE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeServer() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield made
        made.shutdown()


def part(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "text": text, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}, ensure_ascii=False).encode() + b"\n\n"


def streamed(model: OpenAICompatibleModel) -> tuple[str, list[Any]]:
    chunks = list(model.stream_chat(QUESTION, CONFIG))
    return "".join(chunk.text for chunk in chunks), chunks


def test_a_conversation_is_answered_with_the_settings_sent(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(200, ANSWER)
    config = GenerationConfig(max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("FIN",), seed=3)
    completion = server.model().chat([Message("system", "sé breve"), *QUESTION], config)
    assert (completion.text, completion.finish_reason, completion.usage) == ("¡Olé!", "stop", Usage(7, 3))
    assert completion.model == f"http://127.0.0.1:{server.server_port}/v1#mini"
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "mini",
        "messages": [{"role": "system", "content": "sé breve"}, {"role": "user", "content": "¿Qué tal?"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["FIN"],
        "seed": 3,
    }


def test_a_text_is_gone_on_with(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(200, ANSWER)
    assert server.model().complete("Érase", CONFIG).text == "¡Olé!"
    assert server.seen[0][0] == "/v1/completions"
    assert server.seen[0][2]["prompt"] == "Érase"


def test_usage_that_is_not_told_is_estimated_by_bytes(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(200, {"choices": ANSWER["choices"]})
    # "¿Qué tal?" is 11 bytes, "¡Olé!" is 7.
    assert server.model().chat(QUESTION, CONFIG).usage == Usage(3, 2)


def test_a_stream_arrives_in_pieces_and_keeps_odd_line_breaks(server: FakeServer) -> None:
    text = part("a\u2028b\x85c") + part("ñ")
    tail = (
        part(None, "length")
        + b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\r\n\r\n'
    )
    cut = text.index("ñ".encode()) + 1  # in the middle of a character
    blocks = (b": keep-alive\n\n", text[:cut], text[cut:], tail, b"data: [DONE]\n\n")
    server.script = lambda handler, _: handler.stream(*blocks)
    whole, chunks = streamed(server.model())
    assert whole == "a\u2028b\x85cñ"
    assert [chunk.text for chunk in chunks[:2]] == ["a\u2028b\x85c", "ñ"]
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("length", Usage(4, 2))
    assert server.seen[0][2]["stream_options"] == {"include_usage": True}


def test_a_server_that_stumbles_is_asked_again(server: FakeServer) -> None:
    def script(handler: Handler, number: int) -> None:
        if number == 0:
            handler.reply(502, b"<html>bad gateway</html>")
        elif number == 1:
            handler.reset()
        else:
            handler.reply(200, ANSWER)

    server.script = script
    assert server.model().chat(QUESTION, CONFIG).text == "¡Olé!"
    assert len(server.seen) == 3


def test_it_is_asked_no_more_often_than_said(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(503, {"error": {"message": "overloaded\nnow"}})
    with pytest.raises(ModelUnavailable, match=r"#mini answered with status 503: overloaded now$"):
        server.model().chat(QUESTION, CONFIG)
    assert len(server.seen) == QUICK.attempts


def test_a_refusal_is_not_repeated(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(401, {"error": {"message": "no"}})
    with pytest.raises(ModelUnavailable, match="refused the API key"):
        server.model().chat(QUESTION, CONFIG)
    assert len(server.seen) == 1


def test_retry_after_is_obeyed(server: FakeServer) -> None:
    times: list[float] = []

    def script(handler: Handler, number: int) -> None:
        times.append(time.monotonic())
        handler.reply(*((429, {}, {"retry-after": "0.3"}) if number == 0 else (200, ANSWER)))

    server.script = script
    server.model().chat(QUESTION, CONFIG)
    assert times[1] - times[0] >= 0.3


def test_a_long_retry_after_is_told_and_not_waited_for(server: FakeServer) -> None:
    server.script = lambda handler, _: handler.reply(429, {}, {"retry-after": "3600"})
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="wait for 3600 s"):
        server.model().chat(QUESTION, CONFIG)
    assert time.monotonic() - started < 60
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "body",
    [b"hola", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}', b"[" * 9999],
)
def test_garbage_is_one_clear_sentence(server: FakeServer, body: bytes) -> None:
    server.script = lambda handler, _: handler.reply(200, body)
    with pytest.raises(ModelUnavailable, match=r"not JSON|not a completion"):
        server.model().chat(QUESTION, CONFIG)


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        ((part("Hola"),), "in the middle"),
        ((part("Hola"), b"data: {nope\n\n"), "not JSON"),
        ((part("Hola"), b'data: {"error": {"message": "out of memory"}}\n\n'), "error: out of memory"),
        ((part("Hola"), b'data: {"choices": [{"delta": 7}]}\n\n'), "not a completion"),
    ],
)
def test_a_broken_stream_gives_its_beginning_and_then_says_so(
    server: FakeServer, blocks: tuple[bytes, ...], sentence: str
) -> None:
    server.script = lambda handler, _: handler.stream(*blocks)
    chunks = server.model().stream_chat(QUESTION, CONFIG)
    assert next(chunks).text == "Hola"
    with pytest.raises(ModelUnavailable, match=sentence):
        list(chunks)
    assert len(server.seen) == 1


def test_a_stream_that_is_reset_says_so(server: FakeServer) -> None:
    def script(handler: Handler, _: int) -> None:
        handler.stream(part("Hola"))
        time.sleep(0.05)
        handler.reset()

    server.script = script
    chunks = server.model().stream_chat(QUESTION, CONFIG)
    assert next(chunks).text == "Hola"
    with pytest.raises(ModelUnavailable, match=r"broke|in the middle"):
        list(chunks)


def test_a_silent_server_is_given_up_after_one_attempt(server: FakeServer) -> None:
    server.script = lambda *_: time.sleep(1)
    with pytest.raises(ModelUnavailable, match=r"was silent for 0.4 s"):
        server.model().chat(QUESTION, CONFIG)
    assert len(server.seen) == 1


def test_an_endless_trickle_is_given_up(server: FakeServer) -> None:
    def script(handler: Handler, _: int) -> None:
        handler.stream()
        for _ in range(40):
            handler.wfile.write(b": still here\n\n")
            time.sleep(0.05)

    server.script = script
    with pytest.raises(ModelUnavailable, match=r"had not finished after 0.3 s"):
        streamed(server.model(QUICK.model_copy(update={"whole": 0.3})))


def test_nobody_listening_is_a_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        model = OpenAICompatibleModel.from_url(f"http://127.0.0.1:{taken.getsockname()[1]}/v1#mini", QUICK)
        with pytest.raises(ModelUnavailable, match="cannot be reached"):
            model.chat(QUESTION, CONFIG)


def test_the_key_goes_to_the_server_and_into_no_message(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = lambda handler, _: handler.reply(401, {"error": {"message": "bad key yq-secret"}})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("YUNQUE_API_KEY", "yq-secret")
    with pytest.raises(ModelUnavailable) as caught:
        server.model().chat(QUESTION, CONFIG)
    assert server.seen[0][1]["Authorization"] == "Bearer yq-secret"
    assert "yq-secret" not in str(caught.value)
    monkeypatch.delenv("YUNQUE_API_KEY")
    with pytest.raises(ModelUnavailable):
        server.model().chat(QUESTION, CONFIG)
    assert server.seen[1][1]["Authorization"] == "Bearer sk-other"


def test_a_redirect_is_not_followed_with_the_key(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_API_KEY", "yq-secret")
    with FakeServer() as elsewhere:
        elsewhere.script = lambda handler, _: handler.reply(200, ANSWER)
        threading.Thread(target=elsewhere.serve_forever, args=(0.02,), daemon=True).start()
        there = f"http://127.0.0.1:{elsewhere.server_port}/v1/chat/completions"
        server.script = lambda handler, _: handler.reply(307, {}, {"location": there})
        with pytest.raises(ModelUnavailable, match="elsewhere"):
            server.model().chat(QUESTION, CONFIG)
        elsewhere.shutdown()
    assert elsewhere.seen == []


def test_openais_key_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YUNQUE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert OpenAICompatibleModel.from_url("http://192.0.2.1/v1#m")._headers() == {}
    assert OpenAICompatibleModel.from_url("https://192.0.2.1/v1#m")._headers() != {}


@pytest.mark.parametrize(
    "url", ["http://h/v1", "http://#m", "http://me:pw@h/v1#m", "http://h:x/v1#m", "http://h/v1?a#m"]
)
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError) as caught:
        OpenAICompatibleModel.from_url(url)
    assert "pw" not in str(caught.value).replace("password", "")
