"""Models in an asyncio program: the same answers, many at once, and ended when nobody waits for them."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from faulty_models import ended_threads

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Embeddings, Message, ModelUnavailable, ScriptedModel
from yunque.llm.asynchronous import AsyncModel
from yunque.llm.breaker import Breakers
from yunque.llm.router import Router, RouterSettings
from yunque.llm.under_way import under_way

CONFIG = GenerationConfig(max_new_tokens=50)
ASKED = [Message("user", "hola")]


class Endless(ScriptedModel):
    """Writes a word every few milliseconds until it is closed."""

    def __init__(self) -> None:
        super().__init__(lambda _: "x", "mini")
        self.closed = threading.Event()
        self.written = 0

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        del messages, config
        try:
            while True:
                time.sleep(0.002)
                self.written += 1
                yield Chunk("y ")
        finally:
            self.closed.set()


@pytest.mark.parametrize("local", [False, True])
def test_it_answers_as_the_model_does(local: bool) -> None:
    async def main() -> None:
        model = AsyncModel(ScriptedModel(lambda m: f"dices {m[-1].content}", "m", local))
        assert (await model.achat(ASKED, CONFIG)).text == "dices hola"
        assert (await model.acomplete("adiós", CONFIG)).text == "dices adiós"
        chunks = [chunk async for chunk in model.astream_chat(ASKED, CONFIG)]
        assert "".join(chunk.text for chunk in chunks) == "dices hola"
        assert chunks[-1].finish_reason == "stop" and chunks[-1].usage
        chunks = [chunk async for chunk in model.astream_complete("adiós", CONFIG)]
        assert "".join(chunk.text for chunk in chunks) == "dices adiós"

    asyncio.run(main())


def test_vectors_and_likelihoods_are_awaited_too() -> None:
    class Able(ScriptedModel):
        def embed(self, texts: Sequence[object]) -> Embeddings:
            return Embeddings([[1.0]] * len(texts), 3)

        def score(self, messages: object, answers: Sequence[str]) -> list[float]:
            del messages
            return [-1.0] * len(answers)

    async def main() -> None:
        model = AsyncModel(Able([], "m"))
        assert (await model.aembed(["a", "b"])).vectors == [[1.0], [1.0]]
        assert await model.ascore(ASKED, ["a"]) == [-1.0]

    asyncio.run(main())


@pytest.mark.parametrize("error", [ModelUnavailable("reset"), UserError("no"), KeyError("bug")])
def test_errors_come_out_as_they_are(error: Exception) -> None:
    async def main() -> None:
        model = AsyncModel(ScriptedModel([error, error], "m", local=False))
        with pytest.raises(type(error)):
            await model.achat(ASKED, CONFIG)
        with pytest.raises(type(error)):
            _ = [chunk async for chunk in model.astream_chat(ASKED, CONFIG)]

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile() -> None:
    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        class Slow(ScriptedModel):
            def chat(self, *asked: object) -> object:  # type: ignore[override]
                time.sleep(0.2)
                return super().chat(*asked)  # type: ignore[arg-type]

        counting = asyncio.create_task(count())
        await AsyncModel(Slow(lambda _: "x", "m", local=False)).achat(ASKED, CONFIG)
        counting.cancel()
        return turns

    assert asyncio.run(main()) > 10


def test_closing_a_stream_ends_the_generation() -> None:
    inner = Endless()

    async def main() -> None:
        stream = AsyncModel(inner).astream_chat(ASKED, CONFIG)
        assert (await anext(stream)).text == "y "
        await stream.aclose()

    asyncio.run(main())
    assert inner.closed.wait(2) and ended_threads()


@pytest.mark.parametrize("routed", [False, True])
def test_cancelling_a_task_ends_the_generation_behind_a_router_too(routed: bool) -> None:
    inner = Endless()
    settings = RouterSettings(model="mini", deadline=20)
    model = AsyncModel(Router(settings, {"mini": inner}, Breakers()) if routed else inner)

    async def main() -> None:
        task = asyncio.create_task(model.achat(ASKED, CONFIG))
        while not inner.written:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert inner.closed.wait(2) and ended_threads()


def test_a_model_that_waits_is_woken_when_its_task_is_cancelled() -> None:
    woken = threading.Event()

    class Waiting(ScriptedModel):
        def chat(self, *asked: object) -> object:  # type: ignore[override]
            call = under_way()
            assert call
            with call.stopping(woken.set):
                woken.wait(10)
            return super().chat(*asked)  # type: ignore[arg-type]

    inner = Waiting(lambda _: "x", "a/a", local=False)
    for model in (inner, Router(RouterSettings(model="a/a", deadline=20), {"a/a": inner}, Breakers())):
        woken.clear()

        async def main(model: object = model) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(AsyncModel(model).achat(ASKED, CONFIG), 0.1)  # type: ignore[arg-type]

        started = time.monotonic()
        asyncio.run(main())
        assert woken.wait(2) and time.monotonic() - started < 2 and ended_threads()


def test_the_deadline_holds() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await AsyncModel(Endless(), deadline=0.1).achat(ASKED, CONFIG)

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 1 and ended_threads()


def test_hundreds_at_once_and_one_inside_of_another_do_not_wait_for_ever() -> None:
    model = AsyncModel(ScriptedModel(lambda m: f"dices {m[-1].content}", "m"))

    async def nested(number: int) -> str:
        text = ""
        async for chunk in model.astream_chat([Message("user", str(number))], CONFIG):
            if chunk.text:
                inner = await model.achat([Message("user", chunk.text.strip())], CONFIG)
                text += inner.text + " "
        return text

    async def main() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*map(nested, range(200))), 30)

    assert asyncio.run(main()) == [f"dices dices dices {number} " for number in range(200)]
    assert ended_threads()
