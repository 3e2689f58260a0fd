"""A small database of one's own: a SQLite file of the workspace, or Postgres, with the same few words of SQL.

SQL is written with `?` and with types that both know (TEXT, BIGINT, DOUBLE PRECISION).
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from yunque.apps.keeping.holding import held
from yunque.errors import UserError

Row = Mapping[str, Any]


class Vanished(Exception):
    """What was to be written belongs to something that was deleted in the meantime."""


class Database(Protocol):
    """Tables that several threads and processes use at once."""

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        ...

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change rows and return how many; on its own, or inside a `transaction`.

        Raises Vanished where a row refers to one that is gone.
        """
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside is kept, or none of it."""
        ...

    def hold(self, name: str, wait: float = 0.0) -> AbstractContextManager[None]:
        """Be the only one of all processes at `name`; ends with the process. Raises `holding.Held`."""
        ...

    def wipe(self) -> bool:
        """Overwrite the bytes of what was deleted; False if somebody reading stood in the way."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class SqliteDatabase:
    """A SQLite file: write-ahead log, synced at every commit, deleted bytes overwritten by zeros.

    One connection that threads take turns at: writes follow one another in a SQLite file anyway.
    """

    def __init__(self, path: Path, schema: str, version: int = 1) -> None:
        """Open or make the file; raises UserError if it is none of ours or a later Yunque's."""
        self.path = path
        self._turn = threading.RLock()
        self._depth = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",
                "foreign_keys = ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            self._prepare(schema, version)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: cannot be used as a file of the workspace ({error})") from None

    def _prepare(self, schema: str, version: int) -> None:
        if self._version() == version:
            return
        with self.transaction():
            found = self._version()
            if found > version:
                raise UserError(
                    f"{self.path}: was made by a newer Yunque than this one; update this one to use it"
                )
            for statement in filter(str.strip, schema.split(";")):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {version}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        with self._turn, self._told():
            return [dict(row) for row in self._connection.execute(sql, tuple(values))]

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change rows and return how many."""
        with self._turn, self._told():
            try:
                return self._connection.execute(sql, tuple(values)).rowcount
            except sqlite3.IntegrityError as error:
                raise Vanished(str(error)) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is kept, or none of it; one inside another is part of it."""
        with self._turn:
            if self._depth == 0:
                with self._told():
                    self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                if self._depth == 1:
                    self._connection.execute("ROLLBACK")
                raise
            else:
                if self._depth == 1:
                    with self._told():
                        self._commit()
            finally:
                self._depth -= 1

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            # A disk that is full: what could not be kept must not stand in the way of the next.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def hold(self, name: str, wait: float = 0.0) -> AbstractContextManager[None]:
        """Be the only one of all processes at `name`."""
        return held(self.path.with_suffix(".locks"), name, wait)

    def wipe(self) -> bool:
        """Overwrite what was deleted, in the log too: it is emptied into the file, then cut to nothing."""
        end = time.monotonic() + 10
        while True:
            with self._turn:
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.05)

    def close(self) -> None:
        """End the connection."""
        with self._turn:
            self._connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A disk that is full, or a file that is damaged or busy, is no bug of ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: {error}") from None
        except sqlite3.ProgrammingError as error:
            raise UserError(f"{self.path}: was closed ({error})") from None
