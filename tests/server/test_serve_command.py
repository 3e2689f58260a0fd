"""`yunque serve` in its own process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from yunque.errors import UserError
from yunque.server.run import make_server
from yunque.server.service import ServeOptions
from yunque.workspace import Artifact, Workspace

PROGRAM = """
import typer
from yunque.cli.serve import serve
from yunque.cli.show import complain
from yunque.errors import UserError
try:
    typer.run(serve)
except UserError as error:
    complain(str(error))
    raise SystemExit(2)
"""


@contextmanager
def running(workspace: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "YUNQUE_WORKSPACE": str(workspace)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_serves_until_ctrl_c_and_ends_in_peace(tmp_path: Path) -> None:
    with running(tmp_path / "ws", "--port", "0") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        served, clients = process.stdout.readline(), process.stdout.readline()
        url = re.fullmatch(r"Serving (http://127\.0\.0\.1:\d+/v1)\n", first)
        assert url, process.communicate()
        # The socket listens from before the line was printed; the answer comes as soon as the server runs.
        assert httpx.get(f"{url[1]}/models", timeout=20).json() == {"object": "list", "data": []}
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "none yet" in served and "no key needed, this machine only" in clients
    assert re.search(r"^\d\d:\d\d:\d\d GET /v1/models 200 \d+ ms req_\w+$", complaints, re.MULTILINE)
    assert "Traceback" not in complaints


@pytest.mark.slow
def test_a_port_in_use_and_open_doors_are_refused_with_exit_code_2(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running(tmp_path / "ws", "--port", port) as process:
            output, complaints = process.communicate(timeout=20)
    assert (process.returncode, output) == (2, "")
    assert complaints.count("\n") == 1 and f"port {port} is in use" in complaints
    with running(tmp_path / "ws", "--host", "0.0.0.0", "--no-keys") as process:
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 2 and "--no-keys is for this machine's own address only" in complaints
    with running(tmp_path / "ws", "--port", "0", "--memory", "much") as process:
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 2 and "--memory: 'much' is not a size" in complaints


@pytest.mark.slow
def test_models_are_opened_at_the_start_or_it_does_not_start(
    tmp_path: Path, put_tiny_model: Callable[..., Artifact]
) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace)
    with running(workspace.root, "--port", "0", "--model", "mini") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        figures = httpx.get(url.replace("/v1", "/metrics"), timeout=20).text
        assert "yunque_models_loaded 1.0" in figures
        assert re.search(r'yunque_model_bytes{model="model/mini@1"} [1-9]', figures)
        asked = {"model": "mini", "prompt": "Cada pasajero", "max_tokens": 3}
        assert httpx.post(f"{url}/completions", json=asked, timeout=20).status_code == 200
    with running(workspace.root, "--port", "0", "--model", "nothing") as process:
        output, complaints = process.communicate(timeout=30)
    assert (process.returncode, output) == (2, "")
    assert "'nothing' does not exist here (served: mini)" in complaints


def test_a_model_that_is_too_large_for_the_limit_is_told_before_the_start(
    tmp_path: Path, put_tiny_model: Callable[..., Artifact]
) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace)
    with pytest.raises(UserError, match=r"--model mini: model/mini@1 takes .* MB .*\(--memory\)"):
        make_server(workspace, False, ServeOptions(memory=10_000)).load(["mini"])
    make_server(workspace, False, ServeOptions(memory=10_000_000)).load(["mini"])


@pytest.mark.slow
def test_the_start_loads_no_torch() -> None:
    program = "import sys, yunque.server.run; print(*{'torch', 'scipy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
