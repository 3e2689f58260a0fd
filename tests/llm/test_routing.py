"""The whole way of a request over real sockets: a provider that misbehaves, a policy, budgets and a cache."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fake_provider import FAULTS, Answer, Asked, FakeProvider, Fault
from faulty_models import ended_threads

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, ContextOverflow, LanguageModel, Message, ModelUnavailable, ScriptedModel
from yunque.llm.asynchronous import AsyncModel
from yunque.llm.breaker import Breakers, BreakerSettings
from yunque.llm.budgets import BudgetRefusal
from yunque.llm.cache import CacheSettings
from yunque.llm.hedging import THREAD
from yunque.llm.policy import PolicyRefusal, WirePolicy
from yunque.llm.retrying import RetrySettings
from yunque.llm.router import RouterSettings
from yunque.llm.routing import Caller, known_price, open_bare, open_cache, routed
from yunque.workspace import Workspace
from yunque.workspace.budgets import Budgets
from yunque.workspace.measurements import Measurements

CONFIG = GenerationConfig(max_new_tokens=50)
ASKED = [Message("user", "Soy ana.perez@example.com: ¿cuánto pesa la maleta?")]
WORDS = ("La", " maleta", " pesa", " 23", " kg", ".")
TEXT = "".join(WORDS)
KINDS = ("status", "reset_before_headers", "reset_midway", "half", "half_stream", "garbage")


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as started:
        started.answer = Answer(WORDS)
        yield started


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "w")


def address(provider: FakeProvider, model: str = "fake-small") -> str:
    return f"{provider.url('openai')}#{model}"


def at_random(seed: int) -> Callable[[int, Asked], Fault | None]:
    """Half of the calls fail; two of them by silence, as that is real time."""
    drawn = random.Random(seed)
    faults = [drawn.choice(KINDS) if drawn.random() < 0.5 else None for _ in range(20_000)]
    faults[10] = faults[700] = "silence"

    def fault(number: int, asked: Asked) -> Fault | None:
        kind = faults[number]
        if kind == "half_stream" and not asked.stream:
            kind = "half"
        return Fault(kind, status=502, seconds=30.0) if kind else None

    return fault


def read(chunks: Iterator[Chunk]) -> str:
    text = ""
    for chunk in chunks:
        text = "" if chunk.restart else text + chunk.text
    return text


def answered(model: LanguageModel, streamed: bool) -> bool:
    try:
        text = read(model.stream_chat(ASKED, CONFIG)) if streamed else model.chat(ASKED, CONFIG).text
    except ModelUnavailable:
        return False
    return text.strip() == TEXT


@pytest.mark.parametrize("streamed", [False, True])
def test_1000_of_1000_are_answered_though_a_provider_fails_half_its_calls(
    provider: FakeProvider, workspace: Workspace, streamed: bool
) -> None:
    provider.faults = at_random(7)
    here = ScriptedModel(lambda _: TEXT, "mini")
    settings = RouterSettings(
        model=address(provider),
        local_fallback="mini",
        deadline=6.0,
        retries=RetrySettings(attempts=4, first_wait=0.005),
    )
    model = routed(
        workspace,
        settings,
        open_one=lambda name: here if name == "mini" else open_bare(workspace, name),
        # A run of bad luck is no reason to leave it alone here: the provider has to do the work.
        breakers=Breakers(BreakerSettings(failures=60)),
    )
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: answered(model, streamed), range(1000)))
    assert sum(results) == 1000
    # The provider did most of the work, and the local model what was left.
    assert len(provider.asked) > 1500 and 0 < len(here.asked) < 200


@pytest.mark.parametrize("streamed", [False, True])
def test_without_the_router_half_of_them_are_not(
    provider: FakeProvider, workspace: Workspace, streamed: bool
) -> None:
    faults = at_random(7)
    provider.faults = lambda number, asked: (
        None if (fault := faults(number, asked)) and fault.kind == "silence" else fault
    )
    model = open_bare(workspace, address(provider))
    results = [answered(model, streamed) for _ in range(200)]
    assert 60 < sum(results) < 140


def test_what_goes_over_the_wire_has_no_personal_data(provider: FakeProvider, workspace: Workspace) -> None:
    provider.answer = Answer(("Escribo", " a [EM", "AIL-1]", "."))
    model = routed(workspace, RouterSettings(model=address(provider)))
    assert model.chat(ASKED, CONFIG).text == "Escribo a ana.perez@example.com."
    assert read(model.stream_chat(ASKED, CONFIG)) == "Escribo a ana.perez@example.com."
    assert all(
        "ana.perez" not in str(asked.body) and "[EMAIL-1]" in str(asked.body) for asked in provider.asked
    )


@pytest.mark.parametrize(
    "policy", [WirePolicy(where="local"), WirePolicy(where=("openai",)), WirePolicy(personal_data="refuse")]
)
def test_what_is_refused_opens_no_connection(
    provider: FakeProvider, workspace: Workspace, policy: WirePolicy
) -> None:
    model = routed(workspace, RouterSettings(model=address(provider)), policy)
    for ask in (model.chat, lambda *asked: list(model.stream_chat(*asked))):
        with pytest.raises(PolicyRefusal):
            ask(ASKED, CONFIG)
    assert provider.connections == 0
    assert Budgets.of(workspace.root).used("all").calls == 0


def test_a_budget_of_tokens_is_charged_with_the_providers_figures_and_then_refuses(
    provider: FakeProvider, workspace: Workspace
) -> None:
    provider.answer = Answer(WORDS, prompt=120, completion=30)
    budgets = Budgets.of(workspace.root)
    budgets.set("app/equipaje", tokens=400)
    model = routed(
        workspace, RouterSettings(model=address(provider)), caller=Caller(("app/equipaje", "key/abc"))
    )
    model.chat(ASKED, CONFIG)
    list(model.stream_chat(ASKED, CONFIG))
    assert budgets.used("app/equipaje").used_tokens == budgets.used("key/abc").used_tokens == 300
    with pytest.raises(BudgetRefusal, match="app/equipaje is 400 tokens a day"):
        model.chat(ASKED, CONFIG)
    assert len(provider.asked) == 2


def test_a_budget_of_money_refuses_what_has_no_price(provider: FakeProvider, workspace: Workspace) -> None:
    Budgets.of(workspace.root).set("all", usd=5.0)
    model = routed(workspace, RouterSettings(model=address(provider)))
    with pytest.raises(BudgetRefusal, match="no price is known"):
        model.chat(ASKED, CONFIG)
    assert provider.connections == 0


def test_prices_are_known_and_servers_of_your_own_are_free() -> None:
    pytest.importorskip("genai_prices")
    known = known_price("openai/gpt-4o-mini")
    assert known and 0 < known.input < known.output and known.date
    own = known_price("ollama/llama3.2")
    assert own and own.input == 0
    assert known_price("openai/no-such-model-at-all") is None


def test_a_cached_answer_is_neither_charged_nor_sent(provider: FakeProvider, workspace: Workspace) -> None:
    caller = Caller(("app/a",), "key/abc", "ana")
    model = routed(workspace, RouterSettings(model=address(provider)), caller=caller, cache=CacheSettings())
    assert model.chat(ASKED, CONFIG).text == read(model.stream_chat(ASKED, CONFIG)) == TEXT
    assert len(provider.asked) == 1
    assert Budgets.of(workspace.root).used("app/a").calls == 1
    assert open_cache(workspace).forget("ana.perez@example.com") == 1
    model.chat(ASKED, CONFIG)
    assert len(provider.asked) == 2


def test_answers_are_measured_for_the_list_of_models(provider: FakeProvider, workspace: Workspace) -> None:
    provider.delay = 0.05
    model = routed(workspace, RouterSettings(model=address(provider)))
    model.chat(ASKED, CONFIG)
    list(model.stream_chat(ASKED, CONFIG))
    speed = Measurements.of(workspace.root).speed(address(provider))
    assert speed and speed.answers == 2 and speed.first_token and speed.first_token >= 0.05
    assert Measurements.of(workspace.root).models() == [address(provider)]


def test_a_key_is_missing_and_the_local_model_answers(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "YUNQUE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    here = ScriptedModel(lambda _: TEXT, "mini")
    settings = RouterSettings(model="openai/gpt-4o-mini", local_fallback="mini")
    model = routed(
        workspace, settings, open_one=lambda name: here if name == "mini" else open_bare(workspace, name)
    )
    answer = model.chat(ASKED, CONFIG)
    assert answer.text == TEXT and answer.note.endswith("answered by mini on this machine")


def test_a_name_that_is_none_is_told(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="no model 'nobody'"):
        routed(workspace, RouterSettings(model="nobody")).chat(ASKED, CONFIG)


def test_a_silent_provider_is_overtaken_and_its_connection_let_go(
    provider: FakeProvider, workspace: Workspace
) -> None:
    provider.faults = lambda _, asked: Fault("silence", seconds=30) if asked.model == "slow" else None
    settings = RouterSettings(
        model=address(provider, "slow"), fallbacks=(address(provider),), hedge_after=0.1
    )
    model = routed(workspace, settings, breakers=Breakers())
    started = time.monotonic()
    assert model.chat(ASKED, CONFIG).text == TEXT
    assert read(model.stream_chat(ASKED, CONFIG)) == TEXT
    assert time.monotonic() - started < 5
    assert ended_threads()


def test_a_cancelled_task_does_not_wait_for_a_silent_provider(
    provider: FakeProvider, workspace: Workspace
) -> None:
    provider.faults = lambda *_: Fault("silence", seconds=30)
    model = AsyncModel(routed(workspace, RouterSettings(model=address(provider)), breakers=Breakers()))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.achat(ASKED, CONFIG), 0.3)

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 5 and ended_threads()


def test_a_deadline_ends_a_silent_call_without_a_thread(provider: FakeProvider, workspace: Workspace) -> None:
    provider.faults = lambda *_: Fault("silence_midway", seconds=30)
    settings = RouterSettings(model=address(provider), deadline=0.5, retries=RetrySettings(first_wait=0))
    model = routed(workspace, settings, breakers=Breakers())
    before = threading.active_count()
    for ask in (model.chat, lambda *asked: list(model.stream_chat(*asked))):
        started = time.monotonic()
        with pytest.raises(ModelUnavailable):
            ask(ASKED, CONFIG)
        assert time.monotonic() - started < 2
    assert not [thread for thread in threading.enumerate() if thread.name == THREAD]
    assert threading.active_count() <= before + 4  # the provider's own


def test_a_model_of_the_workspace_is_routed_limited_and_left(
    workspace: Workspace, put_tiny_model: Callable[..., object]
) -> None:
    put_tiny_model(workspace)
    direct = open_bare(workspace, "mini")
    config = GenerationConfig(max_new_tokens=12)
    asked = [Message("user", "La maleta")]
    model = routed(workspace, RouterSettings(model="mini", deadline=60.0), open_one=lambda _: direct)
    whole = direct.chat(asked, config)
    assert model.chat(asked, config) == whole
    assert read(model.stream_chat(asked, config)) == whole.text
    chunks = model.stream_chat(asked, config.model_copy(update={"max_new_tokens": 90, "ignore_end": True}))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert ended_threads()
    with pytest.raises(ContextOverflow):
        model.chat(asked, GenerationConfig(max_new_tokens=10_000))
    used = Budgets.of(workspace.root).used("all")
    assert used.calls == 3 and used.used_usd == 0 and used.held_tokens == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_whatever_a_provider_does_the_next_one_answers_in_time(
    provider: FakeProvider, workspace: Workspace, kind: str, streamed: bool
) -> None:
    provider.faults = lambda _, asked: Fault(kind, seconds=0.2) if asked.model == "bad" else None
    settings = RouterSettings(
        model=address(provider, "bad"),
        fallbacks=(address(provider),),
        deadline=2.0,
        retries=RetrySettings(attempts=1),
    )
    model = routed(workspace, settings, breakers=Breakers())
    started = time.monotonic()
    if streamed:
        chunks = list(model.stream_chat(ASKED, CONFIG))
        text, last = read(iter(chunks)), chunks[-1]
        assert last.usage and last.finish_reason == "stop"
        assert sum(chunk.finish_reason is not None for chunk in chunks) == 1
    else:
        text = model.chat(ASKED, CONFIG).text
    assert text == TEXT and time.monotonic() - started < 4
