"""Vectors and likelihoods from providers that have them, and what is said of those that do not."""

import math
from collections.abc import Iterator

import pytest
from fake_provider import Answer, FakeProvider, Fault

from yunque.errors import UserError
from yunque.llm import Cost, Message, ModelUnavailable
from yunque.llm.open import open_remote
from yunque.llm.prices import list_date
from yunque.llm.remote import RemoteModel


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProvider]:
    with FakeProvider() as made:
        monkeypatch.setenv("OPENAI_BASE_URL", made.url("openai"))
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", made.url("gemini"))
        monkeypatch.setenv("ANTHROPIC_BASE_URL", made.url("anthropic"))
        monkeypatch.setenv("VLLM_BASE_URL", made.url("openai"))
        for key in ("OPENAI_API_KEY", "GEMINI_API_KEY", "ANTHROPIC_API_KEY"):
            monkeypatch.setenv(key, "k")
        yield made


@pytest.fixture(params=["openai/text-embedding-3-small", "gemini/gemini-embedding-001", "vllm/e5"])
def model(request: pytest.FixtureRequest, provider: FakeProvider) -> RemoteModel:
    assert not provider.asked
    return open_remote(None, request.param)


def test_a_text_has_a_vector_of_length_one_in_its_place(model: RemoteModel, provider: FakeProvider) -> None:
    told = model.embed([f"text {n}" for n in range(300)])
    assert len(told.vectors) == 300
    assert told.vectors[0] == pytest.approx([0.6, 0.8]) and told.vectors[1] == [0.0, 1.0]
    assert all(math.isclose(math.hypot(*vector), 1) for vector in told.vectors)
    assert len(provider.asked) > 1 and told.prompt_tokens > 0
    assert model.embed([]).vectors == []


@pytest.mark.parametrize("vectors", [[[math.nan, 1.0]], [[]], [["x"]], [[1.0], [1.0, 2.0]]])
def test_what_are_no_vectors_is_told(
    model: RemoteModel, provider: FakeProvider, vectors: list[list[float]]
) -> None:
    provider.answer = Answer(vectors=vectors)
    with pytest.raises(ModelUnavailable, match=r"no vectors|different lengths|not JSON"):
        model.embed(["a", "b"])


def test_faults_of_vectors_are_those_of_answers(model: RemoteModel, provider: FakeProvider) -> None:
    provider.faults = [Fault("status", status=429, headers={"retry-after": "3"})]
    with pytest.raises(ModelUnavailable) as caught:
        model.embed(["a"])
    assert (caught.value.again, caught.value.after) == (True, 3.0)
    with pytest.raises(UserError, match=r"input\[1\] is empty"):
        model.embed(["a", ""])


def test_vectors_have_their_price(provider: FakeProvider) -> None:
    pytest.importorskip("genai_prices")
    provider.answer = Answer(prompt=100_000)
    told = open_remote(None, "openai/text-embedding-3-small").embed(["a b " * 100_000])
    assert told.cost == Cost(pytest.approx(0.002), list_date())


def test_who_has_none_says_so(provider: FakeProvider) -> None:
    anthropic = open_remote(None, "anthropic/claude-x")
    with pytest.raises(UserError, match="no vectors"):
        anthropic.embed(["a"])
    for name in ("anthropic/claude-x", "openai/gpt-x", "gemini/gem"):
        with pytest.raises(UserError, match="does not tell how likely"):
            open_remote(None, name).score([Message("user", "a")], ["b"])
    provider.faults = lambda *_: Fault("status", status=404)
    with pytest.raises(UserError, match="no /tokenize"):
        open_remote(None, "vllm/x").score([Message("user", "a")], ["b"])
    with pytest.raises(UserError, match="texts, not tokens"):
        open_remote(None, "gemini/gem").embed([[1, 2]])


def test_the_models_of_a_provider_are_listed(provider: FakeProvider) -> None:
    for name in ("openai/x", "anthropic/x", "gemini/x", "vllm/x"):
        assert open_remote(None, name).models() == provider.models
