"""Models are opened when they are asked for, once, and closed for others when nobody uses them."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from yunque.errors import UserError
from yunque.server.account import Account, answering
from yunque.server.errors import ApiError
from yunque.server.loading import Loading, Needs, planned_bytes
from yunque.workspace import Artifact, Workspace


class Opened:
    def __init__(self, ref: str, bytes: int | None = None) -> None:
        self.ref = ref
        self.closed = False
        if bytes is not None:
            self.memory_bytes = lambda: bytes

    def close(self) -> None:
        self.closed = True


class Opener:
    """Opens what it is told to, and keeps an account of it without keeping it alive."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.opened: list[str] = []
        self.alive: weakref.WeakValueDictionary[int, Opened] = weakref.WeakValueDictionary()

    def __call__(self, ref: str) -> Opened:
        time.sleep(self.seconds)
        self.opened.append(ref)
        if ref == "broken":
            raise UserError("broken: its files are damaged")
        made = Opened(ref)
        self.alive[len(self.opened)] = made
        return made


def loading(opener: Opener, most: int | None, **sizes: int) -> Loading[Opened]:
    return Loading(opener, lambda ref: Needs(sizes.get(ref, 10), sizes.get(ref, 10)), most, room_seconds=0.5)


@contextmanager
def in_another_thread(loading: Loading[Opened], ref: str) -> Iterator[threading.Event]:
    """`ref` is used for as long as this lasts."""
    entered, leave = threading.Event(), threading.Event()

    def use() -> None:
        with loading.use(ref):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        yield entered
    finally:
        leave.set()
        thread.join()


def test_what_many_want_at_once_is_opened_once() -> None:
    opener = Opener(seconds=0.2)
    models = loading(opener, None)

    def use(_: int) -> int:
        with models.use("a") as target:
            return id(target)

    with ThreadPoolExecutor(8) as pool:
        targets = set(pool.map(use, range(8)))
    assert opener.opened == ["a"] and len(targets) == 1


def test_the_least_recently_used_one_makes_room_and_is_really_gone() -> None:
    opener = Opener()
    models = loading(opener, 25)
    for ref in ("a", "b", "a", "c"):
        with models.use(ref):
            pass
    assert models.open_now() == {"a": 10, "c": 10}
    gc.collect()
    assert sorted(target.ref for target in opener.alive.values()) == ["a", "c"]
    with models.use("b"):
        pass
    assert opener.opened == ["a", "b", "c", "b"] and set(models.open_now()) == {"b", "c"}


def test_what_is_in_use_is_not_closed_and_who_finds_no_room_is_told() -> None:
    opener = Opener()
    models = loading(opener, 15)
    with models.use("a") as target:
        with pytest.raises(ApiError) as caught, models.use("b"):
            pass
        assert (caught.value.status, caught.value.code) == (503, "model_unavailable")
        assert int(caught.value.headers["Retry-After"]) > 0
        assert not target.closed
    with models.use("b"):
        assert target.closed


def test_who_waits_for_room_gets_it_when_it_comes_free() -> None:
    models = loading(Opener(), 15)
    with ThreadPoolExecutor(1) as pool:
        with in_another_thread(models, "a") as entered:
            assert entered.wait(5)

            def use() -> str:
                with models.use("b") as target:
                    return target.ref

            waiting = pool.submit(use)
            time.sleep(0.2)
        assert waiting.result(5) == "b"


def test_opening_one_does_not_hold_up_those_that_are_open() -> None:
    opener = Opener()
    models = loading(opener, None)
    with models.use("a"):
        pass
    opener.seconds = 1.0
    with in_another_thread(models, "slow") as entered:
        started = time.monotonic()
        for _ in range(100):
            with models.use("a"):
                pass
        assert time.monotonic() - started < 0.5 and not entered.is_set()
        assert entered.wait(5)


def test_what_can_never_fit_is_told_before_it_is_opened_and_drops_nothing() -> None:
    opener = Opener()
    models = loading(opener, 25, giant=30)
    with models.use("a"):
        pass
    with pytest.raises(ApiError, match="--memory") as caught, models.use("giant"):
        pass
    assert (caught.value.status, caught.value.code) == (400, "model_too_large")
    assert opener.opened == ["a"] and set(models.open_now()) == {"a"}


def test_what_holds_more_than_was_planned_makes_others_go_or_goes_itself() -> None:
    sizes = {"a": 10, "more": 20, "giant": 40}
    models = Loading(lambda ref: Opened(ref, sizes[ref]), lambda _: Needs(10, 10), 25)
    for ref in ("a", "more"):
        with models.use(ref):
            pass
    assert models.open_now() == {"more": 20}
    with pytest.raises(ApiError, match="giant takes"), models.use("giant"):
        pass
    assert "giant" not in models.open_now()
    with models.use("a"):
        pass


def test_what_cannot_be_opened_is_told_to_each_who_asks_and_takes_no_room() -> None:
    opener = Opener()
    models = loading(opener, 10)
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"), models.use("broken"):
            pass
    with models.use("a"):
        pass
    assert opener.opened == ["broken", "broken", "a"]


def test_a_request_whose_time_is_over_waits_no_longer_for_a_model() -> None:
    models = loading(Opener(seconds=3), None)
    account = Account()
    account.deadline = time.monotonic() + 0.3
    with in_another_thread(models, "a"):
        time.sleep(0.05)
        started = time.monotonic()
        with pytest.raises(ApiError) as caught, answering(account), models.use("a"):
            pass
        assert caught.value.status == 504 and time.monotonic() - started < 2


def test_after_the_end_nothing_is_opened() -> None:
    opener = Opener()
    models = loading(opener, None)
    with models.use("a") as target:
        pass
    assert models.drop("a") and target.closed and not models.drop("a")
    with models.use("b") as target:
        assert not models.drop("b")  # it is in use
    models.close()
    assert target.closed and models.open_now() == {}
    with pytest.raises(ApiError) as caught, models.use("a"):
        pass
    assert caught.value.status == 503


def test_many_threads_and_little_room_lose_nothing() -> None:
    models = Loading(Opener(seconds=0.001), lambda _: Needs(10, 10), 25, room_seconds=20)

    def use(number: int) -> bool:
        with models.use(f"m{number % 5}") as target:
            time.sleep(0.0005)
            return target.ref == f"m{number % 5}" and not target.closed

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(80)))
    assert len(models.open_now()) <= 2


def test_a_failure_to_make_room_behind_a_model_leaves_it_without_users() -> None:
    class Stuck(Opened):
        def close(self) -> None:
            raise RuntimeError("it does not close")

    sizes = {"a": 10, "more": 20}
    models = Loading(lambda ref: Stuck(ref, sizes[ref]), lambda _: Needs(10, 10), 25)
    with models.use("a"):
        pass
    with pytest.raises(RuntimeError, match="does not close"), models.use("more"):
        pass
    # Nobody uses it: it may be closed (which fails here too, but is tried).
    assert set(models.open_now()) == {"more"}
    with pytest.raises(RuntimeError, match="does not close"):
        models.drop("more")


def test_models_that_hold_more_than_planned_are_opened_by_many_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("yunque.server.loading._give_back", lambda: None)  # it takes longer than all the rest
    models = Loading(lambda ref: Opened(ref, 12), lambda _: Needs(5, 5), 25, room_seconds=20)

    def use(number: int) -> bool:
        with models.use(f"m{number % 7}") as target:
            return target.ref == f"m{number % 7}"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(300)))
    for ref in tuple(models.open_now()):
        assert models.drop(ref)  # no user was forgotten


def test_the_end_waits_for_a_model_that_does_not_close_no_longer_than_it_is_told() -> None:
    release = threading.Event()

    class Busy(Opened):
        def close(self) -> None:
            release.wait(20)
            super().close()

    models = Loading(Busy, lambda _: Needs(10, 10), None)
    with models.use("a") as target:
        pass
    started = time.monotonic()
    models.close(0.2)
    assert 0.1 < time.monotonic() - started < 2 and not target.closed
    release.set()


def test_the_plan_of_a_model_is_near_what_it_holds(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact]
) -> None:
    made = put_tiny_model(workspace)
    weights = 4 * made.figures["parameters"] if "parameters" in made.figures else 4 * 25_000
    planned = planned_bytes(workspace, made)
    # Weights, and 128 positions of two layers with keys and values of 16 floats.
    assert 0.5 * weights < planned.least < 2 * weights and planned.usual - planned.least == 63 * 4 * 128 * 64
    adapter = workspace.put("adapter", "tuned", {"adapter.safetensors": b"x" * 100}, [made])
    assert planned_bytes(workspace, adapter).least == planned.least + 100
    assert planned_bytes(workspace, workspace.put("app", "asks", {"app.yaml": b"x"}, [made])) == Needs(0, 0)
    assert planned_bytes(workspace, workspace.put("model", "bad", {"config.json": b"{}"})) == Needs(0, 0)


def test_one_gets_what_it_usually_takes_where_there_is_so_much_and_leaves_some_for_others() -> None:
    granted: list[int] = []

    def opened(ref: str) -> Opened:
        granted.append(models.granted(ref))
        return Opened(ref)

    models = Loading(opened, lambda _: Needs(10, 40), 100)
    for ref in ("a", "b", "c", "d", "e"):
        with models.use(ref):
            pass
    # Of 100, 60 and 25 that were free; then "a" had to go, and 48 were free.
    assert granted == [40, 35, 17, 29, 14]
