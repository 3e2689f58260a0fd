"""The benchmark of calls runs; how quick it finds anything to be is not for a test."""

import argparse
import importlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def calling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("calling")


@pytest.fixture
def port(calling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(calling, "PACE", 0.0001)
    with calling.Server(("127.0.0.1", 0), calling.Answering) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class Gate:
    """A gate that is open for some steps."""

    def __init__(self, over: type[Exception], steps: int) -> None:
        self._over, self._left = over, steps

    def tick(self) -> None:
        self._left -= 1
        if not self._left:
            raise self._over


@pytest.mark.parametrize("name", ["httpx", "adapter", "routed", "openai"])
@pytest.mark.parametrize("task", ["call", "stream", "paced"])
def test_a_program_asks_until_its_turns_are_over(
    calling: ModuleType, port: int, name: str, task: str
) -> None:
    if name == "openai":
        pytest.importorskip("openai")
    given = argparse.Namespace(worker=name, tasks=task, port=port)
    with pytest.raises(KeyError):
        calling.work(Gate(KeyError, 3), given)


def test_what_is_asked_for_is_checked(
    calling: ModuleType, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "STREAM", calling.STREAM[1:])
    given = argparse.Namespace(worker="httpx", tasks="stream", port=port)
    with pytest.raises(AssertionError):
        calling.work(Gate(KeyError, 1), given)
    given.tasks = "call"
    with pytest.raises(KeyError):
        calling.work(Gate(KeyError, 1), given)


def _main(*arguments: str) -> "subprocess.CompletedProcess[str]":
    script = str(FOLDER / "calling.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=120)


def test_programs_are_compared_with_a_bare_one() -> None:
    done = _main("--quick", "--tasks", "call", "--programs", "httpx,adapter", "--threads", "1")
    assert done.returncode == 0, done.stderr
    bare, ours = done.stdout.splitlines()
    assert re.fullmatch(r"call +httpx .* ms CPU +over httpx +\+0\.00 ms, +1\.00x .* MB", bare)
    found = re.fullmatch(r"call +adapter +([\d.]+) ms .*x +(\d+) MB", ours)
    assert found and float(found[1]) > 0 and int(found[2]) > 10


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--programs", "httpx,htpx"], "htpx: is neither"),
        (["--tasks", "call,sing"], "sing: is neither"),
        (["--programs", "adapter"], "must name httpx"),
    ],
)
def test_what_cannot_be_compared_is_told_at_once(arguments: list[str], told: str) -> None:
    done = _main(*arguments)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
