"""SQLite files beside the catalog: connections that threads hand on, and errors in one sentence."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.workspace.measurements import Measurements
from yunque.workspace.sqlite_file import SqliteFile

_SCHEMA = "CREATE TABLE IF NOT EXISTS a (b INTEGER);"


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_connection_of_a_thread_that_ended_serves_the_next(tmp_path: Path) -> None:
    file, seen = SqliteFile(tmp_path / "a.db", _SCHEMA), list[sqlite3.Connection]()

    def work() -> None:
        with file.transaction() as connection:
            connection.execute("INSERT INTO a VALUES (1)")
        seen.append(file.connection())

    for _ in range(20):
        in_a_thread(work)
    assert len(set(map(id, seen))) == 1
    assert file.connection().execute("SELECT count(*) FROM a").fetchone()[0] == 20


def test_threads_at_the_same_time_have_one_each(tmp_path: Path) -> None:
    file, seen, together = SqliteFile(tmp_path / "a.db", _SCHEMA), list[int](), threading.Barrier(4)

    def work() -> None:
        seen.append(id(file.connection()))
        together.wait(5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 4


def test_one_that_was_left_in_the_middle_of_a_transaction_is_not_handed_on(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "a.db", _SCHEMA)
    in_a_thread(lambda: file.connection().execute("BEGIN") and None)
    assert not file.connection().in_transaction


def test_a_file_that_another_process_keeps_locked_is_one_sentence(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "a.db", _SCHEMA, patience=0.05)
    file.connection()
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"cannot be written .*locked"), file.transaction():
        pass
    other.execute("ROLLBACK")
    with file.transaction() as connection:
        connection.execute("INSERT INTO a VALUES (1)")
    assert not file.connection().in_transaction


def test_a_transaction_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path / "a.db", _SCHEMA)
    with pytest.raises(KeyError), file.transaction() as connection:
        connection.execute("INSERT INTO a VALUES (1)")
        raise KeyError
    assert file.connection().execute("SELECT count(*) FROM a").fetchone()[0] == 0


def test_no_number_of_tokens_is_too_large_to_measure(tmp_path: Path) -> None:
    measurements = Measurements.of(tmp_path)
    measurements.add("openai/a", 2**70, -3, 0.1, 1.0)
    speed = measurements.speed("openai/a")
    assert speed is not None and speed.answers == 1
