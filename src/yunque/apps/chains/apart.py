"""Running code that is not ours (a step's function, a tool, the file that they lie in) apart from the rest.

`sys.exit()` in it ends nothing but itself, and what it prints goes to standard error, for standard output is the
command's answer. Programs that it starts, and threads of its own, print where they like.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, cast


class Exited(Exception):
    """The code called `sys.exit()`."""

    def __init__(self, code: object) -> None:
        super().__init__(f"it called sys.exit({'' if code is None else repr(code)})")


@contextmanager
def apart() -> Iterator[None]:
    """Run code apart; raises Exited in the place of SystemExit. Safe in several threads at once."""
    _part()
    token = _is_apart.set(True)
    try:
        yield
    except SystemExit as left:
        raise Exited(left.code) from left
    finally:
        _is_apart.reset(token)
        _join()


def reason_of(error: Exception) -> str:
    """What an exception of such code says, with its class."""
    if isinstance(error, Exited):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class _Parted:
    """Standard output for everybody, but standard error for code that runs apart."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if _is_apart.get() else self.stream, name)


_is_apart: ContextVar[bool] = ContextVar("yunque_is_apart", default=False)
_turn = threading.Lock()
_running = 0


def _part() -> None:
    global _running
    with _turn:
        _running += 1
        if not isinstance(sys.stdout, _Parted):
            sys.stdout = cast(TextIO, _Parted(sys.stdout))


def _join() -> None:
    """The last one puts standard output back as it was, unless somebody has put another there."""
    global _running
    with _turn:
        _running -= 1
        if not _running and isinstance(sys.stdout, _Parted):
            sys.stdout = sys.stdout.stream
