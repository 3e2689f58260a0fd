"""A SQLite file of the workspace beside the catalog, for what is no artifact: written often, and forgotten again."""

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yunque.errors import UserError

_MOST_IDLE = 16
_LINES: dict[tuple[int, Path], threading.Lock] = {}


def _line(path: Path) -> threading.Lock:
    """Who may write to a file next. After a fork it is another one: who held the old one is not in this process."""
    return _LINES.setdefault((os.getpid(), path), threading.Lock())


class SqliteFile:
    """Connections to one file, one for each thread; `schema` is run once for each connection (CREATE IF NOT EXISTS).

    The connection of a thread that ended serves the next one that begins. Another writer is waited for `patience`
    seconds. What is deleted is overwritten. A commit survives a killed process; a power cut may take the last ones.
    """

    def __init__(self, path: Path, schema: str, patience: float = 30.0) -> None:
        self.path = path
        self._schema, self._patience = schema, patience
        self._local = threading.local()
        self._idle: deque[tuple[int, sqlite3.Connection]] = deque()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection (autocommit). Raises UserError if the file is no database."""
        lent: _Lent | None = getattr(self._local, "lent", None)
        if lent is not None and lent.process == os.getpid():
            return lent.connection
        # A connection must not be used on the other side of a fork.
        lent = _Lent(self._taken() or self._opened(), self._idle)
        self._local.lent = lent
        return lent.connection

    def _taken(self) -> sqlite3.Connection | None:
        """A connection that a thread left, if there is one."""
        while True:
            try:
                process, connection = self._idle.pop()
            except IndexError:
                return None
            if process == os.getpid():
                return connection

    def _opened(self) -> sqlite3.Connection:
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            # Used by one thread at a time; which one may change.
            kept = sqlite3.connect(
                self.path, timeout=self._patience, isolation_level=None, check_same_thread=False
            )
            kept.row_factory = sqlite3.Row
            # Threads that all make the file at once would sleep for a second.
            with _line(self.path):
                kept.execute("PRAGMA journal_mode = WAL")
                kept.execute("PRAGMA synchronous = NORMAL")
                kept.execute("PRAGMA secure_delete = ON")
                kept.executescript(self._schema)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror})") from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: cannot be used ({error}); move it away to begin anew") from None
        return kept

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, alone among all threads and processes: all of it is kept, or none.

        Raises UserError where the file cannot be written (locked, full, damaged).
        """
        connection = self.connection()
        # SQLite sleeps for ever longer while another writes; threads of one process can wait in line instead.
        with _line(self.path), self._clear_errors():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: cannot be written ({error})") from None

    def scrub(self) -> None:
        """Write the file anew and empty its write-ahead log: no byte of what was deleted is left in any of them.

        Raises UserError where somebody reads the file all the time.
        """
        connection = self.connection()
        # Rows are moved between pages, and an old page may still hold a copy of one.
        connection.execute("VACUUM")
        for _ in range(100):
            if not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                return
            time.sleep(0.05)
        raise UserError(f"{self.path}: is deleted from, but another process holds old pages of it: try again")

    def close(self) -> None:
        """Close this thread's connection."""
        lent: _Lent | None = getattr(self._local, "lent", None)
        if lent is not None:
            lent.idle = None
            lent.connection.close()
            self._local.lent = None


class _Lent:
    """A connection that belongs to a thread; when the thread is gone, it waits for the next one."""

    def __init__(self, connection: sqlite3.Connection, idle: deque[tuple[int, sqlite3.Connection]]) -> None:
        self.connection, self.process = connection, os.getpid()
        self.idle: deque[tuple[int, sqlite3.Connection]] | None = idle

    def __del__(self) -> None:
        if self.idle is None or self.process != os.getpid():
            return
        if len(self.idle) < _MOST_IDLE and not self.connection.in_transaction:
            self.idle.append((self.process, self.connection))
