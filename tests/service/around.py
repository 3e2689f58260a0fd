"""A server with a made-up model on a real port: what stands around the API is tested without the API."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from yunque.server import probes
from yunque.server.account import account
from yunque.server.body import read_body
from yunque.server.errors import ApiError
from yunque.server.process import Server
from yunque.server.service import Service
from yunque.workspace import Workspace
from yunque.workspace.api_keys import Terms, create_api_key


@dataclass
class Model:
    """Writes as many words as it is asked for, and keeps what became of each generation."""

    begun: int = 0
    written: list[int] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def stream(self, asked: dict[str, Any]) -> Iterator[str]:
        account().reserve(asked.get("prompt_tokens", 1), asked["max_tokens"])
        self.begun += 1
        count = 0
        try:
            for count in range(1, asked.get("writes", asked["max_tokens"]) + 1):
                time.sleep(asked.get("pause", 0))
                if count == asked.get("fails_at"):
                    raise RuntimeError("Ana 12345678Z")
                account().wrote()
                yield "word " * asked.get("width", 1)
        finally:
            self.written.append(count)
            self.closed.set()


class Events(Response):
    """Sends words as events while they are made, as the API does."""

    def __init__(self, words: AsyncGenerator[str]) -> None:
        super().__init__()
        self._words = words

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, leaving = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(self._left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            sending.cancel(), leaving.cancel()
            await asyncio.wait((sending, leaving))
            await self._words.aclose()

    async def _send(self, send: Send) -> None:
        first = await anext(self._words)
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def event(text: str, more: bool = True) -> None:
            await send(
                {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": more}
            )

        await event(first)
        try:
            async for word in self._words:
                await event(word)
        except ApiError as error:
            await event(json.dumps(error.body()))
        await event("[DONE]", more=False)

    async def _left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


def make_app(service: Service, model: Model) -> FastAPI:
    app = FastAPI(lifespan=service.lifespan)
    service.surround(app)
    app.include_router(probes.router(service))
    app.add_exception_handler(ApiError, lambda _, error: error.response())  # type: ignore[attr-defined]

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": []}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await read_body(request.receive, request.headers, 100_000, seconds=1.0, silent_seconds=0.5)
        asked = json.loads(body)
        if "model" in asked:
            account().check_model("model", asked["model"])
        words = service.workers.iterate(lambda: model.stream(asked))
        if asked.get("stream"):
            return Events(words)
        text = "".join([word async for word in words])
        return JSONResponse({"text": text, "tokens": account().completion_tokens})

    return app


@dataclass
class Running:
    workspace: Workspace
    service: Service
    model: Model
    port: int
    server: Server
    client: httpx.Client = field(default_factory=lambda: httpx.Client(verify=False, timeout=20))

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, **terms: Any) -> str:
        with self.workspace.catalog.transaction() as connection:
            return create_api_key(connection, "test", Terms(**terms))[1]

    def ask(self, key: str = "", headers: dict[str, str] | None = None, **asked: Any) -> httpx.Response:
        sent = {**({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
        body = {"max_tokens": 3, **asked}
        return self.client.post(self.root + "/v1/completions", json=body, headers=sent)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(self.root + path, headers=headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def begin(self, connection: socket.socket, **asked: Any) -> None:
        """Send a request for a stream, and read nothing."""
        body = json.dumps({"max_tokens": 3, "stream": True, **asked}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    def metric(self, line: str) -> float:
        """The value of a line of /metrics, without its prefix; 0 where there is none."""
        text = self.service.metrics.text().decode()
        found = [each.rpartition(" ")[2] for each in text.splitlines() if each.startswith(f"yunque_{line} ")]
        return float(found[0]) if found else 0.0


def until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true in this time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()
