"""A model whose calls are charged: refused before they are made, and charged what they did use."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, Cost, Embeddings, Message, ModelUnavailable, ScriptedModel, Usage
from yunque.llm.breaker import Breakers
from yunque.llm.budgets import BudgetedModel, BudgetRefusal
from yunque.llm.router import Router, RouterSettings
from yunque.llm.wire import Unanswered
from yunque.workspace.budgets import Budgets

CONFIG = GenerationConfig(max_new_tokens=20)
ASKED = [Message("user", "¿Cuánto pesa la maleta?")]


@dataclass(frozen=True)
class Price:
    input: float = 1_000_000.0  # a dollar for each token, to count easily
    output: float = 2_000_000.0
    date: str = "2026-11-01"


class Billed(ScriptedModel):
    """A remote model that reads 7 tokens of which 4 are cached (half price), and writes 3."""

    def __init__(self) -> None:
        super().__init__(lambda _: "uno dos tres", "openai/x", local=False)

    def chat(self, *asked: object) -> Completion:  # type: ignore[override]
        told = super().chat(*asked)  # type: ignore[arg-type]
        return Completion(told.text, told.model, "stop", Usage(7, 3, 4), cost=Cost(11.0, "2026-11-01"))

    def stream_chat(self, *asked: object) -> Iterator[Chunk]:  # type: ignore[override]
        for chunk in super().stream_chat(*asked):  # type: ignore[arg-type]
            yield Chunk(chunk.text) if chunk.text else Chunk("", "stop", Usage(7, 3, 4), cost=Cost(11.0))


class Seeing(ScriptedModel):
    """Looks what is held while it is asked."""

    def __init__(self, budgets: Budgets) -> None:
        super().__init__(lambda _: "x", "openai/x", local=False)
        self.budgets, self.held = budgets, list[int]()

    def chat(self, *asked: object) -> Completion:  # type: ignore[override]
        self.held.append(self.budgets.used("app/a").held_tokens)
        return super().chat(*asked)  # type: ignore[arg-type]


@pytest.fixture
def budgets(tmp_path: Path) -> Budgets:
    return Budgets(tmp_path / "budgets.db")


def charged(model: object, budgets: Budgets, price: Price | None = Price()) -> BudgetedModel:
    return BudgetedModel(model, budgets, ["app/a"], lambda _: price)  # type: ignore[arg-type]


def used(budgets: Budgets) -> tuple[float, int, float]:
    now = budgets.used("app/a")
    return now.used_usd, now.used_tokens, now.held_usd


@pytest.mark.parametrize("streamed", [False, True])
def test_the_providers_own_figures_are_charged_cached_tokens_and_all(
    budgets: Budgets, streamed: bool
) -> None:
    model = charged(Billed(), budgets)
    list(model.stream_chat(ASKED, CONFIG)) if streamed else model.chat(ASKED, CONFIG)
    assert used(budgets) == (11.0, 10, 0.0)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_call_that_could_pass_the_budget_is_not_made(budgets: Budgets, streamed: bool) -> None:
    inner = Billed()
    model = charged(inner, budgets)
    # 23 letters and the frames around them, 20 tokens to write at two dollars each: 97 dollars at the most.
    budgets.set("app/a", usd=60.0)
    with pytest.raises(BudgetRefusal, match="app/a"):
        list(model.stream_chat(ASKED, CONFIG)) if streamed else model.chat(ASKED, CONFIG)
    assert inner.asked == [] and used(budgets) == (0, 0, 0)
    budgets.set("app/a", usd=120.0)
    list(model.stream_chat(ASKED, CONFIG)) if streamed else model.chat(ASKED, CONFIG)
    assert len(inner.asked) == 1


def test_what_the_text_can_have_of_tokens_is_never_below_what_it_has(budgets: Budgets) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    # Bytes as tokens, as the worst tokenizer has them.
    worst = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    budgets.set("app/a", tokens=10**9)
    for text in ("ñandú 漢字 🧳" * 9, "1234567890" * 5, " \n\t" * 20, ""):
        charged(inner := Seeing(budgets), budgets).chat([Message("user", text)], CONFIG)
        assert inner.held[0] - 20 >= len(worst.encode(text))


def test_a_call_that_failed_before_its_first_word_costs_nothing(budgets: Budgets) -> None:
    budgets.set("app/a", usd=1000.0)
    model = charged(ScriptedModel([ModelUnavailable("reset", True)] * 2, "openai/x", local=False), budgets)
    for ask in (model.chat, lambda *asked: list(model.stream_chat(*asked))):
        with pytest.raises(ModelUnavailable):
            ask(ASKED, CONFIG)
    assert used(budgets) == (0, 0, 0)


def test_what_a_provider_bills_of_a_refusal_is_charged(budgets: Budgets) -> None:
    declined = ModelUnavailable("declined")
    declined.usage, declined.cost = Usage(30, 2), Cost(34.0)  # type: ignore[attr-defined]
    model = charged(ScriptedModel([declined], "openai/x", local=False), budgets)
    with pytest.raises(ModelUnavailable):
        model.chat(ASKED, CONFIG)
    assert used(budgets) == (34.0, 32, 0.0)


@pytest.mark.parametrize("left", [False, True])
def test_of_half_an_answer_what_came_is_charged(budgets: Budgets, left: bool) -> None:
    class Half(Billed):
        def stream_chat(self, *asked: object) -> Iterator[Chunk]:  # type: ignore[override]
            del asked
            yield Chunk("ocho8888")
            raise ModelUnavailable("reset", True)

    chunks = charged(Half(), budgets).stream_chat(ASKED, CONFIG)
    next(chunks)
    if left:
        chunks.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(ModelUnavailable):
            next(chunks)
    usd, tokens, held = used(budgets)
    assert 2 + 25 / 4 <= tokens < 30 and usd == pytest.approx(tokens + 2) and held == 0


def test_a_model_of_this_machine_costs_no_money_and_tokens_all_the_same(budgets: Budgets) -> None:
    budgets.set("app/a", usd=0.0)
    charged(ScriptedModel(lambda _: "uno dos", "mini"), budgets).chat(ASKED, CONFIG)
    assert used(budgets) == (0.0, 6, 0.0)
    budgets.set("app/a", tokens=10)
    with pytest.raises(BudgetRefusal):
        charged(ScriptedModel(lambda _: "uno dos", "mini"), budgets).chat(ASKED, CONFIG)


def test_an_unknown_price_is_no_price_of_zero(budgets: Budgets) -> None:
    budgets.set("app/a", usd=1000.0)
    with pytest.raises(BudgetRefusal, match="no price"):
        charged(Billed(), budgets, None).chat(ASKED, CONFIG)


def test_when_the_money_is_spent_the_model_of_this_machine_answers(budgets: Budgets) -> None:
    budgets.set("app/a", usd=0.0)
    named = {
        "openai/x": charged(Billed(), budgets),
        "mini": charged(ScriptedModel(lambda _: "de aquí", "mini"), budgets),
    }
    router = Router(RouterSettings(model="openai/x", fallbacks=("mini",)), named, Breakers())
    answer = router.chat(ASKED, CONFIG)
    assert answer.text == "de aquí" and "budget of app/a" in answer.note


def test_callers_in_many_threads_cannot_pass_it_together(budgets: Budgets) -> None:
    model = charged(Billed(), budgets)
    budgets.set("app/a", usd=200.0)
    refused: list[bool] = []

    def ask() -> None:
        for _ in range(10):
            try:
                model.chat(ASKED, CONFIG)
            except BudgetRefusal:
                refused.append(True)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    usd, _, held = used(budgets)
    assert 100 < usd <= 200 and held == 0 and refused


class Dying(Billed):
    """Dies in a stream (after so many empty pieces) or in a whole answer, with an error that says what was sent."""

    def __init__(self, error: ModelUnavailable, signs: int = 0) -> None:
        super().__init__()
        self.error, self.signs = error, signs

    def chat(self, *asked: object) -> Completion:  # type: ignore[override]
        del asked
        raise self.error

    def stream_chat(self, *asked: object) -> Iterator[Chunk]:  # type: ignore[override]
        del asked
        for _ in range(self.signs):
            yield Chunk("")
        raise self.error


@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_that_was_sent_is_charged_though_no_word_came(budgets: Budgets, streamed: bool) -> None:
    budgets.set("app/a", usd=1000.0)
    for told in (Unanswered("was silent", True), ModelUnavailable("cannot be reached", True)):
        model = charged(Dying(told), budgets)
        with pytest.raises(ModelUnavailable):
            list(model.stream_chat(ASKED, CONFIG)) if streamed else model.chat(ASKED, CONFIG)
        # 25 bytes and the frame around each message and the form, four to a token; the second was never sent.
        assert used(budgets) == (15.0, 15, 0.0)
    assert budgets.used("app/a").calls == 1


def test_what_the_provider_told_before_it_died_is_charged(budgets: Budgets) -> None:
    error = Unanswered("was silent", True)
    error.usage, error.cost = Usage(30, 1), None
    with pytest.raises(ModelUnavailable):
        charged(Dying(error), budgets).chat(ASKED, CONFIG)
    assert used(budgets) == (32.0, 31, 0.0)


def test_a_model_that_only_thought_was_asked(budgets: Budgets) -> None:
    model = charged(Dying(ModelUnavailable("reset", True), signs=1), budgets)
    with pytest.raises(ModelUnavailable):
        list(model.stream_chat(ASKED, CONFIG))
    assert used(budgets)[1] == 15


class Claiming(Billed):
    def __init__(self, usage: Usage) -> None:
        super().__init__()
        self.usage = usage

    def chat(self, *asked: object) -> Completion:  # type: ignore[override]
        del asked
        return Completion("ocho8888", self.name, "stop", self.usage, cost=Cost(50.0))


@pytest.mark.parametrize(
    "usage",
    [
        *(Usage(0, 0), Usage(7, 0), Usage(0, 3), Usage(-5, -7), Usage(7, -1)),
        *(Usage(2**52, 2**52), Usage(7, 2**70), Usage(5_000_000, 5)),
    ],
)
def test_impossible_figures_are_not_believed(budgets: Budgets, usage: Usage) -> None:
    budgets.set("app/a", usd=1000.0)
    assert charged(Claiming(usage), budgets).chat(ASKED, CONFIG).text == "ocho8888"
    # The prompt's 15, and two for eight letters.
    assert used(budgets) == (19.0, 17, 0.0)


def test_possible_ones_are_with_what_a_model_thought(budgets: Budgets) -> None:
    charged(Claiming(Usage(40, 5000)), budgets).chat(ASKED, CONFIG)
    assert used(budgets) == (50.0, 5040, 0.0)


def test_a_model_that_heeds_no_limit_is_stopped_by_the_budget(budgets: Budgets) -> None:
    class Endless(Billed):
        def stream_chat(self, *asked: object) -> Iterator[Chunk]:  # type: ignore[override]
            del asked
            while True:
                yield Chunk("y dale que dale ")

    budgets.set("app/a", tokens=300)
    chunks = charged(Endless(), budgets).stream_chat(ASKED, CONFIG)
    with pytest.raises(BudgetRefusal, match="wrote more than it was asked for"):
        list(chunks)
    _, tokens, held = used(budgets)
    assert 200 < tokens < 700 and held == 0


def test_an_answer_is_not_lost_with_the_file_that_it_is_charged_to(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise UserError("budgets.db: cannot be written (disk full)")

    model = charged(Billed(), budgets)
    monkeypatch.setattr(budgets, "settle", full)
    assert model.chat(ASKED, CONFIG).text == "uno dos tres"
    assert list(model.stream_chat(ASKED, CONFIG))[-1].usage
    assert "not charged" in caplog.text and "maleta" not in caplog.text


def test_vectors_without_figures_are_estimated(budgets: Budgets) -> None:
    class Embedding(Billed):
        def embed(self, texts: object) -> Embeddings:
            del texts
            return Embeddings([[1.0]], 0)

    charged(Embedding(), budgets).embed(["ocho" * 8])
    assert used(budgets)[1] == 12
