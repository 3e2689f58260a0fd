"""What calls cost: by the price list, cached tokens and all, streamed or not."""

import socket
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_provider import Answer, FakeProvider

from yunque.generate.config import GenerationConfig
from yunque.llm import Cost, Message, Usage
from yunque.llm.names import parse_remote
from yunque.llm.open import open_remote
from yunque.llm.prices import cost_of, list_date, list_price
from yunque.llm.providers import PROVIDERS

genai_prices = pytest.importorskip("genai_prices")
QUESTION = [Message("user", "¿?")]
CONFIG = GenerationConfig()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in PROVIDERS.values():
        for variable in each.addresses:
            monkeypatch.delenv(variable, raising=False)


def cost(name: str, usage: Usage) -> Cost | None:
    at = parse_remote(name)
    assert at
    return cost_of(at, usage)


def test_prices_are_those_of_the_list_worked_out_by_hand() -> None:
    # gpt-4o-mini: 0.15 in, 0.60 out, 0.075 cached, a million tokens.
    told = cost("openai/gpt-4o-mini", Usage(1_000_000, 100_000, 400_000))
    assert told is not None and told.usd == pytest.approx(0.6 * 0.15 + 0.4 * 0.075 + 0.1 * 0.60)
    # claude-sonnet-4-5: 3 in, 15 out, 0.30 cached, 3.75 into the cache.
    told = cost("anthropic/claude-sonnet-4-5", Usage(10_000, 1_000, 5_000, 2_000))
    by_hand = (3_000 * 3 + 5_000 * 0.30 + 2_000 * 3.75 + 1_000 * 15) / 1e6
    assert told is not None and told.usd == pytest.approx(by_hand)
    # The control: caching changes the price.
    plain = cost("anthropic/claude-sonnet-4-5", Usage(10_000, 1_000))
    assert plain is not None and plain.usd != pytest.approx(by_hand)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_our_arithmetic_is_the_lists_for_every_model(provider: str) -> None:
    """The oracle: the library itself, for each model that it lists."""
    snapshot = genai_prices.data_snapshot.get_snapshot()
    id = {"gemini": "google"}.get(provider, provider)
    listed = next(each for each in snapshot.providers if each.id == id)
    compared = 0
    for model in listed.models:
        for usage in (Usage(1234, 567), Usage(1000, 10, 300), Usage(300_000, 10, 100, 50)):
            try:
                theirs: Any = genai_prices.calc_price(
                    genai_prices.Usage(
                        input_tokens=usage.prompt_tokens,
                        output_tokens=usage.completion_tokens,
                        cache_read_tokens=usage.cached_tokens or None,
                        cache_write_tokens=usage.cache_write_tokens or None,
                    ),
                    model.id,
                    provider_id=id,
                )
            except (LookupError, ValueError):
                continue
            ours = cost(f"{provider}/{model.id}", usage)
            assert ours is not None and ours.usd == pytest.approx(float(theirs.total_price)), model.id
            compared += 1
    assert compared > 50


def test_what_is_not_known_has_no_price_and_what_runs_here_costs_nothing() -> None:
    assert cost("openai/no-such-model", Usage(1, 1)) is None
    assert cost("http://box:1/v1#m", Usage(1, 1)) is None
    for name in ("ollama/llama3.2", "vllm/m", "llamacpp/m"):
        assert cost(name, Usage(1, 1)) == Cost(0.0)
        assert list_price(name) is None
    assert cost("ollama/kimi-cloud", Usage(1, 1)) is None


def test_the_price_of_an_address_is_its_providers() -> None:
    by_name, by_address = (
        cost("openai/gpt-4o-mini", Usage(9, 9)),
        cost("https://api.openai.com/v1#gpt-4o-mini", Usage(9, 9)),
    )
    assert by_name == by_address is not None


def test_the_list_has_a_date_that_is_not_to_come() -> None:
    assert "2026-01-01" < list_date() <= datetime.now(UTC).date().isoformat()
    price = list_price("gemini/gemini-2.5-pro")
    # Above 200 000 tokens it is dearer: 2.50 and 15, not 1.25 and 10.
    assert price is not None and (price.input, price.output, price.date) == (2.5, 15.0, list_date())


def test_whole_and_streamed_answers_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeProvider() as provider:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", provider.url("anthropic"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
        provider.answer = Answer(prompt=1000, cached=5000, written=200, completion=70)
        model = open_remote(None, "anthropic/claude-sonnet-4-5")
        # No prompt is read as more tokens than it has bytes.
        long = [Message("user", "a " * 4000)]
        whole = model.chat(long, CONFIG)
        last = list(model.stream_chat(long, CONFIG))[-1]
    assert whole.usage == last.usage == Usage(6200, 70, 5000, 200)
    expected = Cost((1000 * 3 + 5000 * 0.3 + 200 * 3.75 + 70 * 15) / 1e6, list_date())
    assert whole.cost is not None and whole.cost.usd == pytest.approx(expected.usd)
    assert whole.cost == last.cost and whole.cost.prices_of == expected.prices_of


def test_prices_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from yunque.llm import prices

    prices._rates.cache_clear()
    prices.list_date.cache_clear()
    assert cost("openai/gpt-4o", Usage(1, 1)) is not None
