"""Tests that a model wrote, run in a process apart (`sandbox_process.py`) that is ended with all its children."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yunque.apps.structured import shortened
from yunque.configuration import Settings
from yunque.errors import UserError

_SCRIPT = Path(__file__).with_name("sandbox_process.py")
_MARK = "YUNQUE_SANDBOX"
_MOST_ERROR = 600


class SandboxLimits(Settings):
    """What tests may use: seconds of the clock and of a core, bytes of memory and of a file."""

    wall_seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 1_000_000_000
    file_bytes: int = 1_000_000


@dataclass(frozen=True)
class TestResult:
    """How one test went; `error` is the last line of what was raised."""

    __test__ = False  # pytest: this is no test

    name: str
    passed: bool
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class TestRun:
    """How the tests of a module went. `fault` says why none could be run, or that the time was over."""

    __test__ = False

    results: tuple[TestResult, ...]
    fault: str = ""

    @property
    def passed(self) -> frozenset[str]:
        """The names of the tests that pass."""
        return frozenset(one.name for one in self.results if one.passed)


def run_tests(subject: str, tests: str, limits: SandboxLimits = SandboxLimits()) -> TestRun:
    """Run `tests` (which import the module `subject`) on the code `subject`. Nothing of it runs in this process.

    Needs a POSIX system. Raises UserError where there is none: code that a model wrote is not run without limits.
    """
    if os.name != "posix":
        raise UserError(
            "tests that a model wrote are run on Linux and macOS only: elsewhere no sandbox holds them"
        )
    folder = Path(tempfile.mkdtemp(prefix="yunque-sandbox-"))
    try:
        (folder / "subject.py").write_text(subject, encoding="utf-8")
        (folder / "test_subject.py").write_text(tests, encoding="utf-8")
        with tempfile.TemporaryFile() as told:
            asked = {
                "CPU": limits.cpu_seconds,
                "AS": limits.memory_bytes,
                "FSIZE": limits.file_bytes,
                "NOFILE": 64,
                "CORE": 0,
            }
            command = [
                sys.executable,
                "-I",
                "-B",
                str(_SCRIPT),
                str(folder),
                str(told.fileno()),
                json.dumps(asked),
            ]
            in_time = run_apart(command, folder, limits.wall_seconds, (told.fileno(),))
            told.seek(0)
            return _understood(told.read(limits.file_bytes), in_time, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_apart(command: Sequence[str], folder: Path, seconds: float, handles: Sequence[int] = ()) -> bool:
    """Run a command with nothing of our environment; whether it ended in time. Afterwards it and every process that
    it started are gone, also those that left its group."""
    mark = secrets.token_hex(16)
    environment = {_MARK: mark, "LANG": "C.UTF-8", "HOME": str(folder), "TMPDIR": str(folder)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=tuple(handles),
    )  # fmt: skip
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _end_strays(mark)


def _end_strays(mark: str) -> None:
    """End what carries our mark in its environment: a child may have left the group."""
    wanted = f"{_MARK}={mark}".encode()
    for _ in range(20):
        found = False
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (place / "environ").read_bytes().split(b"\0"):
                    found = True
                    os.kill(int(place.name), signal.SIGKILL)
        if not found:
            return


def _understood(told: bytes, in_time: bool, limits: SandboxLimits) -> TestRun:
    lines = []
    for line in told.split(b"\n"):
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    over = "" if in_time else f"the time was over ({limits.wall_seconds:g} seconds)"
    if not lines:
        return TestRun((), over or "the tests ended at once (a limit of the sandbox)")
    if not lines[0].get("loaded"):
        return TestRun((), f"the tests cannot be loaded: {shortened(lines[0].get('error', ''), _MOST_ERROR)}")
    results = {
        line["name"]: TestResult(line["name"], line["passed"], shortened(line["error"], _MOST_ERROR))
        for line in lines[1:]
    }
    unfinished = [name for name in lines[0]["tests"] if name not in results]
    for name in unfinished:
        results[name] = TestResult(
            name, False, over or "it ended the process, or passed a limit of the sandbox"
        )
    return TestRun(tuple(results[name] for name in lines[0]["tests"]), over)
