import threading
import time

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


def test_who_asks_again_comes_after_those_who_wait() -> None:
    def shares(lock) -> list[int]:
        """How often each of two threads that never let go for long had it."""
        counts, until = [0, 0], time.monotonic() + 0.3

        def work(number: int) -> None:
            while time.monotonic() < until:
                with lock:
                    counts[number] += 1
                    time.sleep(0.002)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return counts

    fair = shares(Turn())
    assert min(fair) > 5 and abs(fair[0] - fair[1]) <= 2
    plain = shares(threading.Lock())
    assert abs(plain[0] - plain[1]) > 2, "the control: a lock that is not fair"


def test_it_is_let_go_when_the_block_fails() -> None:
    turn = Turn()
    with pytest.raises(ValueError, match="inside"), turn:
        raise ValueError("inside")
    with turn:
        pass
