"""HTTP connections with an end: clients that send or read too slowly, too much or nothing are cut off."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from yunque.server.access_log import log
from yunque.server.errors import ApiError

KEEP_ALIVE_SECONDS = 30
_MOST_AHEAD = 1_000_000


@dataclass(frozen=True)
class Patience:
    """How long a client may take, in seconds, to send the head of a request and to read something of what was sent;
    how many clients there may be, and how many bytes a head may have."""

    head: float = 15.0
    stalled: float = 30.0
    connections: int = 1000
    head_bytes: int = 32_768


class _Parser(h11.Connection):
    """Remembers what was wrong with a request."""

    wrong: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        """The next part of a request; raises RemoteProtocolError."""
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.wrong = error
            raise


class _Flow(FlowControl):
    """Goes on reading while a request is answered: whether the client is still there would not be heard otherwise."""

    def __init__(self, transport: asyncio.Transport, parser: h11.Connection) -> None:
        super().__init__(transport)
        self._parser = parser

    def pause_reading(self) -> None:
        """Read no more for now, unless what was read belongs to the next request."""
        if self._parser.their_state is not h11.DONE:
            super().pause_reading()


class Connection(H11Protocol):
    """A client's connection. `look` is called from time to time and cuts it off where it has to be."""

    patience = Patience()
    on_cut: Callable[[str], None] = staticmethod(lambda _: None)

    def __init__(self, *values: Any, **fields: Any) -> None:
        super().__init__(*values, **fields)
        self.conn = _Parser(h11.SERVER, self.patience.head_bytes)
        self._waiting_since = time.monotonic()
        self._stalled_since: float | None = None
        self._ahead = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is there; one too many is told so."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.conn)
        if len(self.connections) > self.patience.connections:
            self._refuse(ApiError(503, "the server has too many connections", code="too_many_connections"))
            self._end("too many connections", abort=False)

    def data_received(self, data: bytes) -> None:
        """The client sent something; of the requests behind the one that is answered only so much is kept."""
        if self.conn.their_state is h11.DONE:
            self._ahead += len(data)
            if self._ahead > _MOST_AHEAD:
                self._end("sends too much ahead", abort=True)
                return
        super().data_received(data)

    def on_response_complete(self) -> None:
        """A request was answered: the next has its time from now."""
        self._waiting_since = time.monotonic()
        self._ahead = 0
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read what was sent."""
        self._stalled_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stalled_since = None
        super().resume_writing()

    def look(self, now: float) -> None:
        """Cut the client off if it has been too slow."""
        if self.transport is None or self.transport.is_closing():
            # Closing waits until the client has read the rest; one that reads nothing is waited for no longer.
            if self._stalled_since is not None and now - self._stalled_since > self.patience.stalled:
                self.transport.abort()
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._stalled_since is not None and now - self._stalled_since > self.patience.stalled:
            self._end("reads nothing", abort=True)
        elif not answering and now - self._waiting_since > max(
            self.patience.head, self.timeout_keep_alive + 1
        ):
            self._end("sends no request", abort=True)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's own words
        """Answer what is no HTTP, in OpenAI's shape."""
        wrong = getattr(self.conn, "wrong", None)
        status = wrong.error_status_hint if wrong else 400
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before it, or the one whose body this is, cannot be answered any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        what = "the head of the request is too long" if status == 431 else "this is not an HTTP request"
        self._refuse(ApiError(status, what, code="invalid_http"))
        log.info("- (no request) %s 0 ms -", status)
        self._end("not HTTP", abort=False)

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers = {"Content-Type": "application/json", "Connection": "close", **error.headers}
        headers["Content-Length"] = str(len(body))
        events = (
            h11.Response(status_code=error.status, headers=list(headers.items()), reason=b""),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        try:
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        except h11.LocalProtocolError:
            self.transport.abort()  # in the middle of an answer there is no place for another

    def _end(self, reason: str, abort: bool) -> None:
        self.on_cut(reason)
        if abort:
            self.transport.abort()
        else:
            self.transport.close()


def connection_class(patience: Patience, on_cut: Callable[[str], None]) -> type[Connection]:
    """The class of connections with this patience; `on_cut` hears why one was cut off."""
    return type("Connection", (Connection,), {"patience": patience, "on_cut": staticmethod(on_cut)})


def let_go_of_the_dead(listening: socket.socket, seconds: float) -> None:
    """Have the system end connections whose other side acknowledges nothing for so long: its machine is gone."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


def quiet_uvicorn() -> None:
    """What uvicorn says of requests that are no HTTP is in our own log."""
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: record.getMessage() != "Invalid HTTP request received."
    )
