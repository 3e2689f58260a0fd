"""The catalog: one SQLite file with artifacts, parents, calls and API keys."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yunque.errors import UserError

# Each step takes a catalog from the version of its place in the list to the next, once. What the first makes may be
# there already: catalogs were made before they had a version.
_STEPS = (
    """
CREATE TABLE IF NOT EXISTS artifacts (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    hash TEXT NOT NULL, config TEXT NOT NULL, figures TEXT NOT NULL,
    environment TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (kind, name, version)
);
CREATE TABLE IF NOT EXISTS artifact_files (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    path TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (kind, name, version, path),
    FOREIGN KEY (kind, name, version) REFERENCES artifacts
);
CREATE TABLE IF NOT EXISTS artifact_parents (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    position INTEGER NOT NULL, parent TEXT NOT NULL,
    PRIMARY KEY (kind, name, version, position),
    FOREIGN KEY (kind, name, version) REFERENCES artifacts
);
CREATE INDEX IF NOT EXISTS artifact_parents_by_parent ON artifact_parents (parent);
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, target TEXT NOT NULL, model TEXT NOT NULL,
    question TEXT NOT NULL, answer TEXT NOT NULL, prompt_hash TEXT NOT NULL, details TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, created TEXT NOT NULL, revoked TEXT
);
CREATE TABLE IF NOT EXISTS audit_head (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER, hash TEXT);
""",
    """
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'models generate embeddings tokenize';
ALTER TABLE api_keys ADD COLUMN models TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN requests_a_minute INTEGER;
ALTER TABLE api_keys ADD COLUMN tokens_a_minute INTEGER;
ALTER TABLE api_keys ADD COLUMN tokens_a_day INTEGER;
ALTER TABLE api_keys ADD COLUMN expires TEXT;
ALTER TABLE api_keys ADD COLUMN last_used TEXT;
CREATE TABLE key_usage (
    key TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (key, day), FOREIGN KEY (key) REFERENCES api_keys
);
""",
)


class Catalog:
    """Connections to the catalog, one for each thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def connection(self) -> sqlite3.Connection:
        """This thread's connection (autocommit; use `transaction` to write)."""
        kept: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if kept is None:
            kept = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            kept.row_factory = sqlite3.Row
            kept.execute("PRAGMA journal_mode = WAL")
            kept.execute("PRAGMA synchronous = FULL")
            kept.execute("PRAGMA secure_delete = ON")
            kept.execute("PRAGMA foreign_keys = ON")
            _bring_up_to_date(kept, self.path)
            self._local.connection = kept
        return kept

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it is kept, or none."""
        connection = self.connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def close(self) -> None:
        """Close this thread's connection."""
        kept: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None


def _bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or change those that an earlier Yunque made; raises UserError for a later one's."""
    if _version(connection) == len(_STEPS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have done it in the meantime.
        found = _version(connection)
        if found > len(_STEPS):
            raise UserError(f"{path}: was made by a newer Yunque than this one; update this one to use it")
        for step in _STEPS[found:]:
            for statement in step.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_STEPS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
