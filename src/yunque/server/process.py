"""The server as a process: its connections, the signals that end it, and how it ends."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from yunque.errors import UserError
from yunque.server.connections import KEEP_ALIVE_SECONDS, Connection, Patience, connection_class
from yunque.server.errors import ApiError
from yunque.server.service import Service


class Server(uvicorn.Server):
    """A server that ends in peace: at the first signal new requests are refused and running ones have their grace; at
    the second it ends at once."""

    def __init__(self, app: FastAPI, patience: Patience) -> None:
        service: Service = app.state.service
        cut = service.metrics.connections_cut
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(patience, lambda reason: cut.labels(reason).inc()),
                ws="none",
                # Its access log has the client's address and the query; ours has neither.
                access_log=False,
                log_level="warning",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=3,
            )
        )
        self._service = service
        self._ends_by: float | None = None

    def load(self, names: Sequence[str]) -> None:
        """Open these models now; raises UserError where one cannot be."""
        for name in names:
            try:
                self._service.load(name)
            except ApiError as error:
                raise UserError(f"--model {name}: {error.message}") from None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        del frame
        if self._service.stopping:
            sys.stderr.flush()
            # Threads that are in the middle of a step would be waited for.
            os._exit(128 + sig)
        self._service.stop()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        now = time.monotonic()
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.look(now)
        if self._service.stopping:
            if self._ends_by is None:
                self._ends_by = now + self._service.options.grace
            if now >= self._ends_by or not self._service.busy:
                # What still runs ends with an event that says why, in the time that uvicorn leaves it.
                self._service.end_requests()
                return True
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: ending on it is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {sig: signal.signal(sig, self.handle_exit) for sig in signals}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)
