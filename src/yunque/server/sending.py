"""Sending an answer while it is made, whole or as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from yunque.llm import Chunk
from yunque.server.errors import ApiError, internal_error


class Shape(Protocol):
    """How one answer is written down. Either `whole` is called, or the others: `begin`, `piece` for each, `end`."""

    def whole(self, pieces: Iterable[Chunk]) -> Mapping[str, object]:
        """The response that is not streamed."""
        ...

    def begin(self) -> Iterable[bytes]:
        """The events before the first piece."""
        ...

    def piece(self, piece: Chunk) -> Iterable[bytes]:
        """The events that tell of a piece."""
        ...

    def end(self) -> Iterable[bytes]:
        """The events behind the last piece."""
        ...

    def broken(self, error: ApiError) -> Iterable[bytes]:
        """The events that tell of an error, behind which nothing comes."""
        ...


# What some clients take for the end of a line, wrongly, though it is none in JSON or in a stream of events.
_SEEMING_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def event(value: Mapping[str, object], kind: str | None = None) -> bytes:
    """A server-sent event with a JSON value."""
    name = f"event: {kind}\n" if kind else ""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_SEEMING_ENDS)
    return f"{name}data: {data}\n\n".encode()


class Answer(Response):
    """Sends an answer while it is made; a client that goes away ends its making.

    The status line waits for the first piece, so that what fails before it is a status and not an event.
    """

    def __init__(self, shape: Shape, pieces: AsyncGenerator[Chunk], stream: bool) -> None:
        super().__init__()
        self._shape = shape
        self._pieces = pieces
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        try:
            await _while_connected(receive, self._send(scope, receive, send))
        finally:
            await self._pieces.aclose()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._stream:
                async with aclosing(self._pieces) as pieces:
                    made = [piece async for piece in pieces]
                await JSONResponse(self._shape.whole(made))(scope, receive, send)
                return
            first = await anext(self._pieces, None)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._events(first)) as events:
            async for body in events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, first: Chunk | None) -> AsyncGenerator[bytes]:
        """The events, those of one piece at a time; an error on the way is told by one of its own."""
        yield b"".join(self._shape.begin())
        piece = first
        try:
            while piece is not None:
                if events := b"".join(self._shape.piece(piece)):
                    yield events
                piece = await anext(self._pieces, None)
        except ApiError as error:
            yield b"".join(self._shape.broken(error))
            return
        except Exception:
            yield b"".join(self._shape.broken(internal_error()))
            raise
        yield b"".join(self._shape.end())


class Reply(Response):
    """Sends as JSON what `making` makes, once it is there; a client that goes away ends its making."""

    def __init__(self, making: Coroutine[Any, Any, Mapping[str, object]]) -> None:
        super().__init__()
        self._making = making

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        await _while_connected(receive, self._send(scope, receive, send))

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response: Response = JSONResponse(await self._making)
        except ApiError as error:
            response = error.response()
        await response(scope, receive, send)


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, as long as the client is there."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
