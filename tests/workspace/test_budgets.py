"""Budgets: what is held counts, nobody passes one, and what a killed process held comes free again."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.errors import UserError
from yunque.workspace.budgets import Budgets, OverBudget

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budgets(tmp_path: Path, clock: Clock) -> Budgets:
    return Budgets(tmp_path / "budgets.db", clock=clock)


def test_without_a_budget_use_is_counted_and_nothing_refused(budgets: Budgets) -> None:
    held = budgets.hold(["app/equipaje"], 5.0, 10**9)
    budgets.settle(held, 0.25, 1200)
    used = budgets.used("app/equipaje")
    assert (used.used_usd, used.used_tokens, used.calls, used.usd) == (0.25, 1200, 1, None)
    assert budgets.used("all").used_tokens == 1200
    assert budgets.list() == []


def test_the_call_that_could_pass_the_budget_is_refused(budgets: Budgets) -> None:
    budgets.set("key/abc", usd=1.0)
    budgets.settle(budgets.hold(["key/abc"], 0.6, 10), 0.5, 10)
    with pytest.raises(OverBudget, match=r"key/abc is 1 US dollars a day: 0.5 are used"):
        budgets.hold(["key/abc"], 0.500_000_001, 10)
    budgets.hold(["key/other"], 0.6, 10)
    budgets.settle(budgets.hold(["key/abc"], 0.5, 10), 0.5, 10)
    with pytest.raises(OverBudget):
        budgets.hold(["key/abc"], 0.000_000_001, 10)


def test_what_is_held_counts_until_it_is_settled_or_released(budgets: Budgets) -> None:
    budgets.set("app/a", tokens=100)
    held = budgets.hold(["app/a"], 0, 90)
    with pytest.raises(OverBudget, match="90 are used or held"):
        budgets.hold(["app/a"], 0, 11)
    budgets.release(held)
    held = budgets.hold(["app/a"], 0, 100)
    budgets.settle(held, 0, 20)
    budgets.hold(["app/a"], 0, 80)


def test_every_one_of_several_budgets_is_heeded(budgets: Budgets) -> None:
    budgets.set("all", tokens=50)
    budgets.set("app/a", tokens=1000)
    with pytest.raises(OverBudget, match="budget of all"):
        budgets.hold(["key/k", "app/a"], 0, 60)
    # The refused call holds nothing, not even of the budgets that had room.
    assert budgets.used("app/a").held_tokens == 0


def test_without_a_price_a_budget_of_money_refuses_and_one_of_tokens_does_not(budgets: Budgets) -> None:
    budgets.set("app/a", tokens=100)
    budgets.release(budgets.hold(["app/a"], None, 10))
    budgets.set("app/a", usd=100.0, tokens=100)
    with pytest.raises(OverBudget, match="no price is known"):
        budgets.hold(["app/a"], None, 10)


def test_a_new_day_is_a_new_budget_and_a_month_is_not(budgets: Budgets, clock: Clock) -> None:
    budgets.set("app/a", tokens=100)
    budgets.set("app/a", tokens=150, period="month")
    budgets.settle(budgets.hold(["app/a"], 0, 100), 0, 100)
    with pytest.raises(OverBudget, match="a day"):
        budgets.hold(["app/a"], 0, 1)
    clock.now += 12 * 3600
    with pytest.raises(OverBudget, match="a month"):
        budgets.hold(["app/a"], 0, 51)
    budgets.settle(budgets.hold(["app/a"], 0, 50), 0, 50)
    clock.now += 9 * 24 * 3600
    budgets.hold(["app/a"], 0, 100)


def test_a_call_over_midnight_belongs_to_the_day_on_which_it_began(budgets: Budgets, clock: Clock) -> None:
    budgets.set("app/a", tokens=100)
    clock.now += 12 * 3600 - 1
    held = budgets.hold(["app/a"], 0, 100)
    clock.now += 2
    budgets.settle(held, 0, 100)
    assert budgets.used("app/a").used_tokens == 0
    assert budgets.used("app/a", "total").used_tokens == 100


def test_a_dead_caller_is_given_up_and_a_living_one_is_not(budgets: Budgets, clock: Clock) -> None:
    budgets.set("app/a", tokens=100)
    living = budgets.hold(["app/a"], 0, 50)
    budgets.hold(["app/a"], 0, 50)
    clock.now += 600
    living = budgets.extend(living)
    clock.now += 600
    budgets.hold(["app/a"], 0, 50)
    with pytest.raises(OverBudget):
        budgets.hold(["app/a"], 0, 1)
    budgets.settle(living, 0, 50)
    assert budgets.used("app/a").held_tokens == 50


def test_a_call_given_up_for_dead_is_still_charged_when_it_ends(budgets: Budgets, clock: Clock) -> None:
    budgets.set("app/a", tokens=100)
    late = budgets.hold(["app/a"], 0, 50)
    clock.now += 1000
    other = budgets.hold(["app/a"], 0, 60)
    budgets.settle(late, 0, 50)
    used = budgets.used("app/a")
    assert (used.used_tokens, used.held_tokens) == (50, 60)
    budgets.release(other)


@pytest.mark.parametrize("who", ["", "equipaje", "app/", "user/x", "app/a b", "all/x", "app/../x"])
def test_only_keys_apps_and_all_have_budgets(budgets: Budgets, who: str) -> None:
    with pytest.raises(UserError, match="budget"):
        budgets.set(who, tokens=1)


@pytest.mark.parametrize(
    "values", [{"usd": -1.0}, {"usd": float("nan")}, {"usd": float("inf")}, {"tokens": -1}]
)
def test_what_is_no_limit_is_refused(budgets: Budgets, values: dict[str, float]) -> None:
    with pytest.raises(UserError):
        budgets.set("all", **values)  # type: ignore[arg-type]


def test_a_budget_is_taken_away(budgets: Budgets) -> None:
    budgets.set("all", tokens=1)
    budgets.set("all")
    assert budgets.list() == []
    budgets.hold([], 0, 10)


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "budgets.db").write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match="cannot be used"):
        Budgets(tmp_path / "budgets.db").list()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12))
def test_what_is_used_never_passes_the_budget_whatever_comes(calls: list[tuple[int, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        budgets = Budgets(Path(folder) / "b.db", clock=Clock())
        budgets.set("all", tokens=100)
        expected = 0
        for most, share in calls:
            try:
                held = budgets.hold([], 0, most)
            except OverBudget:
                assert expected + most > 100
                continue
            assert expected + most <= 100
            budgets.settle(held, 0, min(most, share))
            expected += min(most, share)
        assert budgets.used("all").used_tokens == expected <= 100
        budgets.close()


def spend(path: Path, calls: int, taken: "multiprocessing.Queue[int]") -> None:
    budgets, used = Budgets(path), 0
    for _ in range(calls):
        try:
            held = budgets.hold(["app/a"], 0.01, 10)
        except OverBudget:
            continue
        budgets.settle(held, 0.01, 10)
        used += 10
    taken.put(used)


def test_threads_and_processes_together_cannot_pass_it(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    Budgets(path).set("app/a", usd=0.5, tokens=10_000)
    context = multiprocessing.get_context("fork")
    taken: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=spend, args=(path, 30, taken)) for _ in range(3)]
    threads = [threading.Thread(target=spend, args=(path, 30, taken)) for _ in range(3)]
    for each in (*processes, *threads):
        each.start()
    for each in (*processes, *threads):
        each.join()
    # 180 calls of a cent for half a dollar: exactly 50 were let through.
    assert sum(taken.get() for _ in range(6)) == 500
    used = Budgets(path).used("app/a")
    assert (used.used_usd, used.calls, used.held_usd) == (0.5, 50, 0.0)


def hold_and_die(path: Path) -> None:
    Budgets(path, hold=0.5).hold(["app/a"], 0, 80)
    os._exit(9)


def test_what_a_killed_process_held_comes_free_again(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    budgets = Budgets(path)
    budgets.set("app/a", tokens=100)
    process = multiprocessing.get_context("fork").Process(target=hold_and_die, args=(path,))
    process.start()
    process.join()
    with pytest.raises(OverBudget, match="80 are used or held"):
        budgets.hold(["app/a"], 0, 80)
    time.sleep(0.6)
    budgets.settle(budgets.hold(["app/a"], 0, 80), 0, 80)
    assert budgets.used("app/a").used_tokens == 80


def test_what_an_apps_file_says_and_what_an_administrator_set_both_hold(budgets: Budgets) -> None:
    budgets.set("app/a", usd=2.0, tokens=500)
    budgets.set("app/a", usd=10.0, own=True)
    assert [(each.source, each.usd, each.tokens) for each in budgets.list()] == [
        ("set", 2.0, 500),
        ("file", 10.0, None),
    ]
    with pytest.raises(OverBudget):
        budgets.hold(["app/a"], 3.0, 10)
    budgets.set("app/a", usd=1.0, own=True)
    with pytest.raises(OverBudget):
        budgets.hold(["app/a"], 1.5, 10)
    lowest = budgets.used("app/a")
    assert (lowest.usd, lowest.tokens) == (1.0, 500)
    budgets.set("app/a", own=True)
    assert [each.source for each in budgets.list()] == ["set"]
    budgets.release(budgets.hold(["app/a"], 1.5, 10))


def test_no_figure_is_too_large_for_the_file(budgets: Budgets) -> None:
    budgets.set("all", tokens=10**15)
    for _ in range(3):
        held = budgets.hold(["app/a"], 0.1, 10)
        budgets.settle(held, 1e300, 2**70)
        budgets.settle(budgets.hold(["app/a"], 0.1, 10), float("nan"), -5)
    now = budgets.used("app/a")
    assert now.used_usd == 3e6 and now.used_tokens == 3 * 10**12 and now.held_tokens == 0


def test_a_call_that_uses_more_than_it_said_holds_more_or_is_refused(budgets: Budgets) -> None:
    budgets.set("app/a", tokens=100)
    held = budgets.hold(["app/a"], 0, 40)
    budgets.enlarge(held, 0, 40)
    assert budgets.used("app/a").held_tokens == 80
    with pytest.raises(OverBudget):
        budgets.enlarge(held, 0, 40)
    assert budgets.used("app/a").held_tokens == 80
    budgets.settle(held, 0, 77)
    assert budgets.used("app/a").held_tokens == 0 and budgets.used("app/a").used_tokens == 77
