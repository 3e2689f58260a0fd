"""A provider on this machine: real sockets, three APIs, and every fault that a test asks for.

with FakeProvider() as provider:
    provider.answer = Answer(("Sí", "."))                # what is said, in whichever API it is asked
    provider.faults = [Fault("status", status=502), None]  # by number; or a function of (number, asked)
    url = provider.url("openai")                         # http://127.0.0.1:PORT/v1; also "anthropic", "gemini"
"""

import gzip
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fake_shapes as shapes
from fake_shapes import Answer as Answer

FAULTS = (
    "status",  # an error of the API's shape: status, message, headers, body (overrides the shape)
    "html",  # a page of HTML instead of an answer (status, default 200)
    "redirect",  # 307 to `location`
    "reset_before_headers",
    "close_before_headers",
    "reset_after_headers",
    "reset_midway",  # after `keep` of the body
    "half",  # the body stops after `keep` of it and the connection is closed in good order
    "half_stream",  # the stream ends well for HTTP, but events are missing: `keep` of them are sent
    "short_length",  # content-length is smaller than the body
    "long_length",  # content-length is larger than the body
    "garbage",  # no JSON (in a stream: after `keep` of the events)
    "wrong_shape",  # JSON, but no answer
    "wrong_utf8",
    "wrong_type",  # the right body, called text/plain
    "empty",
    "huge",  # `size` bytes of valid JSON
    "gzip_bomb",  # `size` bytes of zeros, packed
    "broken_gzip",
    "silence",  # nothing at all for `seconds`
    "silence_midway",  # nothing for `seconds` after `keep` of the body
    "drip",  # a byte every `seconds`
    "error_event",  # in a stream after `keep` of the events: `status`, `message`
    "double_done",  # the stream's last event is sent twice, and text after it
    "endless",  # a stream of comments that does not end, every `seconds`
)


@dataclass
class Fault:
    """What goes wrong with a request. `keep` is the part of the body, or of the events, that is sent before."""

    kind: str
    status: int = 503
    message: str = "the fake provider is out of order"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    code: str | None = None
    keep: float = 0.5
    seconds: float = 30.0
    size: int = 64_000_000
    location: str = ""

    def __post_init__(self) -> None:
        assert self.kind in FAULTS, self.kind


@dataclass
class Asked:
    """A request that was seen. `headers` have lower-case names."""

    number: int
    api: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream")) or "streamGenerateContent" in self.path

    @property
    def model(self) -> str:
        found = re.search(r"/models/([^/:]+):", self.path)
        return found[1] if found else str(self.body.get("model", ""))


Faults = Callable[[int, Asked], Fault | None] | Sequence[Fault | None]


class FakeProvider(ThreadingHTTPServer):
    """`answer` may be a function of what was asked. `asked` keeps every POST, `delay` (seconds) comes before each."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._scheme = "https" if tls else "http"
        self.answer: Answer | Callable[[Asked], Answer] = Answer()
        self.faults: Faults = ()
        self.delay = 0.0
        self.models = ["fake-small", "fake-large"]
        self.asked: list[Asked] = []
        self.connections = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()

    def url(self, api: str = "openai") -> str:
        """The base URL that a client of this API is given."""
        path = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta"}[api]
        return f"{self._scheme}://127.0.0.1:{self.server_port}{path}"

    def see(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Asked:
        with self._lock:
            api = "anthropic" if path.startswith("/v1/messages") else "openai"
            api = "gemini" if path.startswith("/v1beta/") else api
            asked = Asked(len(self.asked), api, path, headers, body, time.monotonic())
            self.asked.append(asked)
            return asked

    def fault_of(self, asked: Asked) -> Fault | None:
        if callable(self.faults):
            return self.faults(asked.number, asked)
        return self.faults[asked.number] if asked.number < len(self.faults) else None

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond the end of the test; True if that came."""
        return self.stopped.wait(seconds)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away, or a connection that a fault has cut

    def __enter__(self) -> "FakeProvider":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeProvider
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        names = self.server.models
        if self.path.startswith("/v1beta/models"):
            told: dict[str, Any] = {"models": [{"name": f"models/{name}"} for name in names]}
        else:
            told = {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
        self._send(200, json.dumps(told).encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"] or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = self.server.see(self.path, headers, json.loads(content))
        if self.server.delay:
            self.server.wait(self.server.delay)
        fault = self.server.fault_of(asked)
        if fault is not None and getattr(self, f"_{fault.kind}", None):
            getattr(self, f"_{fault.kind}")(asked, fault)
        elif asked.stream:
            self._streamed(asked, fault)
        else:
            self._whole(asked, fault)

    # Answers ------------------------------------------------------------------------------------------------------

    def _answer(self, asked: Asked) -> Answer:
        return self.server.answer(asked) if callable(self.server.answer) else self.server.answer

    def _body(self, asked: Asked) -> bytes:
        answer, model, path = self._answer(asked), asked.model, asked.path.split("?")[0]
        if path.endswith("/embeddings"):
            many = asked.body["input"]
            told = shapes.openai_vectors(answer, model, len(many) if isinstance(many, list) else 1)
        elif path.endswith(":batchEmbedContents"):
            told = shapes.gemini_vectors(answer, len(asked.body["requests"]))
        elif asked.api == "anthropic":
            told = shapes.whole_anthropic(answer, model)
        elif asked.api == "gemini":
            told = shapes.whole_gemini(answer, model)
        elif path.endswith("/chat/completions"):
            told = shapes.whole_openai_chat(answer, model)
        elif asked.body.get("echo"):
            told = shapes.echoed_openai_text(asked.body["prompt"], model)
        else:
            told = shapes.whole_openai_text(answer, model)
        return json.dumps(told, ensure_ascii=False).encode()

    def _events(self, asked: Asked) -> list[bytes]:
        answer, model = self._answer(asked), asked.model
        if asked.api == "anthropic":
            return shapes.stream_anthropic(answer, model)
        if asked.api == "gemini":
            return shapes.stream_gemini(answer, model)
        told = bool((asked.body.get("stream_options") or {}).get("include_usage"))
        make = shapes.stream_openai_chat if "/chat/" in asked.path else shapes.stream_openai_text
        return make(answer, model, told)

    def _error(self, asked: Asked, fault: Fault) -> dict[str, Any]:
        if asked.api == "anthropic":
            return shapes.anthropic_error(fault.status, fault.message)
        if asked.api == "gemini":
            return shapes.gemini_error(fault.status, fault.message)
        return shapes.openai_error(fault.status, fault.message, fault.code)

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        for name, value in ({"content-length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _head(self, kind: str, **headers: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _piece(self, block: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))

    def _whole(self, asked: Asked, fault: Fault | None) -> None:
        body = self._body(asked)
        changed = {
            "garbage": b"{nope" + body[:20],
            "wrong_shape": b'{"object": "something else", "choices": 7, "content": 7, "candidates": 7}',
            "wrong_utf8": body.replace(b"{", b'{"x": "\xff\xfe\xc3(", ', 1),
            "empty": b"",
            "half_stream": body[: int(len(body) * 0.5)],
            "error_event": json.dumps(self._error(asked, fault)).encode() if fault else b"",
        }
        kind = "text/plain" if fault and fault.kind == "wrong_type" else "application/json"
        self._send(200, changed.get(fault.kind, body) if fault else body, kind)

    def _streamed(self, asked: Asked, fault: Fault | None) -> None:
        events = self._events(asked)
        kept = max(1, int(len(events) * fault.keep)) if fault else 0
        changed = {
            "garbage": [*events[:kept], b"data: {nope\n\n", *events[kept:]],
            "wrong_shape": [*events[:kept], b'data: {"choices": 7, "candidates": 7, "type": 7}\n\n'],
            "wrong_utf8": [*events[:kept], b'data: {"x": "\xff\xc3("}\n\n', *events[kept:]],
            "empty": [],
            "half_stream": events[:kept],
            "error_event": [*events[:kept], self._event_of_error(asked, fault)] if fault else [],
            "double_done": [*events, *events[-2:]],
        }
        told = changed.get(fault.kind, events) if fault else events
        kind = "text/plain" if fault and fault.kind == "wrong_type" else "text/event-stream; charset=utf-8"
        self._head(kind, transfer_encoding="chunked")
        for event in told:
            self._piece(event)
        self.wfile.write(b"0\r\n\r\n")

    def _event_of_error(self, asked: Asked, fault: Fault) -> bytes:
        return shapes.as_event(self._error(asked, fault), "error" if asked.api == "anthropic" else "")

    # Faults of the connection -------------------------------------------------------------------------------------

    def _status(self, asked: Asked, fault: Fault) -> None:
        body = fault.body if fault.body is not None else json.dumps(self._error(asked, fault)).encode()
        headers = {name.lower(): value for name, value in fault.headers.items()}
        self._send(fault.status, body, headers.pop("content-type", "application/json"), headers)

    def _html(self, _asked: Asked, fault: Fault) -> None:
        status = 200 if fault.status == 503 else fault.status
        self._send(status, b"<html><title>Welcome</title><p>Sign in to the network</p></html>", "text/html")

    def _redirect(self, _asked: Asked, fault: Fault) -> None:
        self._send(307, b"", headers={"location": fault.location})

    def _cut(self) -> None:
        # Linger 0 makes the kernel send RST, not FIN.
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()
        self.connection.close()

    def _close(self) -> None:
        self.close_connection = True

    def _reset_before_headers(self, _asked: Asked, _fault: Fault) -> None:
        self._cut()

    def _close_before_headers(self, _asked: Asked, _fault: Fault) -> None:
        self._close()

    def _reset_after_headers(self, asked: Asked, _fault: Fault) -> None:
        self._start(asked, 0)
        time.sleep(0.02)
        self._cut()

    def _reset_midway(self, asked: Asked, fault: Fault) -> None:
        self._start(asked, fault.keep)
        time.sleep(0.02)
        self._cut()

    def _half(self, asked: Asked, fault: Fault) -> None:
        self._start(asked, fault.keep)
        self._close()

    def _silence(self, _asked: Asked, fault: Fault) -> None:
        self.server.wait(fault.seconds)
        self._close()

    def _silence_midway(self, asked: Asked, fault: Fault) -> None:
        self._start(asked, fault.keep)
        self.server.wait(fault.seconds)
        self._close()

    def _start(self, asked: Asked, keep: float) -> None:
        """The headers of the whole answer, and this part of its body."""
        if asked.stream:
            events = self._events(asked)
            self._head("text/event-stream", transfer_encoding="chunked")
            for event in events[: max(1, int(len(events) * keep)) if keep else 0]:
                self._piece(event)
        else:
            body = self._body(asked)
            self._head("application/json", content_length=str(len(body)))
            self.wfile.write(body[: int(len(body) * keep)])
        self.wfile.flush()

    def _short_length(self, asked: Asked, _fault: Fault) -> None:
        body = b"".join(self._events(asked)) if asked.stream else self._body(asked)
        self._send(200, body, headers={"content-length": str(len(body) // 2)})
        self._close()

    def _long_length(self, asked: Asked, _fault: Fault) -> None:
        # Without what tells the end of an answer.
        body = b"".join(self._events(asked)[:-3]) if asked.stream else self._body(asked)
        self._send(200, body, headers={"content-length": str(len(body) + 100)})
        self._close()

    def _drip(self, asked: Asked, fault: Fault) -> None:
        body = b"".join(self._events(asked)) if asked.stream else self._body(asked)
        self._head("text/event-stream" if asked.stream else "application/json", content_length=str(len(body)))
        for byte in body:
            self.wfile.write(bytes([byte]))
            if self.server.wait(fault.seconds):
                break

    def _endless(self, _asked: Asked, fault: Fault) -> None:
        self._head("text/event-stream", transfer_encoding="chunked")
        while not self.server.wait(fault.seconds):
            self._piece(b": still here\n\n")

    def _huge(self, _asked: Asked, fault: Fault) -> None:
        self._head("application/json", transfer_encoding="chunked")
        self._piece(b'{"x": "')
        block = b"a" * 65536
        for _ in range(fault.size // len(block)):
            self._piece(block)
        self._piece(b'"}')
        self.wfile.write(b"0\r\n\r\n")

    def _gzip_bomb(self, asked: Asked, fault: Fault) -> None:
        packed = gzip.compress(b" " * fault.size, 6)
        kind = "text/event-stream" if asked.stream else "application/json"
        self._send(200, packed, kind, {"content-encoding": "gzip"})

    def _broken_gzip(self, asked: Asked, _fault: Fault) -> None:
        kind = "text/event-stream" if asked.stream else "application/json"
        self._send(200, b"not packed at all", kind, {"content-encoding": "gzip"})
