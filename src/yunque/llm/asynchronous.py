"""Models in programs that use asyncio: the same answers, awaited.

Each call has a thread of its own. Models of this machine compute in native code that lets go of Python's lock, and
the adapters of remote ones are written once, without async: a thread costs some 0.1 ms beside an answer that takes
hundreds. A pool would be cheaper still and could deadlock: whoever reads one stream while it waits for the next needs
two places in it. Pieces that nobody fetched yet wait in memory, at most one answer for each call.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, TypeVar

from yunque.generate.config import GenerationConfig
from yunque.llm.face import Chunk, Completion, Embeddings, LanguageModel, Message, Prompt
from yunque.llm.hedging import End, Given, Runner, in_thread
from yunque.llm.router import joined
from yunque.llm.under_way import UnderWay

ItemT = TypeVar("ItemT")


class AsyncModel:
    """Any model, to be awaited. `deadline` is the longest that a call may take (seconds).

    A call that is cancelled, or a stream that is closed, ends the generation at its next piece, or at once where the
    model can be woken. Raises what the model raises, and TimeoutError at the deadline.
    """

    def __init__(self, model: LanguageModel, deadline: float | None = None) -> None:
        self.model = model
        self.name = model.name
        self.local = model.local
        self._deadline = deadline

    async def achat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        model = self.model
        if model.local:
            # In pieces it can be ended between two of them.
            return await self._one(lambda: joined(model.stream_chat(messages, config), model.name))
        return await self._one(lambda: model.chat(messages, config))

    async def acomplete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        model = self.model
        if model.local:
            return await self._one(lambda: joined(model.stream_complete(prompt, config), model.name))
        return await self._one(lambda: model.complete(prompt, config))

    def astream_chat(
        self, messages: Sequence[Message], config: GenerationConfig
    ) -> AsyncGenerator[Chunk, None]:
        """Answer a conversation piece by piece."""
        return self._items(lambda: self.model.stream_chat(messages, config))

    def astream_complete(self, prompt: Prompt, config: GenerationConfig) -> AsyncGenerator[Chunk, None]:
        """Go on with a text piece by piece."""
        return self._items(lambda: self.model.stream_complete(prompt, config))

    async def aembed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text."""
        model: Any = self.model
        return await self._one(lambda: model.embed(texts))

    async def ascore(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer."""
        model: Any = self.model
        return await self._one(lambda: model.score(messages, answers))

    async def _one(self, ask: Callable[[], ItemT]) -> ItemT:
        async with contextlib.aclosing(self._items(lambda: iter([ask()]))) as items:
            async for item in items:
                return item
        raise AssertionError("a call gives one answer or raises")

    async def _items(self, make: Callable[[], Iterator[ItemT]]) -> AsyncGenerator[ItemT, None]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Given[ItemT]]()
        limit = None if self._deadline is None else time.monotonic() + self._deadline
        call = UnderWay(limit)

        def put(given: Given[ItemT]) -> None:
            # The program may have ended its loop, and us with it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, given)

        in_thread(Runner(self.model, make, call), put)
        try:
            while True:
                async with asyncio.timeout(call.left()):
                    _, item, error = await queue.get()
                if isinstance(error, End):
                    return
                if error is not None:
                    raise error
                assert item is not None
                yield item
        finally:
            call.stop()
