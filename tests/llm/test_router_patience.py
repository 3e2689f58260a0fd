"""How long a router waits, for whom, and when it stops: readers that pause, models that think, calls nobody wants."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from faulty_models import ANSWER, ASKED, CONFIG, Clock, Remote, ended_threads, read, router_of

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, LanguageModel, Message, ModelUnavailable, ScriptedModel
from yunque.llm.asynchronous import AsyncModel
from yunque.llm.breaker import Breakers, BreakerSettings
from yunque.llm.retrying import Retrying, RetrySettings
from yunque.llm.router import Measured, Router, RouterSettings
from yunque.llm.under_way import UnderWay, pause, under_way

ONCE = RetrySettings(attempts=1, first_wait=0)


class Keeping(Remote):
    """Keeps the deadline of its call itself, as our adapters do, and thinks before its first word."""

    keeps_deadline = True

    def __init__(self, name: str, thoughts: int = 0, each: float = 0.0) -> None:
        super().__init__(name)
        self.thoughts, self.each = thoughts, each

    def _wait(self) -> None:
        call = under_way()
        assert call is not None
        time.sleep(self.each)
        if call.left() == 0:
            raise ModelUnavailable(f"{self.name} had not answered by the deadline", True)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        for chunk in self._pieces(messages, config):
            self._wait()
            yield chunk

    def _pieces(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        for _ in range(self.thoughts):
            yield Chunk("")
        yield from super().stream_chat(messages, config)


class Threaded(Keeping):
    keeps_deadline = False

    def _wait(self) -> None:
        time.sleep(self.each)


@pytest.mark.parametrize("kind", [Keeping, Threaded])
@pytest.mark.parametrize("hedge_after", [None, 5.0])
def test_the_readers_own_time_is_no_silence(kind: type[Keeping], hedge_after: float | None) -> None:
    model = kind("openai/a")
    router = router_of(model, silence=0.1, hedge_after=hedge_after)
    text, chunks = "", []
    for chunk in router.stream_chat(ASKED, CONFIG):
        text += chunk.text
        chunks.append(chunk)
        time.sleep(0.15)
    assert text == ANSWER and model.calls == 1
    assert not any(chunk.restart for chunk in chunks)
    assert ended_threads()


@pytest.mark.parametrize("kind", [Keeping, Threaded])
def test_a_model_that_thinks_is_not_silent_and_its_thoughts_are_not_shown(kind: type[Keeping]) -> None:
    seen: list[Measured] = []
    model = kind("openai/a", thoughts=8, each=0.04)
    settings = RouterSettings(model="openai/a", silence=0.15, retries=ONCE)
    router = Router(settings, {"openai/a": model}, Breakers(), seen.append)
    text, chunks = read(router.stream_chat(ASKED, CONFIG))
    assert text == ANSWER and model.calls == 1
    assert all(chunk.text or chunk.usage for chunk in chunks)
    # The first token is the first word, not the first thought.
    assert seen[0].first_token is not None and seen[0].first_token > 8 * 0.04
    assert ended_threads()


@pytest.mark.parametrize("kind", [Keeping, Threaded])
def test_who_only_gives_signs_of_life_leaves_the_next_its_share_of_the_time(kind: type[Keeping]) -> None:
    thinking = kind("openai/a", thoughts=1000, each=0.02)
    router = router_of(thinking, Remote("b/b"), deadline=0.6, retries=ONCE)
    text, chunks = read(router.stream_chat(ASKED, CONFIG))
    assert text == ANSWER and chunks[-1].model == "b/b"
    assert ended_threads()


def test_one_that_only_hangs_is_silent_all_the_same() -> None:
    model = Keeping("openai/a", thoughts=1, each=0.3)
    with pytest.raises(ModelUnavailable, match="deadline"):
        read(router_of(model, silence=0.1, retries=ONCE).stream_chat(ASKED, CONFIG))


def test_a_stream_of_which_only_signs_of_life_came_is_begun_again() -> None:
    class Thinking(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            yield Chunk("")
            yield from super().stream_chat(messages, config)

    model = Thinking("openai/a", lambda number: "reset" if number == 1 else None)
    chunks = list(Retrying(model, RetrySettings(first_wait=0)).stream_chat(ASKED, CONFIG))
    assert model.calls == 2 and "".join(chunk.text for chunk in chunks) == ANSWER
    assert all(chunk.text or chunk.usage for chunk in chunks)


# What a fallback cannot do ------------------------------------------------------------------------------------------


def test_what_a_fallback_cannot_do_leaves_the_next_one_to_answer() -> None:
    class Wrong(Remote):
        def chat(self, *_: object) -> Completion:  # type: ignore[override]
            raise UserError("openai/b cannot be asked for top_k")

    down = Remote("openai/a", lambda _: "reset")
    assert router_of(down, Wrong("openai/b"), Remote("c/c")).chat(ASKED, CONFIG).model == "c/c"
    with pytest.raises(ModelUnavailable, match="top_k"):
        router_of(down, Wrong("openai/b")).chat(ASKED, CONFIG)


# Calls that nobody wants any more -----------------------------------------------------------------------------------


def cancelled_after(model: LanguageModel, seconds: float) -> None:
    async def main() -> None:
        task = asyncio.create_task(AsyncModel(model).achat(ASKED, CONFIG))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_after_a_cancel_no_other_model_is_opened_or_asked() -> None:
    class Waking(Remote):
        def chat(self, *_: object) -> Completion:  # type: ignore[override]
            call, woken = under_way(), threading.Event()
            assert call
            with call.stopping(woken.set):
                woken.wait(5)
            raise ModelUnavailable("was stopped")

    opened: list[str] = []

    def opener(name: str) -> LanguageModel:
        opened.append(name)
        return Waking(name) if name == "openai/a" else ScriptedModel(lambda _: ANSWER, name)

    breakers = Breakers(BreakerSettings(failures=1))
    cancelled_after(Router(RouterSettings(model="openai/a", local_fallback="mini"), opener, breakers), 0.1)
    assert ended_threads()
    assert opened == ["openai/a"] and breakers.state("openai") == "closed"


def test_a_wait_between_attempts_ends_with_the_call() -> None:
    busy = Remote("openai/a", lambda _: "reset")
    settings = RouterSettings(model="openai/a", retries=RetrySettings(first_wait=60, longest_wait=60))
    started = time.monotonic()
    for model in (Router(settings, {"openai/a": busy}, Breakers()), Retrying(busy, settings.retries)):
        cancelled_after(model, 0.1)
        assert ended_threads()
    assert time.monotonic() - started < 4 and busy.calls == 2


def test_a_pause_is_as_long_as_it_was_asked_for_if_nobody_stops_it() -> None:
    started = time.monotonic()
    with UnderWay().current():
        pause(0.05)
    pause(0.05)
    assert 0.1 <= time.monotonic() - started < 1


# Whose fault it was -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline", [0.05, None])
def test_a_short_deadline_of_ours_is_no_failure_of_the_provider(deadline: float | None) -> None:
    breakers = Breakers(BreakerSettings(failures=3))
    model = Keeping("openai/a", each=0.06)
    silence = None if deadline else 0.05
    settings = RouterSettings(model="openai/a", deadline=deadline, silence=silence, retries=ONCE)
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            read(Router(settings, {"openai/a": model}, breakers).stream_chat(ASKED, CONFIG))
    # Its silence is its own, the haste is ours.
    assert breakers.state("openai") == ("closed" if deadline else "open")


def test_who_is_told_to_come_back_later_speaks_for_every_call() -> None:
    clock = Clock()
    busy = ScriptedModel([ModelUnavailable("busy", True, 60.0)] * 9, "openai/a", local=False)
    named = {"openai/a": busy, "mini": ScriptedModel(lambda _: ANSWER, "mini")}
    router = Router(
        RouterSettings(model="openai/a", local_fallback="mini"), named, Breakers(clock=clock), sleep=print
    )
    notes = [router.chat(ASKED, CONFIG).note for _ in range(5)]
    assert len(busy.asked) == 1 and "asked to be left alone" in notes[1]
    clock.now = 61.0
    router.chat(ASKED, CONFIG)
    assert len(busy.asked) == 2


def test_another_model_of_the_same_provider_is_asked_meanwhile() -> None:
    busy = ScriptedModel([ModelUnavailable("busy", True, 60.0)] * 9, "openai/a", local=False)
    assert router_of(busy, Remote("openai/b")).chat(ASKED, CONFIG).model == "openai/b"


def test_without_anybody_else_to_ask_the_next_call_waits_its_turn() -> None:
    waits: list[float] = []
    answers: list[str | Exception] = [ModelUnavailable("busy", True, 3.0), ANSWER, ANSWER]
    model = ScriptedModel(answers, "openai/a", local=False)
    retrying = Retrying(model, RetrySettings(attempts=1), sleep=waits.append)
    with pytest.raises(ModelUnavailable, match="busy"):
        retrying.chat(ASKED, CONFIG)
    assert retrying.chat(ASKED, CONFIG).text == ANSWER
    assert len(waits) == 1 and 2.0 < waits[0] <= 3.0


# Measuring and opening ----------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_an_answer_all_the_same() -> None:
    def full(_: Measured) -> None:
        raise OSError("disk full")

    router = Router(RouterSettings(model="openai/a"), {"openai/a": Remote("openai/a")}, Breakers(), full)
    assert router.chat(ASKED, CONFIG).text == ANSWER
    text, chunks = read(router.stream_chat(ASKED, CONFIG))
    assert text == ANSWER and chunks[-1].usage


def test_a_reader_that_leaves_with_the_last_piece_is_measured_too() -> None:
    seen: list[Measured] = []
    router = Router(
        RouterSettings(model="openai/a"), {"openai/a": Remote("openai/a")}, Breakers(), seen.append
    )
    chunks = router.stream_chat(ASKED, CONFIG)
    next(chunk for chunk in chunks if chunk.usage)
    chunks.close()  # type: ignore[attr-defined]
    assert len(seen) == 1


class Slow(Remote):
    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        time.sleep(0.3)
        return super().chat(messages, config)


def slow_opener(seconds: float, second: Callable[[], LanguageModel]) -> Callable[[str], LanguageModel]:
    def opener(name: str) -> LanguageModel:
        if name == "openai/a":
            return Slow(name)  # type: ignore[return-value]
        time.sleep(seconds)
        return second()

    return opener


def test_opening_the_second_model_does_not_hold_the_answer_of_the_first_up() -> None:
    second = ScriptedModel(lambda _: "tarde", "mini")
    router = Router(
        RouterSettings(model="openai/a", local_fallback="mini", hedge_after=0.05, deadline=2),
        slow_opener(1.2, lambda: second),
        Breakers(),
    )
    started = time.monotonic()
    assert router.chat(ASKED, CONFIG).text == ANSWER
    assert time.monotonic() - started < 0.9
    assert ended_threads()
    # It came too late, and is not asked for nobody.
    assert second.asked == []


def test_a_second_model_that_cannot_be_opened_is_no_loss() -> None:
    def nobody() -> LanguageModel:
        raise RuntimeError("no memory")

    settings = RouterSettings(model="openai/a", local_fallback="mini", hedge_after=0.05)
    assert Router(settings, slow_opener(0, nobody), Breakers()).chat(ASKED, CONFIG).text == ANSWER


def test_closing_it_closes_what_is_elsewhere_and_nothing_that_is_lent() -> None:
    closed: list[str] = []

    class Closing(ScriptedModel):
        def close(self) -> None:
            closed.append(self.name)

    named = {"openai/a": Closing([], "openai/a", local=False), "mini": Closing(lambda _: ANSWER, "mini")}
    router = Router(RouterSettings(model="openai/a", fallbacks=("mini",)), named, Breakers())
    router.chat(ASKED, CONFIG)
    router.close()
    assert closed == ["openai/a"]
