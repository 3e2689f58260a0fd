"""The same database in Postgres, for several machines. Needs the extra `yunque[postgres]`."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from yunque.apps.keeping.database import Row, Vanished
from yunque.apps.keeping.holding import Held
from yunque.errors import UserError


class PostgresDatabase:
    """Tables in a schema of a Postgres database; one connection that threads take turns at.

    What was deleted is rewritten away by VACUUM FULL; the server's own log and its backups are its keeper's to clean.
    """

    def __init__(self, url: str, schema: str, name: str) -> None:
        """Connect and make the tables of `schema` in the Postgres schema `name`; raises UserError if that fails."""
        try:
            import psycopg
            from psycopg.rows import dict_row
        except ImportError:
            raise UserError(
                "Postgres needs the extra: install it with pip install 'yunque[postgres]'"
            ) from None
        self._psycopg, self._url, self._name = psycopg, url, name
        self._turn = threading.RLock()
        self._depth = 0
        try:
            self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, connect_timeout=10)
            with self.transaction():
                # Two that make the tables at once would trip over one another.
                self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_number(f"{name}:tables"),))
                self._connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"')
                self._connection.execute(f'SET LOCAL search_path TO "{name}"')
                for statement in filter(str.strip, schema.split(";")):
                    self._connection.execute(statement)
            self._connection.execute(f'SET search_path TO "{name}"')
        except psycopg.Error as error:
            # The address may hold a password, and psycopg's words may hold the address.
            raise UserError(
                f"Postgres cannot be used ({type(error).__name__}): check the address, the account and its rights"
            ) from None

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query."""
        with self._turn, self._told():
            return list(self._connection.execute(sql.replace("?", "%s"), tuple(values)).fetchall())

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Change rows and return how many."""
        with self._turn, self._told():
            try:
                return self._connection.execute(sql.replace("?", "%s"), tuple(values)).rowcount
            except self._psycopg.IntegrityError as error:
                raise Vanished(type(error).__name__) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside is kept, or none of it; one inside another is part of it."""
        with self._turn:
            if self._depth:
                yield
                return
            self._depth = 1
            try:
                with self._told(), self._connection.transaction():
                    yield
            finally:
                self._depth = 0

    @contextmanager
    def hold(self, name: str, wait: float = 0.0) -> Iterator[None]:
        """Be the only one of all clients at `name`: a lock of a connection of its own, which dies with it."""
        end = time.monotonic() + wait
        with self._psycopg.connect(self._url, autocommit=True, connect_timeout=10) as own:
            while True:
                row = own.execute(
                    "SELECT pg_try_advisory_lock(%s)", (_number(f"{self._name}:{name}"),)
                ).fetchone()
                if row and row[0]:
                    break
                if time.monotonic() >= end:
                    raise Held(name)
                time.sleep(0.05)
            yield

    def wipe(self) -> bool:
        """Rewrite the tables without what was deleted."""
        with self._turn:
            for row in self.read("SELECT tablename FROM pg_tables WHERE schemaname = ?", (self._name,)):
                self._connection.execute(f'VACUUM (FULL) "{row["tablename"]}"')
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A server that is away is no bug of ours."""
        try:
            yield
        except self._psycopg.Error as error:
            raise UserError(f"Postgres could not do it ({type(error).__name__})") from None

    def close(self) -> None:
        """End the connection."""
        with self._turn:
            self._connection.close()


def _number(name: str) -> int:
    """The number that an advisory lock goes by, of 64 bits with a sign."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
