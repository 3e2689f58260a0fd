"""Servers with a made-up model, on real ports."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from around import Model, Running, make_app, until

from yunque.server.connections import Patience
from yunque.server.process import Server
from yunque.server.service import ServeOptions, Service
from yunque.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def start(workspace: Workspace) -> Iterator[Callable[..., Running]]:
    """Starts servers, and ends them after the test."""
    running: list[tuple[Server, threading.Thread, socket.socket]] = []

    def started(keys_required: bool = False, patience: Patience | None = None, **options: Any) -> Running:
        service, model = Service(workspace, keys_required, ServeOptions(**options)), Model()
        server = Server(make_app(service, model), patience or Patience())
        bound = socket.create_server(("127.0.0.1", 0), backlog=2048)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        running.append((server, thread, bound))
        assert until(lambda: server.started)
        return Running(workspace, service, model, bound.getsockname()[1], server)

    yield started
    for server, thread, bound in running:
        server.should_exit = True
        thread.join(15)
        bound.close()
        assert not thread.is_alive()
