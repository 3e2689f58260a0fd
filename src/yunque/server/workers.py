"""Threads that wait for models, so that the event loop never does; and the queue before them."""

import asyncio
import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import Generic, TypeVar

from yunque.server.account import account
from yunque.server.errors import ApiError

T = TypeVar("T")

_IDLE_SECONDS = 60.0
_BUFFERED = 256
# Less than the server waits for its connections at its end: the answer that says so goes out before they are closed.
_LAST_STEP_SECONDS = 2.0


class Workers:
    """At most `count` threads, begun when they are wanted; `most_waiting` requests may wait for one, in order."""

    def __init__(self, count: int, most_waiting: int) -> None:
        self._count = count
        self._most_waiting = most_waiting
        self._jobs: deque[_Job[object]] = deque()
        self._answered: set[_Job[object]] = set()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closing = False
        self._usual_seconds = 1.0

    @property
    def waiting(self) -> int:
        """How many wait for a thread."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """How many are being answered."""
        return len(self._answered)

    async def iterate(self, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T]:
        """What `start()` yields, made in one of the threads; close this iterator to end the generator.

        Where its items are not taken, the thread waits: no more than some are kept. Raises ApiError 429 when too many
        wait already, and what the request is cut off with (its deadline, a key that was revoked, the server's end).
        """
        job = _Job(start, asyncio.get_running_loop())
        self._put(job)
        try:
            with account().on_cut(job.fail):
                while True:
                    item, error, last = await job.made.get()
                    if error:
                        raise error
                    if last:
                        return
                    yield item  # type: ignore[misc]  # an item that is not the last was yielded by the generator
                    job.taken()
                    if not job.made.empty():
                        # What is there already would be sent without a look at other clients, or at whether this one
                        # is still there.
                        await asyncio.sleep(0)
        finally:
            self._withdraw(job)
            # The last step's tokens belong to this request's account.
            if not job.ended.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(job.ended.wait(), _LAST_STEP_SECONDS)

    def close(self, patience: float) -> None:
        """Take no more, drop what waits, and wait at most `patience` seconds for all threads together."""
        with self._changed:
            self._closing = True
            for job in (*self._jobs, *self._answered):
                job.drop(ApiError(503, "the server is shutting down", code="shutting_down"))
            self._jobs.clear()
            self._changed.notify_all()
            threads = tuple(self._threads)
        until = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def reopen(self) -> None:
        """Take work again after `close`."""
        with self._changed:
            self._closing = False

    def _put(self, job: "_Job[T]") -> None:
        with self._changed:
            if self._closing:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            # Threads that are free already but did not wake up yet will take as many.
            if len(self._jobs) - self._idle >= self._most_waiting and len(self._threads) >= self._count:
                message = (
                    f"the server is busy: {len(self._jobs)} requests wait already; try again in a moment"
                )
                retry = {"Retry-After": str(self._seconds_to_wait())}
                raise ApiError(429, message, code="rate_limit_exceeded", headers=retry)
            self._jobs.append(job)  # type: ignore[arg-type]  # what a job makes is between it and its caller
            if len(self._jobs) > self._idle and len(self._threads) < self._count:
                # Daemons: a model of another machine that is silent must not keep the process from ending.
                thread = threading.Thread(target=self._work, name="generation", daemon=True)
                self._threads.add(thread)
                thread.start()
            self._changed.notify()

    def _seconds_to_wait(self) -> int:
        """How long the queue takes, by what requests took lately."""
        return min(60, max(1, math.ceil(self._usual_seconds * (len(self._jobs) + 1) / self._count)))

    def _withdraw(self, job: "_Job[T]") -> None:
        job.withdraw()
        with self._changed, suppress(ValueError):
            self._jobs.remove(job)  # type: ignore[arg-type]
            job.ended.set()

    def _work(self) -> None:
        try:
            while self._answer_next():
                pass
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _answer_next(self) -> bool:
        """Answer the next request. False when there was none for a while, or there will be none.

        What a request held is let go with this call: a thread that waits must keep no model in memory.
        """
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._jobs or self._closing, _IDLE_SECONDS)
            finally:
                self._idle -= 1
            if not self._jobs:
                return False
            job = self._jobs.popleft()
            self._answered.add(job)
        started = time.monotonic()
        try:
            job.run()
        finally:
            with self._changed:
                self._answered.discard(job)
                self._usual_seconds += 0.1 * (time.monotonic() - started - self._usual_seconds)
        return True


class _Job(Generic[T]):
    """One generator, run in a thread, and the way of its items to the event loop."""

    def __init__(self, start: Callable[[], Iterator[T]], loop: asyncio.AbstractEventLoop) -> None:
        self.made: asyncio.Queue[tuple[T | None, BaseException | None, bool]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._start = start
        self._loop = loop
        self._unwanted = threading.Event()
        self._free = threading.Semaphore(_BUFFERED)
        self._context = contextvars.copy_context()

    def run(self) -> None:
        """Make the items, in the context of the request."""
        self._context.run(self._run)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            if not self._unwanted.is_set():
                with closing(_as_generator(self._start)) as generator:
                    for item in generator:
                        self._tell(self.made.put_nowait, (item, None, False))
                        self._free.acquire()
                        if self._unwanted.is_set():
                            break
        except TimeoutError:
            error = account().too_late()  # the engine keeps to the deadline too
        except BaseException as raised:
            error = raised
        try:
            # Before anybody is told that the answer is whole: what is finished is paid for, even if the process is
            # killed now.
            account().settle()
        except BaseException as raised:
            error = error or raised
        self._tell(self.made.put_nowait, (None, error, True))
        self._tell(self.ended.set)

    def taken(self) -> None:
        """An item was sent: there is room for another."""
        self._free.release()

    def withdraw(self) -> None:
        """Nobody waits for more. The generator is closed at its next item."""
        self._unwanted.set()
        self._free.release()

    def drop(self, error: ApiError) -> None:
        """End it with an error, from any thread."""
        self._tell(self.fail, error)
        self._tell(self.ended.set)

    def fail(self, error: ApiError) -> None:
        """End it with an error. To be called on the event loop."""
        self.withdraw()
        self.made.put_nowait((None, error, False))

    def _tell(self, call: Callable[..., None], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(call, *values)


def _as_generator(start: Callable[[], Iterator[T]]) -> Generator[T]:
    yield from start()
