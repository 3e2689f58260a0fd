"""Circuit breakers: who is left alone, for how long, and who is tried again."""

import threading
import time

import pytest
from faulty_models import ANSWER, ASKED, CONFIG, Clock, Remote

from yunque.llm import ModelUnavailable, ScriptedModel
from yunque.llm.breaker import Breakers, BreakerSettings
from yunque.llm.retrying import RetrySettings
from yunque.llm.router import Router, RouterSettings


def test_a_provider_that_fails_again_and_again_is_left_alone_and_tried_later() -> None:
    clock, state = Clock(), {"fault": "reset"}
    breakers = Breakers(BreakerSettings(failures=4, window=10, pause=15), clock)
    bad = Remote("openai/a", lambda _: state["fault"])
    other = Remote("openai/other", lambda _: state["fault"])
    good = Remote("b/b")
    named = {model.name: model for model in (bad, other, good)}
    settings = RouterSettings(
        model="openai/a", fallbacks=("b/b",), retries=RetrySettings(attempts=1, first_wait=0)
    )
    router = Router(settings, named, breakers)
    for _ in range(4):
        router.chat(ASKED, CONFIG)
    assert breakers.state("openai") == "open"
    note = router.chat(ASKED, CONFIG).note
    assert bad.calls == 4 and "left alone" in note
    # It is the provider's circuit, not the model's.
    Router(settings.model_copy(update={"model": "openai/other"}), named, breakers).chat(ASKED, CONFIG)
    assert other.calls == 0
    clock.now = 15.5
    router.chat(ASKED, CONFIG)
    assert bad.calls == 5 and breakers.state("openai") == "open"
    state["fault"] = None  # type: ignore[assignment]
    clock.now = 31.5
    assert router.chat(ASKED, CONFIG).model == "openai/a"
    assert breakers.state("openai") == "closed"


def test_failures_far_apart_or_among_successes_open_no_circuit() -> None:
    clock = Clock()
    breakers = Breakers(BreakerSettings(failures=4, window=10, pause=15), clock)
    for _ in range(20):
        clock.now += 4
        breakers.failed("openai")
    assert breakers.state("openai") == "closed"
    for _ in range(50):
        breakers.failed("anthropic")
        breakers.succeeded("anthropic")
    assert breakers.state("anthropic") == "closed"


def test_half_open_lets_one_caller_in() -> None:
    clock = Clock()
    breakers = Breakers(BreakerSettings(failures=1, window=10, pause=5), clock)
    breakers.failed("openai")
    clock.now = 6
    waits: list[float] = []
    threads = [threading.Thread(target=lambda: waits.append(breakers.wait("openai"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waits.count(0.0) == 1
    # One that was given up says nothing: the next may try.
    breakers.untold("openai")
    assert breakers.wait("openai") == 0.0


def test_a_refused_key_says_nothing_of_the_providers_health() -> None:
    breakers = Breakers(BreakerSettings(failures=2))
    denied = ScriptedModel([ModelUnavailable("refused the API key")] * 9, "openai/a", local=False)
    router = Router(
        RouterSettings(model="openai/a", fallbacks=("b/b",)),
        {"openai/a": denied, "b/b": Remote("b/b")},
        breakers,
    )
    for _ in range(5):
        router.chat(ASKED, CONFIG)
    assert breakers.state("openai") == "closed" and len(denied.asked) == 5


def test_a_model_that_is_slow_to_open_is_not_blamed_for_it() -> None:
    breakers = Breakers(BreakerSettings(failures=1))

    def slowly(name: str) -> Remote:
        time.sleep(0.3)
        return Remote(name)

    settings = RouterSettings(model="openai/a", deadline=0.2)
    router = Router(settings, slowly, breakers)  # type: ignore[arg-type]
    assert router.chat(ASKED, CONFIG).text == ANSWER
    late = Router(
        settings.model_copy(update={"fallbacks": ("b/b",)}),
        lambda name: (  # type: ignore[arg-type]
            slowly(name) if name == "b/b" else Remote(name, lambda _: "reset")
        ),
        Breakers(BreakerSettings(failures=1)),
    )
    with pytest.raises(ModelUnavailable, match="no time left to ask b/b"):
        late.chat(ASKED, CONFIG)
    assert breakers.state("openai") == "closed"


def test_where_every_provider_rests_the_first_to_be_free_is_waited_for() -> None:
    clock, waits = Clock(), list[float]()
    breakers = Breakers(BreakerSettings(failures=1, pause=5), clock)
    a, b = Remote("openai/a"), Remote("b/b")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds + 0.01

    breakers.failed("openai")
    clock.now = 2
    breakers.failed("b")
    settings = RouterSettings(model="openai/a", fallbacks=("b/b",))
    router = Router(settings, {"openai/a": a, "b/b": b}, breakers, sleep=sleep)
    assert router.chat(ASKED, CONFIG).model == "openai/a"
    assert waits == [pytest.approx(3.0)]
    breakers.failed("openai")
    short = Router(
        settings.model_copy(update={"deadline": 1.0}), {"openai/a": a, "b/b": b}, breakers, sleep=sleep
    )
    breakers.failed("b")
    with pytest.raises(ModelUnavailable, match="left alone"):
        short.chat(ASKED, CONFIG)
    assert len(waits) == 1


def test_a_provider_that_rests_is_not_the_one_asked_beside_a_slow_one() -> None:
    breakers = Breakers(BreakerSettings(failures=1))
    breakers.failed("b")
    slow, resting, free = Remote("openai/a", lambda _: "silence"), Remote("b/b"), Remote("c/c")
    named = {model.name: model for model in (slow, resting, free)}
    settings = RouterSettings(model="openai/a", fallbacks=("b/b", "c/c"), hedge_after=0.02)
    assert Router(settings, named, breakers).chat(ASKED, CONFIG).model == "c/c"
    assert resting.calls == 0
