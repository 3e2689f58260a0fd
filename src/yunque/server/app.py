"""The application: routes of OpenAI's API over the models and apps of a workspace."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from yunque import __version__
from yunque.errors import UserError
from yunque.llm import ContextOverflow, ModelUnavailable
from yunque.server.errors import ApiError
from yunque.server.gate import AccessLog, Gate, read_body
from yunque.server.requests import ChatRequest, CompletionRequest, parse
from yunque.server.responses import Shape
from yunque.server.served import NoSuchTarget, Piece, Served, Target
from yunque.server.workers import Workers
from yunque.workspace import Workspace

MOST_BYTES = 4_000_000
Ask = Callable[[Target], Iterator[Piece]]


def create_app(
    workspace: Workspace, keys_required: bool, *, workers: int = 4, most_waiting: int = 64
) -> FastAPI:
    """The server's ASGI application: `workers` answers are made at once, `most_waiting` wait their turn."""
    served = Served(workspace)
    pool = Workers(workers, most_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await asyncio.to_thread(pool.close, 3.0)

    # No pages of documentation: those of FastAPI load their scripts from a stranger's server.
    app = FastAPI(title="Yunque", version=__version__, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Gate, workspace=workspace, keys_required=keys_required)
    app.add_middleware(AccessLog)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/v1/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": await asyncio.to_thread(served.listed)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, object]:
        try:
            return await asyncio.to_thread(served.described, name)
        except UserError as error:
            raise _as_api_error(error) from None

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = parse(CompletionRequest, await read_body(request.receive, request.headers, MOST_BYTES))
        prompt, settings = asked.text(), asked.settings()
        shape = Shape(False, asked.model, asked.include_usage)
        pieces = _pieces(pool, served, asked.model, lambda target: target.complete(prompt, settings))
        return Answer(shape, pieces, bool(asked.stream))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        asked = parse(ChatRequest, await read_body(request.receive, request.headers, MOST_BYTES))
        messages, settings = asked.conversation(), asked.settings()
        shape = Shape(True, asked.model, asked.include_usage)
        pieces = _pieces(pool, served, asked.model, lambda target: target.chat(messages, settings))
        return Answer(shape, pieces, bool(asked.stream))

    return app


async def _pieces(pool: Workers, served: Served, name: str, ask: Ask) -> AsyncGenerator[Piece]:
    """The answer of the model or app `name`, made in a worker; failures come out as ApiError."""
    try:
        async with aclosing(pool.iterate(lambda: ask(served.open(name)))) as pieces:
            async for piece in pieces:
                yield piece
    except (UserError, ModelUnavailable) as error:
        raise _as_api_error(error) from None


def _as_api_error(error: UserError | ModelUnavailable) -> ApiError:
    if isinstance(error, NoSuchTarget):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, ModelUnavailable):
        return ApiError(503, str(error), code="model_unavailable")
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    return ApiError(400, str(error))


class Answer(Response):
    """Sends an answer while it is made, whole or as events; a client that goes away ends its making.

    The status line waits for the first piece, so that what fails before it is a status and not an event.
    """

    def __init__(self, shape: Shape, pieces: AsyncGenerator[Piece], stream: bool) -> None:
        super().__init__()
        self._shape = shape
        self._pieces = pieces
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        sending = asyncio.create_task(self._send(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        finally:
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
            await self._pieces.aclose()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._stream:
                response = JSONResponse(await self._shape.whole(self._pieces))
                await response(scope, receive, send)
                return
            first = await anext(self._pieces, None)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._shape.events(first, self._pieces)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return ApiError(404, f"there is no such path: {method} {path}", code="unknown_url").response()
    if error.status_code == 405:
        response = ApiError(405, f"{path} does not take {method}", code="method_not_allowed").response()
        response.headers.update(error.headers or {})
        return response
    return ApiError(error.status_code, str(error.detail)).response()
