"""The tables of a SQLite store, and how they are written.

`postings` holds, for a stem, the numbers of the entries that have it and how often, in lists of a few thousand at
most (`first` is the first number in a list). `changed` tells readers what they hold in memory and is no more.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores.postings import ANALYZER, Analyzed, analyze, gathered
from yunque.apps.retrieval.stores.sqlite_view import NEVER, field_of
from yunque.apps.retrieval.stores.store import Entry, json_of, values_of
from yunque.errors import UserError

FORMAT = 1
_Lists = tuple[NDArray[np.int32], NDArray[np.uint16]]
_LIST = 4096
"""An entry alone goes to the end of a stem's last list, which is read and written again, so it must not be long."""
_BULK = 512
"""As many entries at once make lists of their own."""
_REMEMBERED = 20_000
"""How many changes back a reader is told what to drop; one that is further behind reads everything again."""

_TABLES = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1), analyzer TEXT NOT NULL, dimensions INTEGER, next INTEGER NOT NULL,
    change INTEGER NOT NULL, kept_from INTEGER NOT NULL);
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, heading TEXT NOT NULL, text TEXT NOT NULL,
    language TEXT NOT NULL, metadata TEXT NOT NULL, audience INTEGER NOT NULL, length INTEGER NOT NULL,
    added INTEGER NOT NULL, removed INTEGER NOT NULL);
CREATE INDEX entries_removed ON entries (removed);
CREATE TABLE audiences (number INTEGER PRIMARY KEY AUTOINCREMENT, groups TEXT NOT NULL UNIQUE);
CREATE TABLE fields (name TEXT, kind INTEGER, value, entry INTEGER, PRIMARY KEY (name, kind, value, entry))
    WITHOUT ROWID;
CREATE TABLE vectors (number INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE postings (stem TEXT NOT NULL, first INTEGER NOT NULL, numbers BLOB NOT NULL, counts BLOB NOT NULL);
CREATE UNIQUE INDEX postings_by_stem ON postings (stem, first);
CREATE TABLE words (
    word TEXT, stem TEXT, audience INTEGER, entries INTEGER NOT NULL, PRIMARY KEY (word, stem, audience))
    WITHOUT ROWID;
CREATE TABLE changed (change INTEGER NOT NULL, number INTEGER NOT NULL, removed INTEGER);
CREATE INDEX changed_by_change ON changed (change)
"""


def prepare(connection: sqlite3.Connection, name: str) -> None:
    """Make the tables if there are none; raises UserError for those of another Yunque."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have done it in the meantime.
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO state VALUES (1, ?, NULL, 1, 0, 0)", (ANALYZER,))
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT:
        raise UserError(
            f"{name}: was made by another Yunque (format {version}, here {FORMAT}): build it again"
        )
    analyzer = connection.execute("SELECT analyzer FROM state").fetchone()[0]
    if analyzer != ANALYZER:
        raise UserError(f"{name}: its words were cut by other rules ({analyzer}): build it again")


def insert(connection: sqlite3.Connection, entries: Sequence[Entry], version: int) -> None:
    """Keep entries that are not there yet; to be called in a transaction."""
    (first,) = connection.execute("SELECT next FROM state").fetchone()
    connection.execute("UPDATE state SET next = ?", (first + len(entries),))
    analyzed = [analyze(entry.heading, entry.text, entry.language) for entry in entries]
    numbered = {groups: _audience(connection, groups) for groups in {entry.groups for entry in entries}}
    audiences = [numbered[entry.groups] for entry in entries]
    connection.executemany(
        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                number,
                entry.id,
                entry.heading,
                entry.text,
                entry.language,
                json_of(entry.metadata),
                audience,
                one.length,
                entry.added or version,
                NEVER if entry.removed is None else entry.removed,
            )
            for number, (entry, one, audience) in enumerate(
                zip(entries, analyzed, audiences, strict=True), start=first
            )
        ),
    )
    connection.executemany(
        "INSERT OR IGNORE INTO fields VALUES (?, ?, ?, ?)",
        (
            (name, *field_of(value), number)
            for number, entry in enumerate(entries, start=first)
            for name, listed in entry.metadata.items()
            for value in values_of(listed)
        ),
    )
    connection.executemany(
        "INSERT INTO vectors VALUES (?, ?)",
        (
            (number, entry.vector.astype("<f4").tobytes())
            for number, entry in enumerate(entries, start=first)
            if entry.vector is not None
        ),
    )
    _count_words(connection, zip(analyzed, audiences, strict=True), 1)
    found = gathered(enumerate(analyzed, start=first))
    _add_lists(connection, found) if len(entries) >= _BULK else _lengthen_lists(connection, found)


def _audience(connection: sqlite3.Connection, groups: Sequence[str]) -> int:
    written = json.dumps(sorted(set(groups)), ensure_ascii=False)
    found = connection.execute("SELECT number FROM audiences WHERE groups = ?", (written,)).fetchone()
    if found is None:
        connection.execute("INSERT INTO audiences (groups) VALUES (?)", (written,))
        return _audience(connection, groups)
    return int(found[0])


def _count_words(connection: sqlite3.Connection, analyzed: Iterable[tuple[Analyzed, int]], sign: int) -> None:
    # Words are counted without their stems, which is quicker, as long as nobody stems a word otherwise.
    alike: dict[tuple[int, str], tuple[Counter[str], dict[str, str]]] = {}
    for one, audience in analyzed:
        counts, stems = alike.setdefault((audience, one.language), (Counter(), {}))
        counts.update(one.words.keys())
        stems.update(one.words)
    for (audience, _), (counts, stems) in alike.items():
        connection.executemany(
            "INSERT INTO words VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET entries = entries + excluded.entries",
            [(word, stems[word], audience, sign * counts[word]) for word in sorted(counts)],
        )


def _add_lists(connection: sqlite3.Connection, found: Mapping[str, _Lists]) -> None:
    connection.executemany(
        "INSERT INTO postings VALUES (?, ?, ?, ?)",
        (
            (stem, int(numbers[0]), numbers.tobytes(), counts.tobytes())
            for stem, (numbers, counts) in found.items()
        ),
    )


def _lengthen_lists(connection: sqlite3.Connection, found: Mapping[str, _Lists]) -> None:
    """Numbers only ever grow, so they go behind those of the stem's last list."""
    new: dict[str, _Lists] = {}
    for stem, (numbers, counts) in found.items():
        last = connection.execute(
            "SELECT rowid, length(numbers) FROM postings WHERE stem = ? ORDER BY first DESC LIMIT 1", (stem,)
        ).fetchone()
        if last is None or last[1] // 4 + len(numbers) > _LIST:
            new[stem] = (numbers, counts)
            continue
        connection.execute(
            "UPDATE postings SET numbers = CAST(numbers || ? AS BLOB), counts = CAST(counts || ? AS BLOB)"
            " WHERE rowid = ?",
            (numbers.tobytes(), counts.tobytes(), last[0]),
        )
    _add_lists(connection, new)


def remove(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    """Delete entries and all that was kept of them; to be called in a transaction."""
    stems: dict[str, list[int]] = {}
    analyzed: list[tuple[Analyzed, int]] = []
    for number in numbers:
        heading, text, language, metadata, audience = connection.execute(
            "SELECT heading, text, language, metadata, audience FROM entries WHERE number = ?", (number,)
        ).fetchone()
        one = analyze(heading, text, language)
        analyzed.append((one, audience))
        for stem in one.counts:
            stems.setdefault(stem, []).append(number)
        connection.executemany(
            "DELETE FROM fields WHERE name = ? AND kind = ? AND value = ? AND entry = ?",
            (
                (name, *field_of(value), number)
                for name, listed in json.loads(metadata).items()
                for value in values_of(listed)
            ),
        )
    _count_words(connection, analyzed, -1)
    connection.executemany(
        "DELETE FROM words WHERE word = ? AND stem = ? AND audience = ? AND entries <= 0",
        sorted({(word, stem, audience) for one, audience in analyzed for word, stem in one.words.items()}),
    )
    for stem, gone in stems.items():
        _shorten_lists(connection, stem, np.array(gone))
    for table in ("entries", "vectors"):
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", ((number,) for number in numbers))
    mark_changed(connection, [(number, None) for number in numbers])


def _shorten_lists(connection: sqlite3.Connection, stem: str, gone: NDArray[np.int64]) -> None:
    rows = connection.execute(
        "SELECT rowid, numbers, counts FROM postings WHERE stem = ? AND first <= ?", (stem, int(gone.max()))
    ).fetchall()
    for rowid, numbers_blob, counts_blob in rows:
        numbers, counts = np.frombuffer(numbers_blob, "<i4"), np.frombuffer(counts_blob, "<u2")
        kept = ~np.isin(numbers, gone)
        if kept.all():
            continue
        connection.execute("DELETE FROM postings WHERE rowid = ?", (rowid,))
        if kept.any():
            connection.execute(
                "INSERT INTO postings VALUES (?, ?, ?, ?)",
                (stem, int(numbers[kept][0]), numbers[kept].tobytes(), counts[kept].tobytes()),
            )


def mark_changed(connection: sqlite3.Connection, changes: Sequence[tuple[int, int | None]]) -> None:
    """Tell readers of entries that are gone (None), or gone from a version on."""
    (change,) = connection.execute("SELECT change + 1 FROM state").fetchone()
    connection.executemany(
        "INSERT INTO changed VALUES (?, ?, ?)", ((change, number, until) for number, until in changes)
    )


def next_change(connection: sqlite3.Connection) -> None:
    """Close a change: the last thing in a transaction that writes."""
    (change,) = connection.execute("UPDATE state SET change = change + 1 RETURNING change").fetchone()
    if change % 1000 == 0 and change > _REMEMBERED:
        connection.execute("DELETE FROM changed WHERE change <= ?", (change - _REMEMBERED,))
        connection.execute("UPDATE state SET kept_from = ?", (change - _REMEMBERED,))
