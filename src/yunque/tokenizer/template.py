"""Asks the process that renders chat templates, and ends it when it takes too long."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from yunque.errors import UserError

SECONDS = 5.0
_SCRIPT = Path(__file__).with_name("template_process.py")


class _Renderer:
    """One process for all templates, started at the first call; callers take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text that a template makes. Raises UserError when it fails, or takes too much time or memory."""
        request = json.dumps({"template": template, "variables": variables}).encode() + b"\n"
        with self._turn:
            process = self._started()
            assert process.stdin and process.stdout
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            try:
                process.stdin.write(request)
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = b""
            finally:
                timer.cancel()
            if not line.endswith(b"\n"):
                self.stop()
                raise UserError(
                    f"the chat template takes more than {SECONDS:g} seconds or too much memory: it is not used"
                )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"the chat template {answer['error']}")
        return str(answer["text"])

    def _started(self) -> subprocess.Popen[bytes]:
        # A forked child must not speak over its parent's pipe.
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if self._process is not None and self._owner == os.getpid():
            self.stop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._owner = os.getpid()
        # Answered when it has started, so that starting does not count as time of the template.
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b'{"template": "", "variables": {}}\n')
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise UserError("the process that renders chat templates does not start: is jinja2 installed?")
        return self._process

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):  # a request that it never read
                    pipe.close()


_RENDERER = _Renderer()
atexit.register(_RENDERER.stop)
render = _RENDERER.render
