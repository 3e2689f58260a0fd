"""A store in one SQLite file: postings as blobs, vectors as blobs and an exact search over them in memory.

Deleted bytes are overwritten with zeros (`secure_delete`). Pages of the write-ahead log hold them until its next
checkpoint: `erase` makes one, scans the files, and rebuilds them (`VACUUM`) should something be left.
"""

import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores.postings import best, bm25, inverse_frequency
from yunque.apps.retrieval.stores.sqlite_schema import insert, mark_changed, next_change, prepare, remove
from yunque.apps.retrieval.stores.sqlite_view import NEVER, View, refreshed
from yunque.apps.retrieval.stores.store import EVERYTHING, Entry, Scope, Scored, checked
from yunque.errors import UserError

_MANY = 500
_CHECKPOINT_SECONDS = 10.0
_SNIPPET_BYTES = 48


class SQLiteStore:
    """The store in the file at `path`, which is made if it is not there; without a path in a temporary one."""

    def __init__(self, path: Path | None = None) -> None:
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="yunque-store-")
            path = Path(self._temporary.name, "store.db")
        self.path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._view = View()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: is not a store of Yunque ({error})") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror})") from None

    @property
    def dimensions(self) -> int | None:
        """How long the vectors are; None before the first one."""
        found: int | None = self._connection().execute("SELECT dimensions FROM state").fetchone()[0]
        return found

    def _connection(self) -> sqlite3.Connection:
        kept: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if kept is None:
            kept = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            kept.execute("PRAGMA journal_mode = WAL")
            kept.execute(f"PRAGMA synchronous = {'FULL' if self._temporary is None else 'OFF'}")
            kept.execute("PRAGMA secure_delete = ON")
            kept.execute("PRAGMA cache_size = -65536")
            prepare(kept, str(self.path))
            self._local.connection = kept
            self._opened.append(kept)
        return kept

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            next_change(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """A transaction, and the view that belongs to it."""
        connection = self._connection()
        # Begun under the lock: no other thread can have a later view than this transaction will see.
        with self._lock:
            connection.execute("BEGIN")
            try:
                view = self._view = refreshed(self._view, connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
        try:
            yield connection, view
        finally:
            connection.execute("ROLLBACK")

    def put(self, entries: Sequence[Entry], retired: Sequence[str] = (), version: int = 0) -> None:
        """See `Store.put`."""
        with self._writing() as connection:
            (dimensions,) = connection.execute("SELECT dimensions FROM state").fetchone()
            found = checked(entries, dimensions)
            if found != dimensions:
                connection.execute("UPDATE state SET dimensions = ?", (found,))
            replaced = _numbers(connection, [entry.id for entry in entries])
            remove(connection, list(replaced.values()))
            insert(connection, entries, version)
            numbers = list(_numbers(connection, retired).values())
            connection.executemany(
                "UPDATE entries SET removed = ? WHERE number = ?", ((version, number) for number in numbers)
            )
            mark_changed(connection, [(number, version) for number in numbers])

    def delete(self, ids: Sequence[str]) -> int:
        """See `Store.delete`."""
        with self._writing() as connection:
            numbers = list(_numbers(connection, ids).values())
            remove(connection, numbers)
        return len(numbers)

    def prune(self, version: int) -> int:
        """See `Store.prune`."""
        with self._writing() as connection:
            numbers = [
                n for (n,) in connection.execute("SELECT number FROM entries WHERE removed <= ?", (version,))
            ]
            remove(connection, numbers)
        return len(numbers)

    def erase(self, ids: Sequence[str]) -> int:
        """See `Store.erase`. Raises UserError when another process reads for so long that its log cannot be emptied;
        the entries are deleted then, and erasing again finishes it."""
        snippets = set[bytes]()
        for entry in self._kept(ids):
            snippets |= {text.encode()[:_SNIPPET_BYTES] for text in (entry.text, entry.heading) if text}
        count = self.delete(ids)
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM audiences WHERE number NOT IN (SELECT DISTINCT audience FROM entries)"
            )
        self._checkpoint()
        if self._left(snippets):
            self._connection().execute("VACUUM")
            self._checkpoint()
        return count

    def _checkpoint(self) -> None:
        """Write the log into the file and empty it."""
        until = time.monotonic() + _CHECKPOINT_SECONDS
        while True:
            (busy, _, _) = self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            if time.monotonic() > until:
                raise UserError(
                    f"{self.path}: deleted, but another process is reading it, so that its log still holds the "
                    "bytes: erase again when that has ended"
                )
            time.sleep(0.05)

    def _left(self, snippets: set[bytes]) -> bool:
        """Whether the files hold one of these that no entry has."""
        connection = self._connection()
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        held = [path.read_bytes() for path in files if path.exists()]
        return any(
            any(snippet in data for data in held)
            and not connection.execute(
                "SELECT 1 FROM entries WHERE instr(CAST(text AS BLOB), ?) OR instr(CAST(heading AS BLOB), ?)"
                " LIMIT 1",
                (snippet, snippet),
            ).fetchone()
            for snippet in snippets
        )

    def _kept(self, ids: Sequence[str]) -> list[Entry]:
        """Entries of any version."""
        with self._reading() as (connection, _):
            return _entries(connection, _numbers(connection, ids))

    def get(self, ids: Sequence[str], scope: Scope = EVERYTHING) -> list[Entry]:
        """See `Store.get`."""
        with self._reading() as (connection, view):
            allowed = view.allowed(scope, connection)
            numbers = {
                id: number for id, number in _numbers(connection, ids).items() if allowed[view.places[number]]
            }
            return _entries(connection, numbers)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `Store.vectors`."""
        with self._reading() as (connection, view):
            places = {id: view.places[number] for id, number in _numbers(connection, ids).items()}
            return {id: view.vectors[place].copy() for id, place in places.items() if view.has_vector[place]}

    def ids(self, scope: Scope = EVERYTHING) -> list[str]:
        """See `Store.ids`."""
        with self._reading() as (connection, view):
            return _ids(connection, view.numbers[view.allowed(scope, connection)])

    def count(self, scope: Scope = EVERYTHING) -> int:
        """See `Store.count`."""
        with self._reading() as (connection, view):
            return int(view.allowed(scope, connection).sum())

    def search_keywords(self, terms: Mapping[str, float], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_keywords`."""
        with self._reading() as (connection, view):
            visible = view.visible(scope)
            entries, mean = view.extent(scope)
            total = np.zeros(len(view.numbers), np.float32)
            for stem, weight in terms.items():
                places, counts = _postings(connection, view, stem, visible)
                if len(places):
                    inverse = weight * inverse_frequency(entries, len(places))
                    total[places] += bm25(counts, view.lengths[places], mean, inverse)
            found = best(total, view.allowed(scope, connection) & (total > 0), k)
            ids = _ids(connection, view.numbers[found])
            return [Scored(id, float(total[place])) for id, place in zip(ids, found, strict=True)]

    def search_vectors(self, vector: NDArray[np.float32], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_vectors`."""
        with self._reading() as (connection, view):
            if vector.shape != view.vectors.shape[1:]:
                return []
            scores = view.vectors[: len(view.numbers)] @ vector.astype(np.float32)
            found = best(scores, view.allowed(scope, connection) & view.has_vector, k)
            ids = _ids(connection, view.numbers[found])
            return [Scored(id, float(scores[place])) for id, place in zip(ids, found, strict=True)]

    def frequencies(self, stems: Sequence[str], scope: Scope = EVERYTHING) -> dict[str, int]:
        """See `Store.frequencies`."""
        with self._reading() as (connection, view):
            visible = view.visible(scope)
            return {stem: _frequency(connection, view, stem, visible) for stem in stems}

    def words(self, scope: Scope = EVERYTHING) -> Iterator[tuple[str, str]]:
        """See `Store.words`."""
        with self._reading() as (connection, view):
            visible = view.visible(scope)
            audiences = view.audiences_of(scope)
            same = np.isin(view.audiences, audiences) & view.alive
            # Only where other versions have other entries must each word be looked up.
            lost = set[str]() if np.array_equal(same, visible) else _unseen(connection, view, visible)
            marks = ", ".join("?" * len(audiences))
            rows = connection.execute(
                f"SELECT DISTINCT word, stem FROM words WHERE audience IN ({marks}) ORDER BY word, stem",
                audiences,
            )
            found = [(word, stem) for word, stem in rows if stem not in lost]
        return iter(found)

    def close(self) -> None:
        """See `Store.close`."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()
        if self._temporary is not None:
            self._temporary.cleanup()

    def destroy(self) -> None:
        """See `Store.destroy`."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _numbers(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
    """The number of each entry that there is, in the order of the ids."""
    found: dict[str, int] = {}
    for start in range(0, len(ids), _MANY):
        part = ids[start : start + _MANY]
        marks = ", ".join("?" * len(part))
        found.update(connection.execute(f"SELECT id, number FROM entries WHERE id IN ({marks})", tuple(part)))
    return {id: found[id] for id in dict.fromkeys(ids) if id in found}


def _ids(connection: sqlite3.Connection, numbers: NDArray[np.int32]) -> list[str]:
    """The ids of entries by their numbers, in their order."""
    found: dict[int, str] = {}
    wanted = numbers.tolist()
    for start in range(0, len(wanted), _MANY):
        part = wanted[start : start + _MANY]
        marks = ", ".join("?" * len(part))
        found.update(
            connection.execute(f"SELECT number, id FROM entries WHERE number IN ({marks})", tuple(part))
        )
    return [found[number] for number in wanted]


def _entries(connection: sqlite3.Connection, numbers: Mapping[str, int]) -> list[Entry]:
    groups = dict(connection.execute("SELECT number, groups FROM audiences"))
    found = []
    for id, number in numbers.items():
        heading, text, language, metadata, audience, added, removed = connection.execute(
            "SELECT heading, text, language, metadata, audience, added, removed FROM entries WHERE number = ?",
            (number,),
        ).fetchone()
        found.append(
            Entry(
                id,
                text,
                heading,
                language,
                json.loads(metadata),
                tuple(json.loads(groups[audience])),
                None,
                added,
                None if removed == NEVER else removed,
            )
        )
    return found


def _postings(
    connection: sqlite3.Connection, view: View, stem: str, visible: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The places of the visible entries that have a stem, and how often each counts it."""
    rows = connection.execute(
        "SELECT numbers, counts FROM postings WHERE stem = ? ORDER BY first", (stem,)
    ).fetchall()
    places = view.places[np.frombuffer(b"".join(row[0] for row in rows), "<i4")]
    counts = np.frombuffer(b"".join(row[1] for row in rows), "<u2")
    seen = visible[places]
    return places[seen], counts[seen].astype(np.float32)


def _frequency(connection: sqlite3.Connection, view: View, stem: str, visible: NDArray[np.bool_]) -> int:
    """How many visible entries have a stem."""
    rows = connection.execute("SELECT numbers FROM postings WHERE stem = ?", (stem,))
    return sum(int(np.count_nonzero(visible[view.places[np.frombuffer(row[0], "<i4")]])) for row in rows)


def _unseen(connection: sqlite3.Connection, view: View, visible: NDArray[np.bool_]) -> set[str]:
    """The stems that no visible entry has. (A stop word is no stem, and so not among them.)"""
    found: dict[str, bool] = {}
    for stem, numbers in connection.execute("SELECT stem, numbers FROM postings"):
        if not found.get(stem):
            found[stem] = bool(visible[view.places[np.frombuffer(numbers, "<i4")]].any())
    return {stem for stem, seen in found.items() if not seen}
