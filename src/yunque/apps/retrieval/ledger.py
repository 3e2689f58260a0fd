"""The ledger of an index: which stores it has, which files stand in them, and what a killed run left to do.

It lies in the workspace's folder `indexes/NAME`. An index has a store for each *generation*: an embedder and a way of
cutting. In a store each entry knows from which *view* to which it belongs; an artifact is one view of one generation.
"""

import fcntl
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yunque.apps.retrieval.embedders import open_embedder
from yunque.apps.retrieval.stores import Store, open_store
from yunque.apps.retrieval.vectors import CorpusEmbedder, Embedder
from yunque.errors import UserError
from yunque.workspace import Workspace

FOLDER = "indexes"
_TABLES = """
CREATE TABLE IF NOT EXISTS generations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, cutting TEXT NOT NULL, committed INTEGER NOT NULL,
    kept_from INTEGER NOT NULL, fitted INTEGER NOT NULL, floor REAL, features TEXT, arrays BLOB);
CREATE TABLE IF NOT EXISTS files (
    generation INTEGER PRIMARY KEY, path TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS units (
    generation INTEGER, key TEXT, name TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (generation, key));
CREATE TABLE IF NOT EXISTS spool (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL, passages TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL, copied_from INTEGER);
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, etag TEXT NOT NULL, modified TEXT NOT NULL, digest TEXT NOT NULL)
"""


@dataclass(frozen=True)
class Generation:
    """`committed` is the newest finished view, 0 before the first; views before `kept_from` were pruned. The corpus
    embedder was fitted on `fitted` passages."""

    number: int
    cutting: dict[str, Any]
    committed: int
    kept_from: int
    fitted: int
    floor: float | None


@dataclass(frozen=True)
class Unit:
    """What is taken in as a whole: a file, a page of the web, or what a dataset has of one file. Without a digest it
    was about to be put when a run ended: the store may hold all of it, or nothing."""

    key: str
    name: str
    digest: str


class Ledger:
    """The ledger in a folder. Use it as a context manager."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.connection = sqlite3.connect(folder / "ledger.db", timeout=60, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA secure_delete = ON")
        for statement in _TABLES.split(";"):
            self.connection.execute(statement)

    @classmethod
    def open(cls, workspace: Workspace, name: str) -> "Ledger":
        """The ledger of the index called `name`."""
        return cls(workspace.root / FOLDER / name, name)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else changes the index meanwhile; raises UserError if somebody does."""
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"index {self.name}: another process is changing it; wait for it to end"
                ) from None
            yield

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is kept, or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def generations(self) -> list[Generation]:
        """All that there are, oldest first."""
        rows = self.connection.execute(
            "SELECT number, cutting, committed, kept_from, fitted, floor FROM generations ORDER BY number"
        )
        return [Generation(row[0], json.loads(row[1]), *row[2:]) for row in rows]

    def generation(self, number: int) -> Generation:
        """One of them."""
        return next(one for one in self.generations() if one.number == number)

    def begin(self, cutting: Mapping[str, Any]) -> Generation:
        """A new generation, still without entries."""
        with self.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO generations (cutting, committed, kept_from, fitted) VALUES (?, 0, 1, 0)",
                (json.dumps(cutting, sort_keys=True),),
            )
            generation = Generation(int(cursor.lastrowid or 0), dict(cutting), 0, 1, 0, None)
            if not self._is_elsewhere(generation):
                connection.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?)",
                    (generation.number, self._claimed(generation)),
                )
        return self.generation(generation.number)

    def _claimed(self, generation: Generation) -> str:
        """A file that was nobody's: where another index has the plain name, with this index's name in it."""
        plain = Path(self._plain_address(generation))
        stem, number = plain.stem.rpartition("-")[::2]
        names = [
            f"{stem}-{part}-{number}" for part in (self.name, *(f"{self.name}-{n}" for n in range(2, 1000)))
        ]
        try:
            plain.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in (plain.stem, *names):
                path = plain.with_name(name + plain.suffix)
                with suppress(FileExistsError):
                    path.touch(mode=0o600, exist_ok=False)
                    return str(path)
        except OSError as error:
            raise UserError(f"{plain}: cannot be opened ({error.strerror})") from None
        raise UserError(f"{plain}: there are too many stores of that name in its folder")

    def check_view(self, ref: str, generation: int, view: int) -> None:
        """Raises UserError when a view is no longer there."""
        kept = next((one for one in self.generations() if one.number == generation), None)
        if kept is None or view < kept.kept_from:
            raise UserError(f"{ref}: its passages were pruned: use a newer version, or build it again")

    def address(self, generation: Generation) -> str:
        """Where a generation's store is. A database or a folder holds several, each under its index's name; a file
        belongs to one generation of one index."""
        if self._is_elsewhere(generation):
            return str(generation.cutting["store"])
        found = self.connection.execute("SELECT path FROM files WHERE generation = ?", (generation.number,))
        # The name of the file alone counts where it is in the ledger's folder: the workspace may have been moved.
        (path,) = found.fetchone() or (self._plain_address(generation),)
        return path if generation.cutting["store"] else str(self.folder / Path(path).name)

    def _is_elsewhere(self, generation: Generation) -> bool:
        return str(generation.cutting["store"]).startswith(("postgres", "lance:"))

    def _plain_address(self, generation: Generation) -> str:
        path = Path(generation.cutting["store"] or self.folder / "store.db")
        return str(path.with_name(f"{path.stem}-{generation.number}{path.suffix}"))

    def store(self, number: int) -> Store:
        """The store of a generation; raises UserError where there was one and its file or folder is gone, which
        must not look like an index that finds nothing."""
        generation = self.generation(number)
        if self._is_gone(generation):
            raise UserError(
                f"index/{self.name}: its passages are gone ({self.address(generation)} is not there): put it back, "
                f"or remove {self.folder} and build the index again"
            )
        return open_store(self.address(generation), f"{self.name}_{number}")

    def _is_gone(self, generation: Generation) -> bool:
        address = self.address(generation)
        if not generation.committed or address.startswith("postgres"):
            return False
        return not Path(address.removeprefix("lance:")).exists()

    def drop(self, number: int) -> None:
        """Delete a generation with its store."""
        generation = self.generation(number)
        if not self._is_gone(generation):
            self.store(number).destroy()
        with self.transaction() as connection:
            connection.execute("DELETE FROM units WHERE generation = ?", (generation.number,))
            connection.execute("DELETE FROM generations WHERE number = ?", (generation.number,))
            connection.execute("DELETE FROM files WHERE generation = ?", (generation.number,))

    def embedder(self, workspace: Workspace, number: int) -> Embedder:
        """The embedder of a generation."""
        name = self.generation(number).cutting["embedder"]
        if name != "corpus":
            return open_embedder(workspace, name)
        from safetensors.numpy import load

        features, arrays = self.connection.execute(
            "SELECT features, arrays FROM generations WHERE number = ?", (number,)
        ).fetchone()
        return CorpusEmbedder.restore(json.loads(features), load(arrays))

    def keep_embedder(self, number: int, embedder: CorpusEmbedder, fitted: int) -> None:
        """Keep the embedder that was fitted for a generation."""
        from safetensors.numpy import save

        with self.transaction() as connection:
            connection.execute(
                "UPDATE generations SET features = ?, arrays = ?, fitted = ? WHERE number = ?",
                (json.dumps(embedder.features, ensure_ascii=False), save(embedder.arrays()), fitted, number),
            )

    def units(self, generation: int) -> dict[str, Unit]:
        """What stands in a generation's store, by key."""
        rows = self.connection.execute(
            "SELECT key, name, digest FROM units WHERE generation = ?", (generation,)
        )
        return {row[0]: Unit(*row) for row in rows}

    def spooled(self) -> dict[str, Unit]:
        """What was cut and is not in the store yet, by key."""
        return {row[0]: Unit(*row) for row in self.connection.execute("SELECT key, name, digest FROM spool")}

    def spool(self, units: Sequence[tuple[Unit, Sequence[dict[str, Any]]]]) -> None:
        """Keep the passages of units until they are put into the store."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO spool VALUES (?, ?, ?, ?, ?)",
                [
                    (unit.key, unit.name, unit.digest, len(cut), json.dumps(cut, ensure_ascii=False))
                    for unit, cut in units
                ],
            )

    def spooled_passages(self, key: str) -> list[dict[str, Any]]:
        """The passages of a spooled unit."""
        (text,) = self.connection.execute("SELECT passages FROM spool WHERE key = ?", (key,)).fetchone()
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def spooled_count(self) -> int:
        """How many passages are spooled."""
        (count,) = self.connection.execute("SELECT coalesce(sum(count), 0) FROM spool").fetchone()
        return int(count)

    def expect(self, generation: int, units: Sequence[Unit]) -> None:
        """Note that units are about to be put, so that the ledger knows whose entries the store may hold. Without a
        digest they count as changed until they are settled."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO units VALUES (?, ?, ?, '')",
                [(generation, unit.key, unit.name) for unit in units],
            )

    def settle(self, generation: int, put: Sequence[Unit], gone: Sequence[str] = ()) -> None:
        """Note that units are in the store, and others no more."""
        with self.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?)",
                [(generation, unit.key, unit.name, unit.digest) for unit in put],
            )
            keys = [(unit.key,) for unit in put]
            connection.executemany("DELETE FROM spool WHERE key = ?", keys)
            connection.executemany(
                "DELETE FROM units WHERE generation = ? AND key = ?", [(generation, key) for key in gone]
            )

    def job(self) -> tuple[int, int | None] | None:
        """The generation that a run is filling, and the one it copies from."""
        found = self.connection.execute("SELECT generation, copied_from FROM job").fetchone()
        return (found[0], found[1]) if found else None

    def begin_job(self, generation: int, copied_from: int | None = None) -> None:
        """Note what a run is about."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO job VALUES (1, ?, ?)", (generation, copied_from))

    def end_job(self, generation: int, view: int, floor: float | None) -> None:
        """The view is whole."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE generations SET committed = ?, floor = ? WHERE number = ?", (view, floor, generation)
            )
            connection.execute("DELETE FROM job")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def keep_floor(self, generation: int, floor: float) -> None:
        """Keep the relevance floor that a person's questions gave."""
        with self.transaction() as connection:
            connection.execute("UPDATE generations SET floor = ? WHERE number = ?", (floor, generation))

    def forget_cut(self, keys: Sequence[str] | None = None) -> None:
        """Forget what a killed run had cut, of all units or of some. What it had put stays, and its job."""
        with self.transaction() as connection:
            if keys is None:
                connection.execute("DELETE FROM spool")
            else:
                connection.executemany("DELETE FROM spool WHERE key = ?", [(key,) for key in keys])

    def give_up_job(self) -> None:
        """Forget what a killed run left to do, and the generation that it was filling if no view of that is whole. Of
        one that has a whole view no unit counts as taken in any more: which of them are in the half-made view is not
        known."""
        job = self.job()
        with self.transaction() as connection:
            connection.execute("UPDATE units SET digest = '' WHERE generation = (SELECT generation FROM job)")
            connection.execute("DELETE FROM job")
            connection.execute("DELETE FROM spool")
        if job and not self.generation(job[0]).committed:
            self.drop(job[0])

    def pruned(self, generation: int, kept_from: int) -> None:
        """Views before `kept_from` are no longer there."""
        with self.transaction() as connection:
            connection.execute(
                "UPDATE generations SET kept_from = ? WHERE number = ?", (kept_from, generation)
            )

    def compact(self) -> None:
        """Write what was deleted out of the files."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.connection.execute("VACUUM")
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
