"""How a server ends: in peace at the first signal, at once at the second, and with nothing lost when it is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from yunque.workspace import Workspace
from yunque.workspace.api_keys import Terms, create_api_key, key_usage

PROGRAM = f"""
import socket, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from around import Model, make_app
from yunque.server.connections import Patience
from yunque.server.process import Server
from yunque.server.service import ServeOptions, Service
from yunque.workspace import Workspace
folder, grace, keys = sys.argv[1:]
service = Service(Workspace.open(folder), keys == "keys", ServeOptions(grace=float(grace)))
bound = socket.create_server(("127.0.0.1", 0), backlog=100)
print(bound.getsockname()[1], flush=True)
Server(make_app(service, Model()), Patience()).run(sockets=[bound])
print("ended", flush=True)
"""
pytestmark = pytest.mark.slow


@contextmanager
def serving(folder: Path, grace: float = 20, keys: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    arguments = [sys.executable, "-c", PROGRAM, str(folder), str(grace), keys]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                httpx.get(url + "/healthz", timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def stream(url: str, **asked: Any) -> Any:
    return httpx.stream("POST", url + "/v1/completions", json={"stream": True, **asked}, timeout=20)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_running_streams_end_and_new_requests_are_refused(tmp_path: Path, sent: signal.Signals) -> None:
    with serving(tmp_path / "ws") as (process, url):
        with stream(url, max_tokens=40, pause=0.05) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(sent)
            time.sleep(0.3)
            refused = httpx.post(url + "/v1/completions", json={"max_tokens": 1})
            assert refused.status_code == 503 and refused.headers["retry-after"]
            assert refused.json()["error"]["code"] == "shutting_down"
            assert httpx.get(url + "/readyz").status_code == 503
            assert httpx.get(url + "/healthz").status_code == 200
            rest = [line for line in lines if line]
        assert len(rest) == 40 and rest[-1] == "data: [DONE]"
        output, complaints = process.communicate(timeout=10)
    assert process.returncode == 0 and output == "ended\n" and "Traceback" not in complaints


def test_what_outlasts_the_grace_is_ended_with_a_word(tmp_path: Path) -> None:
    with serving(tmp_path / "ws", grace=0.5) as (process, url):
        with stream(url, max_tokens=100_000, pause=0.05) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            rest = "".join(lines)
        assert '"code": "shutting_down"' in rest
        process.communicate(timeout=10)
    assert process.returncode == 0 and time.monotonic() - started < 5


def test_a_reader_that_stalls_does_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    with serving(tmp_path / "ws", grace=0.3) as (process, url), socket.socket() as connection:
        connection.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        body = b'{"stream": true, "max_tokens": 100000, "width": 4000}'
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.recv(100)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "ws") as (process, url), stream(url, max_tokens=100_000, pause=0.05) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=2)
        assert process.returncode == 128 + signal.SIGINT


def test_killing_it_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    with workspace.catalog.transaction() as connection:
        made, key = create_api_key(connection, "k", Terms(tokens_a_day=10_000))
    headers = {"authorization": f"Bearer {key}"}
    finished = 0
    with serving(tmp_path / "ws", keys="keys") as (process, url):
        with httpx.Client(headers=headers) as client:
            for _ in range(7):
                body = {"max_tokens": 3, "prompt_tokens": 2, "stream": True}
                answer = client.post(url + "/v1/completions", json=body)
                assert answer.text.endswith("data: [DONE]\n\n")
                finished += 5
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert key_usage(workspace.catalog.connection(), made.id).tokens == finished
    assert re.fullmatch(r"[0-9a-f]{8}", made.id)
