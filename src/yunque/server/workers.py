"""Threads that generate, so that the event loop never waits for a model."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import TypeVar

from yunque.server.errors import ApiError

T = TypeVar("T")


class Workers:
    """`count` threads that answer requests in the order they came; `most_waiting` may wait for one."""

    def __init__(self, count: int, most_waiting: int) -> None:
        self._count = count
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._most_waiting = most_waiting
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    async def iterate(self, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T]:
        """What `start()` yields, made in one of the threads; close this iterator to end the generator.

        Raises ApiError 429 when too many wait already.
        """
        if self._jobs.qsize() >= self._most_waiting:
            raise ApiError(429, "the server is busy: try again in a moment", code="rate_limit_exceeded")
        self._start_threads()
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[tuple[T | None, BaseException | None, bool]] = asyncio.Queue()
        unwanted = threading.Event()

        def hand_over(item: T | None, error: BaseException | None = None, last: bool = False) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(made.put_nowait, (item, error, last))

        def job() -> None:
            try:
                if not unwanted.is_set():
                    with closing(_as_generator(start)) as generator:
                        for item in generator:
                            hand_over(item)
                            if unwanted.is_set():
                                break
                            if self._closing.is_set():
                                raise ApiError(503, "the server is shutting down", code="shutting_down")
            except BaseException as error:
                hand_over(None, error, last=True)
            else:
                hand_over(None, last=True)

        self._jobs.put(job)
        try:
            while True:
                item, error, last = await made.get()
                if error:
                    raise error
                if last:
                    return
                yield item  # type: ignore[misc]  # an item that is not the last was yielded by the generator
        finally:
            unwanted.set()

    def close(self, patience: float) -> None:
        """End every generation, and wait at most `patience` seconds for all threads together."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(patience / len(self._threads))

    def _start_threads(self) -> None:
        # Daemons: a model of another machine that is silent must not keep the process from ending.
        while len(self._threads) < self._count and not self._closing.is_set():
            thread = threading.Thread(target=self._work, name=f"generation-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def _as_generator(start: Callable[[], Iterator[T]]) -> Generator[T]:
    yield from start()
