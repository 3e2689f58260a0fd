"""A Python process of its own that answers requests line by line, and is ended when one takes too long."""

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path


class TooLong(Exception):
    """A request took more time or memory than it may, and its process was ended."""


class LineProcess:
    """Runs `script` (isolated, `python -I`): a line in, a line out; callers take turns.

    It starts at the first request, and again after it was ended. `hello` is a request that does nothing, `seconds`
    the longest that one may take.
    """

    def __init__(self, script: Path, hello: bytes, seconds: float) -> None:
        self.seconds = seconds
        self._script, self._hello = script, hello
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.stop)

    def ask(self, request: bytes) -> bytes:
        """The answer to a request (a line, without its end). Raises TooLong; OSError where no process starts."""
        with self._turn:
            line = self._answer(self._started(), request + b"\n")
            if not line.endswith(b"\n"):
                self.stop()
                raise TooLong
            return line

    def stop(self) -> None:
        """End the process, if there is one of ours."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # a request that it never read
                    pipe.close()

    def _answer(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        assert process.stdin and process.stdout
        timer = threading.Timer(self.seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return b""
        finally:
            timer.cancel()

    def _started(self) -> subprocess.Popen[bytes]:
        # A forked child must not speak over its parent's pipe.
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.stop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(self._script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._owner = os.getpid()
        # Answered when it has started, so that starting does not count as time of the request.
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(self._hello + b"\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise OSError(f"{self._script.name} does not start")
        return self._process
