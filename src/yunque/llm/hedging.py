"""Waiting for a model that may hang: a thread works for each call, and a second model may be asked beside the first.

A blocked call cannot be ended from outside in Python, only left: the one who waits goes on at once, and the thread
ends when its model gives its next piece, gives up by itself, or is woken (`yunque.llm.under_way`).
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from yunque.llm.face import LanguageModel, ModelUnavailable
from yunque.llm.under_way import UnderWay, under_way

THREAD = "yunque-call"
"""The name of the threads that work for calls."""

ItemT = TypeVar("ItemT")


@dataclass(eq=False)
class Runner(Generic[ItemT]):
    """A model, what it is asked, and the call that this is. `renew` sets its deadline for the item after this."""

    model: LanguageModel
    make: Callable[[], Iterator[ItemT]]
    call: UnderWay
    renew: Callable[[ItemT], None] = lambda _: None


Told = Callable[[Runner[ItemT], Exception | None], None]
Given = tuple[Runner[ItemT], ItemT | None, Exception | None]
Put = Callable[[Given[ItemT]], None]


class End(Exception):
    """A runner has no more items."""


def raced(
    first: Runner[ItemT],
    counts: Callable[[ItemT], bool],
    second: Callable[[], Runner[ItemT] | None] = lambda: None,
    after: float | None = None,
    told: Told[ItemT] = lambda *_: None,
) -> Generator[tuple[Runner[ItemT], ItemT], None, None]:
    """The items of `first`, made by a thread of its own, each by the deadline that its call then has.

    Where nothing that `counts` came within `after` seconds, `second` is asked beside it: who first gives something
    that counts goes on, the other is stopped. `second` is called in a thread of its own, as it may take long to open
    a model; `told` hears how it ended with one that lost (None) or failed. Raises the error of `first` where nobody
    is left.
    """
    race = _Race(first, counts, second, told, after)
    outer = under_way()
    with outer.stopping(race.wake) if outer else nullcontext():
        try:
            for runner, item in race.items():
                if outer and outer.stopped:
                    raise ModelUnavailable(f"{runner.model.name} was stopped")
                yield runner, item
        finally:
            race.stop()


class _Race(Generic[ItemT]):
    """Who is asked, and who may still win. Used by the one thread that waits."""

    def __init__(
        self,
        first: Runner[ItemT],
        counts: Callable[[ItemT], bool],
        second: Callable[[], Runner[ItemT] | None],
        told: Told[ItemT],
        after: float | None,
    ) -> None:
        self._first, self._counts, self._second, self._told = first, counts, second, told
        self._sink: SimpleQueue[Given[ItemT]] = SimpleQueue()
        self._hedge_at = None if after is None else time.monotonic() + after
        self._decided = after is None
        self._failure: Exception | None = None
        self._running: list[Runner[ItemT]] = [first]
        self._joining, self._over = threading.Lock(), False
        in_thread(first, self._sink.put)

    def items(self) -> Iterator[tuple[Runner[ItemT], ItemT]]:
        """What the winner gives."""
        while self._running:
            runner, item, error = self._next()
            if runner not in self._running:
                continue
            if isinstance(error, End):
                if self._decided:
                    return
                error = ModelUnavailable(f"{runner.model.name} ended without an answer", True)
            if error is not None:
                self._lost(runner, error)
            elif item is not None:
                if not self._decided and self._counts(item):
                    self._decide(runner)
                if self._decided:
                    yield runner, item
        assert self._failure is not None
        raise self._failure

    def wake(self) -> None:
        """Have the one who waits look about, from another thread."""
        self._sink.put((self._first, None, ModelUnavailable(f"{self._first.model.name} was stopped")))
        for runner in list(self._running):
            self._sink.put((runner, None, ModelUnavailable(f"{runner.model.name} was stopped")))

    def stop(self) -> None:
        """Nobody is waited for any more."""
        with self._joining:
            self._over = True
        for runner in self._running:
            runner.call.stop()

    def _ask_second(self) -> None:
        """In a thread of its own: open the second model, and ask it if it can still win."""
        try:
            runner = self._second()
        except Exception:
            return  # the route finds out what is wrong with it when its turn comes
        if runner is None:
            return
        with self._joining:
            if self._over or self._decided or not self._running:
                return
            self._running.append(runner)
        # Who waits has to know of its deadline.
        self._sink.put((runner, None, None))
        _work(runner, self._sink.put)

    def _next(self) -> Given[ItemT]:
        """What comes next: an item or an error. On the way a second model may be asked."""
        while True:
            limits = [(each.call.deadline, each) for each in self._running if each.call.deadline is not None]
            soonest, late = min(limits, key=lambda limit: limit[0], default=(None, None))
            moments = [moment for moment in (soonest, self._hedge_at) if moment is not None]
            try:
                if not moments:
                    return self._sink.get()
                return self._sink.get(timeout=max(0.0, min(moments) - time.monotonic()))
            except Empty:
                if late is not None and min(moments) == soonest:
                    if late.call.deadline is None or late.call.deadline > time.monotonic():
                        continue  # an item came meanwhile
                    late.call.stop()
                    return late, None, ModelUnavailable(f"{late.model.name} did not answer in time", True)
                self._hedge_at = None
                _thread(self._ask_second)

    def _lost(self, runner: Runner[ItemT], error: Exception) -> None:
        with self._joining:
            self._running.remove(runner)
        self._hedge_at = None
        if runner is self._first:
            self._failure = error
        else:
            self._told(runner, error)
            self._failure = self._failure or error

    def _decide(self, winner: Runner[ItemT]) -> None:
        with self._joining:
            self._decided, self._hedge_at = True, None
        for loser in self._running:
            if loser is not winner:
                loser.call.stop()
                self._told(loser, None)
        self._running = [winner]
        if winner is not self._first and self._failure:
            self._told(self._first, self._failure)


def in_thread(runner: Runner[ItemT], put: Put[ItemT]) -> None:
    """Have a thread of its own make a runner's items; `put` gets each, then an error or `End`."""
    _thread(lambda: _work(runner, put))


def _thread(work: Callable[[], None]) -> None:
    context = copy_context()
    threading.Thread(target=context.run, args=(work,), name=THREAD, daemon=True).start()


def _work(runner: Runner[ItemT], put: Put[ItemT]) -> None:
    try:
        with runner.call.current():
            items = runner.make()
            try:
                for item in items:
                    if runner.call.stopped:
                        return
                    put((runner, item, None))
                    runner.renew(item)
            finally:
                if close := getattr(items, "close", None):
                    close()
        put((runner, None, End()))
    except Exception as error:
        put((runner, None, error))
