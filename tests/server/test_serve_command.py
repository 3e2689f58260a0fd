"""`yunque serve` in its own process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

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
    assert re.search(r"^\d\d:\d\d:\d\d GET /v1/models 200 \d+ ms$", complaints, re.MULTILINE)
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


@pytest.mark.slow
def test_the_start_loads_no_torch() -> None:
    program = "import sys, yunque.server.run; print(*{'torch', 'scipy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
