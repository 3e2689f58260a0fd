"""A real server on a loopback port, in a thread."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from yunque.server.run import bound_socket, make_server, url_of
from yunque.workspace import Workspace


@dataclass
class Running:
    """A server that runs."""

    workspace: Workspace
    url: str

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=20)

    def raw(self, request: bytes) -> bytes:
        """Everything the server says to bytes that no client would send."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Starts servers, and ends them after the test."""
    running: list[tuple[object, threading.Thread, socket.socket]] = []

    def started(workspace: Workspace, keys_required: bool = False) -> Running:
        server, bound = make_server(workspace, keys_required), bound_socket("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        running.append((server, thread, bound))
        return Running(workspace, url_of(bound))

    yield started
    for server, thread, bound in running:
        server.should_exit = True  # type: ignore[attr-defined]
        thread.join(10)
        bound.close()
        assert not thread.is_alive()
