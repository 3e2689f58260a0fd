"""A SQLite file of the workspace beside the catalog, for what is no artifact: written often, and forgotten again."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yunque.errors import UserError

_LINES: dict[tuple[int, Path], threading.Lock] = {}


def _line(path: Path) -> threading.Lock:
    """Who may write to a file next. After a fork it is another one: who held the old one is not in this process."""
    return _LINES.setdefault((os.getpid(), path), threading.Lock())


class SqliteFile:
    """Connections to one file, one for each thread; `schema` is run once for each connection (CREATE IF NOT EXISTS).

    What is deleted is overwritten. A commit survives a killed process; a power cut may take the last ones.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._schema = schema
        self._local = threading.local()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection (autocommit). Raises UserError if the file is no database."""
        kept: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if kept is not None and self._local.process == os.getpid():
            return kept
        try:
            self.path.touch(mode=0o600, exist_ok=True)
            kept = sqlite3.connect(self.path, timeout=30, isolation_level=None)
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
        # A connection must not be used on the other side of a fork.
        self._local.connection, self._local.process = kept, os.getpid()
        return kept

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, alone among all threads and processes: all of it is kept, or none."""
        connection = self.connection()
        # SQLite sleeps for ever longer while another writes; threads of one process can wait in line instead.
        with _line(self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

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
        kept: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None
