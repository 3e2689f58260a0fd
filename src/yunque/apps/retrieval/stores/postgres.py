"""A store in PostgreSQL with pgvector (the extra `[postgres]`).

Vectors are searched exactly, but through an HNSW index where there are many and nearly all are in scope. `erase`
rewrites the tables (`VACUUM FULL`); what the server's own log, its replicas and its backups still hold is for its
keeper to end.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores.postings import ANALYZER, K1, Analyzed, B, analyze
from yunque.apps.retrieval.stores.store import (
    ANY_VERSION,
    EVERYTHING,
    Between,
    Entry,
    Scope,
    Scored,
    checked,
    kind_of,
    values_of,
    wanted_values,
)
from yunque.errors import UserError

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

_KINDS = {"truth": 0, "number": 1, "text": 2}
_INDEXED_FROM = 5_000
_MOST_INDEXED_DIMENSIONS = 2_000
_EF_SEARCH = 100
_TABLES = """
CREATE TABLE {s}.state (analyzer text NOT NULL, dimensions int);
CREATE TABLE {s}.entries (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text NOT NULL UNIQUE, heading text NOT NULL,
    text text NOT NULL, language text NOT NULL, metadata text NOT NULL, groups text[] NOT NULL, length int NOT NULL,
    added int NOT NULL, removed int, embedding vector);
CREATE TABLE {s}.fields (
    entry bigint NOT NULL REFERENCES {s}.entries ON DELETE CASCADE, name text NOT NULL, kind smallint NOT NULL,
    number float8, value text COLLATE "C");
CREATE INDEX ON {s}.fields (entry);
CREATE INDEX ON {s}.fields (name, kind, number);
CREATE INDEX ON {s}.fields (name, kind, value);
CREATE TABLE {s}.postings (
    stem text NOT NULL, entry bigint NOT NULL REFERENCES {s}.entries ON DELETE CASCADE, count int NOT NULL,
    PRIMARY KEY (stem, entry));
CREATE INDEX ON {s}.postings (entry);
CREATE TABLE {s}.words (
    word text, stem text, groups text[], entries int NOT NULL, PRIMARY KEY (word, stem, groups));
"""


class PostgresStore:
    """The store called `name` at a `postgresql://` address, in a schema of its own, made if it is not there."""

    def __init__(self, address: str, name: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise UserError("a store in PostgreSQL needs the extra: pip install 'yunque[postgres]'") from None
        self._psycopg = psycopg
        self._address = address
        plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
        self.schema = (
            f"yunque_{plain}" if plain == name and len(plain) < 40 else
            f"yunque_{plain[:30]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        )  # fmt: skip
        self._lock_number = int.from_bytes(hashlib.sha256(self.schema.encode()).digest()[:7])
        self._local = threading.local()
        self._opened: list[Connection[Any]] = []
        try:
            self._prepare()
        except psycopg.Error as error:
            raise UserError(f"the PostgreSQL store cannot be opened ({_brief(error)})") from None

    def _connection(self) -> "Connection[Any]":
        kept: Connection[Any] | None = getattr(self._local, "connection", None)
        if kept is None or kept.closed:
            kept = self._psycopg.connect(self._address, autocommit=True)
            self._local.connection = kept
            self._opened.append(kept)
        return kept

    @contextmanager
    def _reading(self) -> "Iterator[Cursor[Any]]":
        with self._connection().transaction(), self._connection().cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield cursor

    @contextmanager
    def _writing(self) -> "Iterator[Cursor[Any]]":
        """One writer at a time; what it does is kept as a whole or not at all."""
        with self._connection().transaction(), self._connection().cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (self._lock_number,))
            yield cursor

    def _prepare(self) -> None:
        with self._writing() as cursor:
            cursor.execute("SELECT to_regclass(%s)", (f"{self.schema}.state",))
            if _one(cursor) is None:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
                cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")
                for statement in _TABLES.format(s=self.schema).split(";\n"):
                    cursor.execute(statement)
                cursor.execute(f"INSERT INTO {self.schema}.state VALUES (%s, NULL)", (ANALYZER,))
            cursor.execute(f"SELECT analyzer FROM {self.schema}.state")
            if _one(cursor) != ANALYZER:
                raise UserError(f"{self.schema}: its words were cut by other rules: build it again")

    @property
    def dimensions(self) -> int | None:
        """How long the vectors are; None before the first one."""
        with self._reading() as cursor:
            cursor.execute(f"SELECT dimensions FROM {self.schema}.state")
            found: int | None = _one(cursor)
            return found

    def put(self, entries: Sequence[Entry], retired: Sequence[str] = (), version: int = 0) -> None:
        """See `Store.put`."""
        with self._writing() as cursor:
            cursor.execute(f"SELECT dimensions FROM {self.schema}.state")
            dimensions = checked(entries, _one(cursor))
            cursor.execute(f"UPDATE {self.schema}.state SET dimensions = %s", (dimensions,))
            self._remove(cursor, [entry.id for entry in entries])
            self._insert(cursor, entries, version)
            cursor.execute(
                f"UPDATE {self.schema}.entries SET removed = %s WHERE id = ANY(%s)", (version, list(retired))
            )
            self._index_vectors(cursor, dimensions)

    def _insert(self, cursor: "Cursor[Any]", entries: Sequence[Entry], version: int) -> None:
        if not entries:
            return
        analyzed = [analyze(entry.heading, entry.text, entry.language) for entry in entries]
        with cursor.copy(
            f"COPY {self.schema}.entries (id, heading, text, language, metadata, groups, length, added, removed,"
            " embedding) FROM STDIN"
        ) as copy:
            for entry, one in zip(entries, analyzed, strict=True):
                copy.write_row(
                    (
                        entry.id,
                        entry.heading,
                        entry.text,
                        entry.language,
                        json.dumps(entry.metadata, ensure_ascii=False),
                        sorted(set(entry.groups)),
                        one.length,
                        entry.added or version,
                        entry.removed,
                        None if entry.vector is None else _written(entry.vector),
                    )
                )
        cursor.execute(
            f"SELECT id, number FROM {self.schema}.entries WHERE id = ANY(%s)", ([e.id for e in entries],)
        )
        numbers = dict(cursor.fetchall())
        with cursor.copy(f"COPY {self.schema}.postings FROM STDIN") as copy:
            for entry, one in zip(entries, analyzed, strict=True):
                for stem, count in one.counts.items():
                    copy.write_row((stem, numbers[entry.id], count))
        with cursor.copy(f"COPY {self.schema}.fields FROM STDIN") as copy:
            for entry in entries:
                for name, listed in entry.metadata.items():
                    for value in values_of(listed):
                        copy.write_row((numbers[entry.id], name, *_field(value)))
        self._count_words(cursor, ((one, e.groups) for one, e in zip(analyzed, entries, strict=True)), 1)

    def _count_words(
        self, cursor: "Cursor[Any]", analyzed: Iterable[tuple[Analyzed, Sequence[str]]], sign: int
    ) -> None:
        counted: dict[tuple[str, str, tuple[str, ...]], int] = {}
        for one, groups in analyzed:
            for word, stem in one.words.items():
                key = (word, stem, tuple(sorted(set(groups))))
                counted[key] = counted.get(key, 0) + sign
        cursor.executemany(
            f"INSERT INTO {self.schema}.words AS w VALUES (%s, %s, %s, %s) ON CONFLICT (word, stem, groups)"
            " DO UPDATE SET entries = w.entries + excluded.entries",
            [(word, stem, list(groups), count) for (word, stem, groups), count in sorted(counted.items())],
        )

    def _remove(self, cursor: "Cursor[Any]", ids: Sequence[str]) -> int:
        cursor.execute(
            f"DELETE FROM {self.schema}.entries WHERE id = ANY(%s) RETURNING heading, text, language, groups",
            (list(ids),),
        )
        rows = cursor.fetchall()
        self._count_words(
            cursor, ((analyze(heading, text, spoken), groups) for heading, text, spoken, groups in rows), -1
        )
        if rows:
            cursor.execute(f"DELETE FROM {self.schema}.words WHERE entries <= 0")
        return len(rows)

    def _index_vectors(self, cursor: "Cursor[Any]", dimensions: int | None) -> None:
        """An HNSW index, once there are many vectors."""
        if dimensions is None or dimensions > _MOST_INDEXED_DIMENSIONS:
            return
        cursor.execute("SELECT to_regclass(%s)", (f"{self.schema}.entries_nearest",))
        if _one(cursor) is not None:
            return
        cursor.execute(f"SELECT count(*) FROM {self.schema}.entries")
        if _one(cursor) >= _INDEXED_FROM:
            cursor.execute(
                f"CREATE INDEX entries_nearest ON {self.schema}.entries USING hnsw"
                f" ((embedding::vector({dimensions})) vector_ip_ops)"
            )

    def delete(self, ids: Sequence[str]) -> int:
        """See `Store.delete`."""
        with self._writing() as cursor:
            return self._remove(cursor, ids)

    def prune(self, version: int) -> int:
        """See `Store.prune`."""
        with self._writing() as cursor:
            cursor.execute(f"SELECT id FROM {self.schema}.entries WHERE removed <= %s", (version,))
            return self._remove(cursor, [row[0] for row in cursor.fetchall()])

    def erase(self, ids: Sequence[str]) -> int:
        """See `Store.erase`, and what this module says of it."""
        count = self.delete(ids)
        for table in ("entries", "fields", "postings", "words"):
            self._connection().execute(f"VACUUM FULL {self.schema}.{table}")
        return count

    def get(self, ids: Sequence[str], scope: Scope = EVERYTHING) -> list[Entry]:
        """See `Store.get`."""
        where, values = self._scoped(scope)
        with self._reading() as cursor:
            cursor.execute(
                "SELECT id, text, heading, language, metadata, groups, added, removed FROM"
                f" {self.schema}.entries AS e WHERE id = ANY(%s) AND {where}",
                (list(ids), *values),
            )
            found = {
                row[0]: Entry(
                    row[0], row[1], row[2], row[3], json.loads(row[4]), tuple(row[5]), None, row[6], row[7]
                )
                for row in cursor.fetchall()
            }
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `Store.vectors`."""
        with self._reading() as cursor:
            cursor.execute(
                f"SELECT id, embedding::text FROM {self.schema}.entries WHERE id = ANY(%s) AND embedding IS NOT NULL",
                (list(ids),),
            )
            return {id: np.array(json.loads(text), np.float32) for id, text in cursor.fetchall()}

    def ids(self, scope: Scope = EVERYTHING) -> list[str]:
        """See `Store.ids`."""
        where, values = self._scoped(scope)
        with self._reading() as cursor:
            cursor.execute(f"SELECT id FROM {self.schema}.entries AS e WHERE {where} ORDER BY number", values)
            return [row[0] for row in cursor.fetchall()]

    def count(self, scope: Scope = EVERYTHING) -> int:
        """See `Store.count`."""
        where, values = self._scoped(scope)
        with self._reading() as cursor:
            cursor.execute(f"SELECT count(*) FROM {self.schema}.entries AS e WHERE {where}", values)
            return int(_one(cursor))

    def search_keywords(self, terms: Mapping[str, float], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_keywords`."""
        seen, seen_values = self._scoped(Scope(scope.groups, scope.version))
        where, values = self._scoped(scope)
        query = f"""
WITH extent AS MATERIALIZED (
    SELECT count(*)::float8 AS entries, coalesce(nullif(avg(length), 0), 1)::float8 AS mean
    FROM {self.schema}.entries AS e WHERE {seen}),
asked AS (SELECT * FROM unnest(%s::text[], %s::float8[]) AS t(stem, weight)),
found AS MATERIALIZED (
    SELECT p.stem, p.entry, p.count::float8 AS count, e.length, weight,
        count(*) OVER (PARTITION BY p.stem)::float8 AS often
    FROM asked JOIN {self.schema}.postings AS p USING (stem) JOIN {self.schema}.entries AS e ON e.number = p.entry
    WHERE {seen}),
scored AS (
    SELECT entry, sum(weight * ln(1 + (entries - often + 0.5) / (often + 0.5)) * count * {K1 + 1}
        / (count + {K1} * ({1 - B} + {B} * length / mean))) AS score
    FROM found, extent GROUP BY entry)
SELECT e.id, score FROM scored JOIN {self.schema}.entries AS e ON e.number = entry
WHERE score > 0 AND {where} ORDER BY score DESC, e.number LIMIT %s"""
        stems = list(terms)
        with self._reading() as cursor:
            cursor.execute(
                query,
                (*seen_values, stems, [float(terms[s]) for s in stems], *seen_values, *values, k),
            )
            return [Scored(id, float(score)) for id, score in cursor.fetchall()]

    def search_vectors(self, vector: NDArray[np.float32], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_vectors`. Approximate (HNSW, ef 100 or more) where nearly all of many are in scope."""
        where, values = self._scoped(scope)
        with self._reading() as cursor:
            cursor.execute(f"SELECT dimensions FROM {self.schema}.state")
            dimensions = _one(cursor)
            if vector.shape != (dimensions,):
                return []
            column = f"embedding::vector({dimensions})"
            nearest = f"ORDER BY {column} <#> %s::vector, number LIMIT %s"
            inside = f"embedding IS NOT NULL AND {where}"
            if self._through_index(cursor, scope):
                cursor.execute(f"SET LOCAL hnsw.ef_search = {min(1000, max(_EF_SEARCH, 2 * k))}")
                source = (
                    f"(SELECT * FROM {self.schema}.entries ORDER BY {column} <#> %s::vector LIMIT %s) AS e"
                )
                before: tuple[Any, ...] = (_written(vector), min(1000, 2 * k))
            else:
                cursor.execute("SET LOCAL enable_indexscan = off")
                source, before = f"{self.schema}.entries AS e", ()
            cursor.execute(
                f"SELECT id, -({column} <#> %s::vector) FROM {source} WHERE {inside} {nearest}",
                (_written(vector), *before, *values, _written(vector), k),
            )
            return [Scored(id, float(score)) for id, score in cursor.fetchall()]

    def _through_index(self, cursor: "Cursor[Any]", scope: Scope) -> bool:
        """Whether there is an index, and few of what it gives would be out of scope."""
        if scope.groups is not None or scope.language or scope.where:
            return False
        cursor.execute("SELECT to_regclass(%s)", (f"{self.schema}.entries_nearest",))
        if _one(cursor) is None:
            return False
        where, values = self._scoped(scope)
        cursor.execute(
            f"SELECT avg(CASE WHEN {where} THEN 1.0 ELSE 0.0 END) FROM {self.schema}.entries AS e", values
        )
        return float(_one(cursor) or 0) > 0.8

    def frequencies(self, stems: Sequence[str], scope: Scope = EVERYTHING) -> dict[str, int]:
        """See `Store.frequencies`."""
        seen, values = self._scoped(Scope(scope.groups, scope.version))
        with self._reading() as cursor:
            cursor.execute(
                f"SELECT stem, count(*) FROM {self.schema}.postings JOIN {self.schema}.entries AS e ON"
                f" e.number = entry WHERE stem = ANY(%s) AND {seen} GROUP BY stem",
                (list(stems), *values),
            )
            return dict.fromkeys(stems, 0) | dict(cursor.fetchall())

    def words(self, scope: Scope = EVERYTHING) -> Iterator[tuple[str, str]]:
        """See `Store.words`."""
        seen, values = self._scoped(Scope(scope.groups, scope.version))
        groups = "TRUE" if scope.groups is None else "(groups = '{}' OR groups && %s::text[])"
        theirs = () if scope.groups is None else (sorted(scope.groups),)
        with self._reading() as cursor:
            cursor.execute(
                f"SELECT DISTINCT word, stem FROM {self.schema}.words AS w WHERE {groups} AND (NOT EXISTS (SELECT 1"
                f" FROM {self.schema}.postings AS p WHERE p.stem = w.stem) OR EXISTS (SELECT 1 FROM"
                f" {self.schema}.postings AS p JOIN {self.schema}.entries AS e ON e.number = p.entry"
                f" WHERE p.stem = w.stem AND {seen})) ORDER BY word, stem",
                (*theirs, *values),
            )
            return iter(cursor.fetchall())

    def close(self) -> None:
        """See `Store.close`."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()

    def destroy(self) -> None:
        """See `Store.destroy`."""
        self._connection().execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")
        self.close()

    def _scoped(self, scope: Scope) -> tuple[str, tuple[Any, ...]]:
        """A scope as SQL over `entries AS e`, and the values in it."""
        clauses: list[str] = []
        values: list[Any] = []
        if scope.groups is not None:
            clauses.append("(e.groups = '{}' OR e.groups && %s::text[])")
            values.append(sorted(scope.groups))
        if scope.version is None:
            clauses.append("e.removed IS NULL")
        elif scope.version != ANY_VERSION:
            clauses.append("e.added <= %s AND (e.removed IS NULL OR e.removed > %s)")
            values += [scope.version, scope.version]
        if scope.language is not None:
            clauses.append("e.language = %s")
            values.append(scope.language)
        for name, condition in scope.where.items():
            fits, theirs = _fitting(condition)
            clauses.append(
                f"EXISTS (SELECT 1 FROM {self.schema}.fields AS f"
                f" WHERE f.entry = e.number AND f.name = %s AND ({fits}))"
            )
            values += [name, *theirs]
        return " AND ".join(clauses) or "TRUE", tuple(values)


def _fitting(condition: Any) -> tuple[str, list[Any]]:
    """A condition as SQL over `fields AS f`."""
    parts: list[str] = []
    values: list[Any] = []
    if isinstance(condition, Between):
        ends = [
            (sign, end) for sign, end in ((">=", condition.low), ("<=", condition.high)) if end is not None
        ]
        kinds = {kind_of(end) for _, end in ends}
        if len(kinds) != 1 or kinds == {"truth"}:
            return "FALSE", []
        column = "f.value" if kinds == {"text"} else "f.number"
        for sign, end in ends:
            parts.append(f"{column} {sign} %s")
            values.append(end if isinstance(end, str) else float(end))
        return f"f.kind = {_KINDS[kinds.pop()]} AND " + " AND ".join(parts), values
    for wanted in wanted_values(condition):
        kind, number, value = _field(wanted)
        column = "f.value" if number is None else "f.number"
        parts.append(f"(f.kind = {kind} AND {column} = %s)")
        values.append(value if number is None else number)
    return " OR ".join(parts) or "FALSE", values


def _field(value: str | int | float | bool) -> tuple[int, float | None, str | None]:
    kind = _KINDS[kind_of(value)]
    return (kind, None, value) if isinstance(value, str) else (kind, float(value), None)


def _written(vector: NDArray[np.float32]) -> str:
    return "[" + ",".join(map(repr, vector.astype(np.float32).tolist())) + "]"


def _one(cursor: "Cursor[Any]") -> Any:
    row = cursor.fetchone()
    return row[0] if row else None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
