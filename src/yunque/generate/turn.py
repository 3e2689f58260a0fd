"""Whose turn it is at a model."""

import threading
from collections import deque
from types import TracebackType


class Turn:
    """A lock that is got in the order in which it was asked for.

    Python's own goes to whoever comes first after it was let go, which is nearly always the one that let it go: a
    thread that takes it again and again leaves it to nobody.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        """Wait until everyone who asked before has had it."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand it to the next."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
