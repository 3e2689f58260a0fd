"""Several models as one: what is asked again, who answers instead, and what a reader of a stream sees."""

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from faulty_models import ANSWER, ASKED, CONFIG, Remote, at_random, ended_threads, read, router_of

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, ContextOverflow, Message, ModelUnavailable, ScriptedModel, Usage
from yunque.llm.breaker import Breakers
from yunque.llm.face import ToolCallPart
from yunque.llm.retrying import Refusal, RetrySettings
from yunque.llm.router import Measured, Router, RouterSettings
from yunque.llm.under_way import under_way
from yunque.llm.wire import Declined


@pytest.mark.parametrize("streamed", [False, True])
def test_every_one_of_1000_requests_is_answered_though_half_the_calls_fail(streamed: bool) -> None:
    faulty = Remote("openai/bad", at_random(0.5, 1))
    router = router_of(faulty, Remote("ollama/good"))
    for _ in range(1000):
        if streamed:
            text, chunks = read(router.stream_chat(ASKED, CONFIG))
            assert chunks[-1].finish_reason == "stop" and chunks[-1].usage
        else:
            text = router.chat(ASKED, CONFIG).text
        assert text == ANSWER
    assert faulty.calls >= 1000


@pytest.mark.parametrize("streamed", [False, True])
def test_without_a_router_half_of_them_are_not(streamed: bool) -> None:
    faulty, answered = Remote("openai/bad", at_random(0.5, 1)), 0
    for _ in range(200):
        try:
            text = read(faulty.stream_chat(ASKED, CONFIG))[0] if streamed else faulty.chat(ASKED, CONFIG).text
        except ModelUnavailable:
            continue
        answered += text == ANSWER
    assert 60 < answered < 140


def test_a_failure_before_the_first_word_is_not_seen_in_the_stream() -> None:
    text, chunks = read(
        router_of(Remote("openai/a", lambda _: "reset"), Remote("b/b")).stream_chat(ASKED, CONFIG)
    )
    assert text == ANSWER
    assert not any(chunk.restart for chunk in chunks)


def test_after_the_first_word_the_whole_answer_follows_a_restart() -> None:
    router = router_of(Remote("openai/a", lambda _: "half"), Remote("b/b", text="Otra respuesta entera."))
    text, chunks = read(router.stream_chat(ASKED, CONFIG))
    restarts = [chunk for chunk in chunks if chunk.restart]
    assert text == "Otra respuesta entera."
    # One for the second attempt at the same model, one for the other model.
    assert [(chunk.text, chunk.model) for chunk in restarts] == [("", "openai/a"), ("", "b/b")]
    assert "".join(chunk.text for chunk in chunks) != text


def test_a_call_of_a_tool_counts_as_seen_too() -> None:
    class Calling(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            del messages, config
            yield Chunk("", tool_calls=(ToolCallPart(0, "{", "c1", "find"),))
            raise ModelUnavailable("reset", False)

    _, chunks = read(router_of(Calling("openai/a"), Remote("b/b")).stream_chat(ASKED, CONFIG))
    assert [chunk.restart for chunk in chunks].count(True) == 1


def test_the_local_model_answers_when_every_remote_one_is_down_and_the_answer_says_so() -> None:
    down = [Remote(name, lambda _: "reset") for name in ("openai/gpt-4o-mini", "anthropic/claude")]
    local = ScriptedModel(lambda _: ANSWER, "model/mini@1")
    named = {"model/mini@1": local, **{model.name: model for model in down}}
    settings = RouterSettings(
        model="openai/gpt-4o-mini",
        fallbacks=("anthropic/claude",),
        local_fallback="model/mini@1",
        retries=RetrySettings(attempts=2, first_wait=0),
    )
    router = Router(settings, named, Breakers())
    said = "openai/gpt-4o-mini could not be reached; answered by model/mini@1 on this machine"
    assert router.chat(ASKED, CONFIG).note == said
    assert read(router.stream_chat(ASKED, CONFIG))[1][-1].note == said
    assert [model.calls for model in down] == [4, 4]


def test_an_answer_of_the_first_model_has_no_note() -> None:
    router = router_of(Remote("openai/a", lambda number: "reset" if number == 1 else None), Remote("b/b"))
    assert router.chat(ASKED, CONFIG).note == ""


def test_what_the_caller_asked_wrongly_is_told_at_once() -> None:
    class Wrong(Remote):
        def chat(self, *_: object) -> Completion:  # type: ignore[override]
            raise UserError("takes no n")

    fallback = Remote("b/b")
    with pytest.raises(UserError, match="takes no n"):
        router_of(Wrong("openai/a"), fallback).chat(ASKED, CONFIG)
    assert fallback.calls == 0


def test_a_bug_in_a_model_counts_as_its_failure_and_stays_known() -> None:
    class Broken(Remote):
        def chat(self, *_: object) -> Completion:  # type: ignore[override]
            raise KeyError("choices")

    assert router_of(Broken("openai/a"), Remote("b/b")).chat(ASKED, CONFIG).text == ANSWER
    with pytest.raises(ModelUnavailable) as caught:
        router_of(Broken("openai/a")).chat(ASKED, CONFIG)
    assert isinstance(caught.value.__cause__, KeyError)


def test_too_long_a_text_goes_to_the_models_for_long_ones() -> None:
    short = ScriptedModel([ContextOverflow("too long", 3)] * 4, "openai/short")
    other, long = Remote("b/b"), Remote("c/long")
    named = {"openai/short": short, "b/b": other, "c/long": long}
    settings = RouterSettings(model="openai/short", fallbacks=("b/b",), context_window_fallbacks=("c/long",))
    answer = Router(settings, named, Breakers()).chat(ASKED, CONFIG)
    assert (answer.model, other.calls) == ("c/long", 0)
    assert "no room" in answer.note
    with pytest.raises(ContextOverflow) as caught:
        Router(RouterSettings(model="openai/short", fallbacks=("b/b",)), named, Breakers()).chat(
            ASKED, CONFIG
        )
    assert (caught.value.room, other.calls) == (3, 0)


def test_retry_after_is_obeyed_and_one_that_is_too_long_is_not_waited_for() -> None:
    waits: list[float] = []
    busy = ScriptedModel([ModelUnavailable("busy", True, 7.0), ANSWER], "openai/a", local=False)
    settings = RouterSettings(model="openai/a", retries=RetrySettings(attempts=3, first_wait=1.0))
    assert Router(settings, {"openai/a": busy}, Breakers(), sleep=waits.append).chat(ASKED, CONFIG).text
    assert len(waits) == 1 and 7.0 <= waits[0] <= 8.0
    gone = ScriptedModel([ModelUnavailable("busy", True, 700.0), ANSWER], "openai/a", local=False)
    with pytest.raises(ModelUnavailable):
        Router(settings, {"openai/a": gone}, Breakers(), sleep=waits.append).chat(ASKED, CONFIG)
    assert len(waits) == 1 and len(gone.asked) == 1


def test_waits_are_random_and_grow_up_to_the_longest() -> None:
    waits: list[list[float]] = []
    for _ in range(200):
        here: list[float] = []
        waits.append(here)
        down = Remote("openai/a", lambda _: "reset")
        retries = RetrySettings(attempts=6, first_wait=1.0, longest_wait=4.0)
        settings = RouterSettings(model="openai/a", retries=retries)
        with pytest.raises(ModelUnavailable):
            Router(settings, {"openai/a": down}, Breakers(), sleep=here.append).chat(ASKED, CONFIG)
    for number, top in enumerate((1, 2, 4, 4, 4)):
        drawn = [each[number] for each in waits]
        assert 0 <= min(drawn) < 0.2 * top and 0.8 * top < max(drawn) <= top


@pytest.mark.parametrize("streamed", [False, True])
def test_the_deadline_holds_though_every_model_hangs(streamed: bool) -> None:
    release = threading.Event()

    class Hanging(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            del messages, config
            yield Chunk("La ")
            release.wait(10)

    router = router_of(Hanging("openai/a"), Hanging("b/b"), deadline=0.4)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="in time"):
        read(router.stream_chat(ASKED, CONFIG)) if streamed else router.chat(ASKED, CONFIG)
    assert time.monotonic() - started < 1.0
    release.set()
    assert ended_threads()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_that_hangs_leaves_the_next_its_share_of_the_time(streamed: bool) -> None:
    release = threading.Event()

    class Hanging(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            release.wait(10)
            yield from super().stream_chat(messages, config)

    router = router_of(Hanging("openai/a"), Remote("b/b"), deadline=0.6, retries=RetrySettings(attempts=1))
    text = read(router.stream_chat(ASKED, CONFIG))[0] if streamed else router.chat(ASKED, CONFIG).text
    assert text == ANSWER
    release.set()
    assert ended_threads()


def test_a_silent_remote_stream_is_left_for_the_next_model() -> None:
    release = threading.Event()

    class Falling(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            del messages, config
            yield Chunk("La ")
            release.wait(10)

    router = router_of(Falling("openai/a"), Remote("b/b"), silence=0.1, retries=RetrySettings(attempts=1))
    text, chunks = read(router.stream_chat(ASKED, CONFIG))
    assert text == ANSWER and any(chunk.restart for chunk in chunks)
    release.set()
    assert ended_threads()


def test_a_model_that_keeps_deadlines_itself_is_asked_without_a_thread() -> None:
    seen: list[tuple[float | None, str]] = []

    class Keeping(Remote):
        keeps_deadline = True

        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            for chunk in super().stream_chat(messages, config):
                call = under_way()
                seen.append((call.left() if call else None, threading.current_thread().name))
                yield chunk

    read(router_of(Keeping("openai/a"), deadline=5.0).stream_chat(ASKED, CONFIG))
    assert seen and all(left is not None and 0 < left <= 5 for left, _ in seen)
    assert {name for _, name in seen} == {threading.current_thread().name}
    assert under_way() is None


@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_model_is_overtaken_and_stopped(streamed: bool) -> None:
    release, woken = threading.Event(), threading.Event()

    class Slow(Remote):
        def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
            call = under_way()
            assert call
            with call.stopping(woken.set):
                woken.wait(10)
            yield from super().stream_chat(messages, config)

    router = router_of(Slow("openai/a"), Remote("b/b", text="Yo primero."), hedge_after=0.05)
    started = time.monotonic()
    if streamed:
        text, chunks = read(router.stream_chat(ASKED, CONFIG))
        assert not any(chunk.restart for chunk in chunks)
        note = chunks[-1].note
    else:
        completion = router.chat(ASKED, CONFIG)
        text, note = completion.text, completion.note
    assert text == "Yo primero." and "slow" in note
    assert time.monotonic() - started < 2
    assert woken.wait(2)
    release.set()
    assert ended_threads()


def test_a_quick_model_is_not_doubled() -> None:
    second = Remote("b/b")
    assert router_of(Remote("openai/a"), second, hedge_after=5.0).chat(ASKED, CONFIG).model == "openai/a"
    assert second.calls == 0 and ended_threads()


def test_closing_the_stream_ends_the_model() -> None:
    for settings in ({}, {"deadline": 5.0}):
        model = Remote("openai/a")
        chunks = router_of(model, **settings).stream_chat(ASKED, CONFIG)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        assert ended_threads()
        assert model.closed == 1


def test_a_refusal_lets_another_model_answer_and_is_told_where_none_can() -> None:
    refused = ScriptedModel([Refusal("the budget of app/x is used up")] * 9, "openai/a", local=False)
    router = router_of(refused, ScriptedModel(lambda _: ANSWER, "mini"))
    assert "budget" in router.chat(ASKED, CONFIG).note
    with pytest.raises(Refusal, match="budget"):
        router_of(refused).chat(ASKED, CONFIG)


def test_a_fallback_that_cannot_be_opened_is_passed_over() -> None:
    def opened(name: str) -> Remote:
        if name == "nobody":
            raise UserError("no model 'nobody'")
        return Remote(name, lambda _: "reset" if name == "openai/a" else None)

    settings = RouterSettings(
        model="openai/a", fallbacks=("nobody", "b/b"), retries=RetrySettings(first_wait=0)
    )
    assert Router(settings, opened, Breakers()).chat(ASKED, CONFIG).model == "b/b"  # type: ignore[arg-type]


def test_each_model_is_opened_once_by_many_threads() -> None:
    opened: list[str] = []

    def slowly(name: str) -> ScriptedModel:
        opened.append(name)
        time.sleep(0.05)
        return ScriptedModel(lambda _: ANSWER, name)

    router = Router(RouterSettings(model="mini"), slowly, Breakers())
    threads = [threading.Thread(target=lambda: router.chat(ASKED, CONFIG)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["mini"]


def test_it_is_local_only_where_every_model_is() -> None:
    assert Router(RouterSettings(model="mini", fallbacks=("adapter/a@2",)), {}).local
    assert not Router(RouterSettings(model="mini", fallbacks=("openai/a",)), {}).local
    assert not Router(RouterSettings(model="mini", local_fallback="http://127.0.0.1/v1#m"), {}).local


def test_answers_are_measured() -> None:
    seen: list[Measured] = []
    model = Remote("openai/a")
    router = Router(RouterSettings(model="openai/a"), {"openai/a": model}, Breakers(), watch=seen.append)
    read(router.stream_chat(ASKED, CONFIG))
    router.chat(ASKED, CONFIG)
    assert seen[0].first_token is not None and 0 < seen[0].first_token <= seen[0].seconds
    assert seen[1].first_token is None and seen[1].usage == Usage(5, 5)


def test_vectors_come_from_the_first_model_that_gives_them_and_never_from_another() -> None:
    class Embedding(Remote):
        def embed(self, texts: Sequence[object]) -> list[str]:
            return [self.name for _ in texts]

    router = router_of(Remote("openai/a"), Embedding("b/b"), Embedding("c/c"))
    assert router.embed(["x"]) == ["b/b"]  # type: ignore[comparison-overlap]
    with pytest.raises(UserError, match="score"):
        router.score(ASKED, ["x"])


def test_vectors_are_asked_for_again() -> None:
    class Embedding(Remote):
        def embed(self, texts: Sequence[object]) -> list[str]:
            self.calls += 1
            if self.calls == 1:
                raise ModelUnavailable("reset", True)
            return [self.name for _ in texts]

    assert router_of(Embedding("openai/a"), Embedding("c/c")).embed(["x"]) == ["openai/a"]  # type: ignore[comparison-overlap]


def test_the_time_of_failed_attempts_is_not_the_models_own() -> None:
    seen: list[Measured] = []
    named = {"openai/a": Remote("openai/a", lambda _: "silence"), "b/b": Remote("b/b")}
    settings = RouterSettings(model="openai/a", fallbacks=("b/b",), retries=RetrySettings(attempts=1))
    router = Router(settings, named, Breakers(), watch=seen.append)
    read(router.stream_chat(ASKED, CONFIG))
    router.chat(ASKED, CONFIG)
    assert [each.model for each in seen] == ["b/b", "b/b"] and max(each.seconds for each in seen) < 0.1
    assert [(one.model, one.outcome) for one in seen[0].before] == [("openai/a", "unreachable")]
    assert "was silent" in seen[0].before[0].reason and seen[0].before[0].seconds >= 0.1


def test_another_model_may_answer_what_one_declines_and_it_is_told() -> None:
    declining = ScriptedModel([Declined("declined to answer")], "openai/a", local=False)
    answer = router_of(declining, Remote("b/b")).chat(ASKED, CONFIG)
    assert answer.note == "openai/a declined to answer; answered by b/b"
    assert len(declining.asked) == 1
