"""A call that is under way: until when it may take, and how another thread stops it.

Whoever waits for a model sets it around each step, and a model that can looks at it wherever it would block.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

from yunque.llm.face import ModelUnavailable

_Item = TypeVar("_Item")
_CURRENT: ContextVar["UnderWay | None"] = ContextVar("yunque_call_under_way", default=None)


class UnderWay:
    """One call of a model. `deadline` is a `time.monotonic()`; None where there is no limit.

    A call may be made `within` another, a router's: it ends with that one.
    """

    def __init__(self, deadline: float | None = None, within: "UnderWay | None" = None) -> None:
        self.deadline = deadline
        self._within = within
        self._stopped = False
        self._lock = threading.Lock()
        self._stoppers: list[Callable[[], None]] = []

    @property
    def stopped(self) -> bool:
        """Whether somebody ended it."""
        return self._stopped or (self._within is not None and self._within.stopped)

    def left(self) -> float | None:
        """Seconds until the deadline, at least 0; None where there is no limit."""
        outer = self._within.left() if self._within else None
        if self.deadline is None:
            return outer
        mine = max(0.0, self.deadline - time.monotonic())
        return mine if outer is None else min(mine, outer)

    def stop(self) -> None:
        """End the call, from any thread; what blocks in it is woken where the model said how."""
        with self._lock:
            self._stopped = True
            stoppers, self._stoppers = self._stoppers, []
        for stopper in stoppers:
            # A connection that is gone already cannot be shut down again.
            with contextlib.suppress(OSError):
                stopper()

    @contextlib.contextmanager
    def stopping(self, stopper: Callable[[], None]) -> Iterator[None]:
        """While this lasts `stopper` is what wakes the call; it is run by the thread that stops it."""
        with self._lock:
            at_once = self._stopped
            if not at_once:
                self._stoppers.append(stopper)
        if at_once:
            stopper()
        try:
            with self._within.stopping(stopper) if self._within else contextlib.nullcontext():
                yield
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._stoppers.remove(stopper)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make it what `under_way()` tells to the code in the block."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def following(self, chunks: Iterator[_Item]) -> Iterator[_Item]:
        """The same items; each is made with this call as the current one, and the maker is closed at the end."""
        try:
            while True:
                token = _CURRENT.set(self)
                try:
                    item = next(chunks)
                except StopIteration:
                    return
                finally:
                    _CURRENT.reset(token)
                yield item
        finally:
            if close := getattr(chunks, "close", None):
                close()


def under_way() -> UnderWay | None:
    """The call that this code works for, if somebody said so."""
    return _CURRENT.get()


def raise_if_stopped(name: str) -> None:
    """Raises ModelUnavailable where nobody waits for this call any more: nothing else is to be asked for it."""
    call = under_way()
    if call is not None and call.stopped:
        raise ModelUnavailable(f"{name} was stopped")


def pause(seconds: float) -> None:
    """Sleep; who stops the call ends that at once."""
    call = under_way()
    if call is None:
        time.sleep(seconds)
        return
    woken = threading.Event()
    with call.stopping(woken.set):
        woken.wait(seconds)
