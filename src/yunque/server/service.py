"""What stands around the API of one server: its workers, limits, metrics, open models, and its end."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from yunque.machine import machine_memory
from yunque.server.access_log import AccessLog
from yunque.server.account import Account
from yunque.server.errors import ApiError
from yunque.server.gate import Gate
from yunque.server.limits import Limits
from yunque.server.loading import Loading
from yunque.server.metrics import Gauge, Metrics
from yunque.server.workers import Workers
from yunque.workspace import Workspace
from yunque.workspace.api_keys import still_working

_SHARE_OF_MEMORY = 0.7
_LOOK_SECONDS = 1.0
_END_SECONDS = 3.0


@dataclass(frozen=True)
class ServeOptions:
    """How a server is run. `workers` requests are answered at once and `most_waiting` more wait; a request may take
    `timeout` seconds, and running ones have `grace` seconds when the server ends. `memory` bytes are for models
    (None: a share of the machine's)."""

    workers: int = 32
    most_waiting: int = 128
    timeout: float = 600.0
    grace: float = 30.0
    memory: int | None = None

    @property
    def model_bytes(self) -> int | None:
        """The limit of memory for models; None where neither option nor system tells one."""
        total = machine_memory()
        return self.memory or (int(total * _SHARE_OF_MEMORY) if total else None)


class Service:
    """The parts that all requests share. `open_with` tells it how models are opened."""

    def __init__(self, workspace: Workspace, keys_required: bool, options: ServeOptions) -> None:
        self.workspace = workspace
        self.keys_required = keys_required
        self.options = options
        self.workers = Workers(options.workers, options.most_waiting)
        self.limits = Limits(workspace)
        self.metrics = Metrics(self._gauges)
        self.running: set[Account] = set()
        self.loading: Loading[Any] | None = None
        self._use: Callable[[str], AbstractContextManager[object]] | None = None
        self._stopping = threading.Event()
        self._ended = False

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused because the server ends."""
        return self._stopping.is_set()

    @property
    def busy(self) -> bool:
        """Whether requests are being answered."""
        return bool(self.running)

    def surround(self, app: FastAPI) -> None:
        """Put the gate and the log around the routes of an application."""
        app.add_middleware(
            Gate,
            workspace=self.workspace,
            keys_required=self.keys_required,
            limits=self.limits,
            most_seconds=self.options.timeout,
            stopping=lambda: self.stopping,
        )
        app.add_middleware(AccessLog, metrics=self.metrics, running=self.running)
        app.state.service = self

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncGenerator[None]:
        """What runs beside the requests, and the end of it all. It may begin again after it has ended."""
        if self._ended:
            self._ended = False
            self._stopping.clear()
            self.workers.reopen()
            if self.loading:
                self.loading.reopen()
        looking = asyncio.create_task(self._look_after_keys())
        try:
            yield
        finally:
            self.stop()
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
            self.end_requests()
            await asyncio.to_thread(self._close)
            self._ended = True

    def open_with(self, loading: Loading[Any], use: Callable[[str], AbstractContextManager[object]]) -> None:
        """Models are opened by `loading`; `use(name)` does so for a name that clients use."""
        self.loading, self._use = loading, use

    def load(self, name: str) -> None:
        """Open a model now, for those who will ask for it; raises UserError or ApiError where it cannot be."""
        if self._use:
            with self._use(name):
                pass

    def stop(self) -> None:
        """Refuse new requests; those that run go on."""
        self._stopping.set()

    def end_requests(self) -> None:
        """End what still runs. To be called on the event loop."""
        for one in tuple(self.running):
            one.cut(ApiError(503, "the server is shutting down", code="shutting_down"))

    def is_ready(self) -> bool:
        """Whether requests are taken and the workspace can be read."""
        try:
            self.workspace.catalog.connection().execute("SELECT count(*) FROM artifacts")
        except Exception:
            return False
        return self.workspace.catalog.path.is_file() and not self.stopping

    def _close(self) -> None:
        self.workers.close(_END_SECONDS)
        if self.loading:
            self.loading.close(_END_SECONDS)

    async def _look_after_keys(self) -> None:
        """Ends the requests whose key was revoked, or has expired, while they run."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            held = {one.key.id for one in self.running if one.key}
            if not held:
                continue
            # A workspace that cannot be read now is read a second later; new requests are not let in meanwhile.
            with suppress(Exception):
                working = await asyncio.to_thread(self._still_working, held)
                for one in tuple(self.running):
                    if one.key and one.key.id in held - working:
                        one.remark = one.remark or "key revoked"
                        one.cut(
                            ApiError(401, "this API key was revoked or has expired", code="invalid_api_key")
                        )

    def _still_working(self, ids: set[str]) -> set[str]:
        return still_working(self.workspace.catalog.connection(), sorted(ids))

    def _gauges(self) -> Iterator[Gauge]:
        yield "waiting_requests", "Requests that wait for a worker", self.workers.waiting
        yield "running_requests", "Requests that a worker answers", self.workers.running
        yield "open_requests", "Requests that were let in and not ended", len(self.running)
        yield from self._figures_of_engines()
        opened = self.loading.open_now() if self.loading else {}
        yield "models_loaded", "Models that are open", len(opened)
        yield "model_bytes", "Bytes that an open model holds", dict(opened)
        if self.options.model_bytes:
            yield "model_bytes_limit", "Bytes that open models may hold together", self.options.model_bytes

    def _figures_of_engines(self) -> Iterator[Gauge]:
        """What open models tell of their engines (prefix hits, blocks in use), each figure by model."""
        figures: dict[str, dict[str, float]] = {}
        for ref, target in (self.loading.targets() if self.loading else {}).items():
            if tell := getattr(target, "figures", None):
                for name, value in tell().items():
                    figures.setdefault(name, {})[ref] = value
        for name, values in figures.items():
            yield f"engine_{name}", "Told by the engines of open models", values
