import threading
import time
from typing import Any

import pytest

from yunque.generate.turn import Turn


def test_one_at_a_time_has_it() -> None:
    turn, inside, most = Turn(), [0], [0]

    def work() -> None:
        for _ in range(200):
            with turn:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and most == [1]


class _Pushy:
    """The control: whoever had it last has it first."""

    def __init__(self) -> None:
        self._waiting: list[threading.Event] = []
        self._taken, self._guard = False, threading.Lock()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            self._waiting.insert(0, mine := threading.Event())
        mine.wait(20)

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.pop(0).set()
            else:
                self._taken = False


def _order(turn: Any) -> list[str]:
    """In what order three have it that ask one after the other, while somebody has it."""
    had: list[str] = []

    def work(name: str) -> None:
        with turn:
            had.append(name)

    threads = []
    with turn:
        for name in "abc":
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            # It asks, and waits: nothing of that can be seen from outside.
            time.sleep(0.2)
    for thread in threads:
        thread.join(20)
    return had


def test_who_asks_first_has_it_first() -> None:
    assert _order(Turn()) == ["a", "b", "c"]
    assert _order(_Pushy()) != ["a", "b", "c"]


def test_it_is_let_go_when_the_block_fails() -> None:
    turn = Turn()
    with pytest.raises(ValueError, match="inside"), turn:
        raise ValueError("inside")
    with turn:
        pass
