"""A store in a folder of Lance files (the extra `[lance]`).

Every entry carries its stems, so that one commit writes all of it; searches of vectors are exact. A commit is a
new version of the table: `erase` moves all rows to new files and removes the older versions with theirs.
"""

import fcntl
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores.postings import analyze, best, bm25, inverse_frequency
from yunque.apps.retrieval.stores.store import (
    ANY_VERSION,
    EVERYTHING,
    Entry,
    Scope,
    Scored,
    checked,
    matches,
)
from yunque.errors import UserError

_NEVER = 2**31 - 1
_FACTS = ["number", "id", "language", "metadata", "length"]


class LanceStore:
    """The store called `name` in a folder, which is made if it is not there."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            import lancedb
        except ImportError:
            raise UserError("a store of Lance files needs the extra: pip install 'yunque[lance]'") from None
        self.path, self._table_name = path, name
        self._lock = threading.RLock()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = lancedb.connect(str(path), read_consistency_interval=timedelta(0))
            with self._alone():
                if name not in self._names():
                    self._database.create_table(name, schema=_schema(None))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: cannot be a Lance store ({_brief(error)})") from None

    def _names(self) -> list[str]:
        return [path.stem for path in self.path.glob("*.lance")]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of all threads and processes."""
        with self._lock, (self.path / f".{self._table_name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _latest(self) -> Any:
        """The table as it is now; it stays so however it is written meanwhile."""
        table = self._database.open_table(self._table_name)
        table.checkout(table.version)
        return table

    @property
    def dimensions(self) -> int | None:
        """How long the vectors are; None before the first one."""
        return _dimensions(self._latest())

    def put(self, entries: Sequence[Entry], retired: Sequence[str] = (), version: int = 0) -> None:
        """See `Store.put`. One merge, and so one commit."""
        import pyarrow

        with self._alone():
            table = self._database.open_table(self._table_name)
            before = _dimensions(table)
            dimensions = checked(entries, before)
            if dimensions != before:
                table.add_columns(pyarrow.field("embedding", pyarrow.list_(pyarrow.float32(), dimensions)))
            new = {entry.id for entry in entries}
            gone = [id for id in retired if id not in new]
            rows = _rows(table, f"id IN {_listed(gone)}") if gone else []
            none = [0.0] * (dimensions or 0)
            rows = [{**row, "removed": version, "embedding": row.get("embedding") or none} for row in rows]
            number = _next_number(table)
            for place, entry in enumerate(entries):
                rows.append(_row(entry, number + place, version, dimensions))
            if rows:
                made = pyarrow.Table.from_pylist(rows, schema=_schema(dimensions))
                merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(made)

    def delete(self, ids: Sequence[str]) -> int:
        """See `Store.delete`."""
        return self._delete(f"id IN {_listed(ids)}") if ids else 0

    def prune(self, version: int) -> int:
        """See `Store.prune`."""
        return self._delete(f"removed <= {version}")

    def _delete(self, condition: str) -> int:
        with self._alone():
            table = self._database.open_table(self._table_name)
            count = int(table.count_rows(condition))
            if count:
                table.delete(condition)
            return count

    def erase(self, ids: Sequence[str]) -> int:
        """See `Store.erase`, and what this module says of it."""
        count = self.delete(ids)
        with self._alone():
            table = self._database.open_table(self._table_name)
            if table.count_rows():
                # Rows that are updated move to new files, all of them in one commit; the old ones can then go.
                table.update(where="true", values_sql={"language": "language"})
            table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        return count

    def get(self, ids: Sequence[str], scope: Scope = EVERYTHING) -> list[Entry]:
        """See `Store.get`."""
        if not ids:
            return []
        found = {
            row["id"]: Entry(
                row["id"],
                row["text"],
                row["heading"],
                row["language"],
                json.loads(row["metadata"]),
                tuple(row["groups"]),
                None,
                row["added"],
                None if row["removed"] == _NEVER else row["removed"],
            )
            for row in _rows(self._latest(), f"id IN {_listed(ids)} AND {_seen(scope)}")
            if _inside(row, scope)
        }
        return [found[id] for id in dict.fromkeys(ids) if id in found]

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """See `Store.vectors`."""
        table = self._latest()
        if not ids or _dimensions(table) is None:
            return {}
        rows = _rows(table, f"has_vector AND id IN {_listed(ids)}", ["id", "embedding"])
        return {row["id"]: np.array(row["embedding"], np.float32) for row in rows}

    def ids(self, scope: Scope = EVERYTHING) -> list[str]:
        """See `Store.ids`."""
        rows = _rows(self._latest(), _seen(scope), _FACTS)
        return [row["id"] for row in sorted(rows, key=lambda row: row["number"]) if _inside(row, scope)]

    def count(self, scope: Scope = EVERYTHING) -> int:
        """See `Store.count`."""
        if scope.where or scope.language:
            return len(self.ids(scope))
        return int(self._latest().count_rows(_seen(scope)))

    def search_keywords(self, terms: Mapping[str, float], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_keywords`."""
        table = self._latest()
        lengths = [row["length"] for row in _rows(table, _seen(scope), ["length"])]
        rows = self._having(table, list(terms), scope, [*_FACTS, "stems", "counts"])
        if not rows:
            return []
        mean = sum(lengths) / len(lengths) or 1.0
        own = np.array([row["length"] for row in rows], np.float32)
        total = np.zeros(len(rows), np.float32)
        often = Counter(stem for row in rows for stem in row["stems"] if stem in terms)
        for stem, weight in terms.items():
            having = [n for n, row in enumerate(rows) if stem in row["stems"]]
            counts = np.array([rows[n]["counts"][rows[n]["stems"].index(stem)] for n in having], np.float32)
            inverse = weight * inverse_frequency(len(lengths), often[stem])
            total[having] += bm25(counts, own[having], mean, inverse)
        inside = np.array([_inside(row, scope) for row in rows])
        return [Scored(rows[n]["id"], float(total[n])) for n in best(total, inside & (total > 0), k)]

    def search_vectors(self, vector: NDArray[np.float32], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """See `Store.search_vectors`."""
        table = self._latest()
        if k <= 0 or vector.shape != (_dimensions(table),):
            return []
        condition = f"has_vector AND {_seen(scope)}"
        if scope.language is not None:
            condition += f" AND language = {_quoted(scope.language)}"
        if scope.where:
            numbers = [row["number"] for row in _rows(table, _seen(scope), _FACTS) if _inside(row, scope)]
            if not numbers:
                return []
            condition += f" AND number IN ({', '.join(map(str, numbers))})"
        query = table.search(vector.astype(np.float32), vector_column_name="embedding").distance_type("dot")
        found = query.where(condition, prefilter=True).limit(k).select(["id", "_distance"]).to_list()
        return [Scored(row["id"], 1 - row["_distance"]) for row in found]

    def frequencies(self, stems: Sequence[str], scope: Scope = EVERYTHING) -> dict[str, int]:
        """See `Store.frequencies`."""
        rows = self._having(self._latest(), stems, scope, ["number", "stems"])
        often = Counter(stem for row in rows for stem in row["stems"])
        return {stem: often[stem] for stem in stems}

    def words(self, scope: Scope = EVERYTHING) -> Iterator[tuple[str, str]]:
        """See `Store.words`."""
        found: set[str] = set()
        for row in _rows(self._latest(), _seen(scope), ["words"]):
            found.update(row["words"])
        return iter([(word, stem) for word, _, stem in (pair.partition(" ") for pair in sorted(found))])

    def _having(
        self, table: Any, stems: Sequence[str], scope: Scope, columns: list[str]
    ) -> list[dict[str, Any]]:
        """The rows that have one of these stems, oldest first."""
        if not stems:
            return []
        wanted = ", ".join(map(_quoted, stems))
        rows = _rows(table, f"array_has_any(stems, [{wanted}]) AND {_seen(scope)}", columns)
        return sorted(rows, key=lambda row: int(row["number"]))

    def close(self) -> None:
        """See `Store.close`. There is nothing open between two calls."""

    def destroy(self) -> None:
        """See `Store.destroy`."""
        with self._alone():
            shutil.rmtree(self.path / f"{self._table_name}.lance", ignore_errors=True)


def _schema(dimensions: int | None) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "number": pa.int64(),
        **dict.fromkeys(("id", "heading", "text", "language", "metadata"), pa.string()),
        "groups": pa.list_(pa.string()),
        **dict.fromkeys(("length", "added", "removed"), pa.int32()),
        "stems": pa.list_(pa.string()),
        "counts": pa.list_(pa.int32()),
        "words": pa.list_(pa.string()),
        # lancedb takes no batch that has vectors and nulls: zeros stand for what is not there.
        "has_vector": pa.bool_(),
    }
    if dimensions is not None:
        columns["embedding"] = pa.list_(pa.float32(), dimensions)
    return pa.schema(list(columns.items()))


def _row(entry: Entry, number: int, version: int, dimensions: int | None) -> dict[str, Any]:
    one = analyze(entry.heading, entry.text, entry.language)
    row = {
        "number": number,
        "id": entry.id,
        "heading": entry.heading,
        "text": entry.text,
        "language": entry.language,
        "metadata": json.dumps(entry.metadata, ensure_ascii=False),
        "groups": sorted(set(entry.groups)),
        "length": one.length,
        "added": entry.added or version,
        "removed": _NEVER if entry.removed is None else entry.removed,
        "stems": list(one.counts),
        "has_vector": entry.vector is not None,
        "counts": list(one.counts.values()),
        "words": [f"{word} {stem}" for word, stem in sorted(one.words.items())],
    }
    if dimensions is not None:
        row["embedding"] = [0.0] * dimensions if entry.vector is None else entry.vector.tolist()
    return row


def _rows(table: Any, condition: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    query = table.search().where(condition)
    if columns is not None:
        query = query.select(columns)
    rows: list[dict[str, Any]] = query.limit(_NEVER).to_arrow().to_pylist()
    return rows


def _next_number(table: Any) -> int:
    numbers = table.search().select(["number"]).limit(_NEVER).to_arrow()["number"].to_numpy()
    return int(numbers.max()) + 1 if len(numbers) else 1


def _dimensions(table: Any) -> int | None:
    schema = table.schema
    return int(schema.field("embedding").type.list_size) if "embedding" in schema.names else None


def _seen(scope: Scope) -> str:
    """What the asker may see, as SQL."""
    clauses = ["true"]
    if scope.groups is not None:
        having = (
            f"array_has_any(groups, [{', '.join(map(_quoted, sorted(scope.groups)))}])"
            if scope.groups
            else "false"
        )
        clauses.append(f"(array_length(groups) IS NULL OR array_length(groups) = 0 OR {having})")
    if scope.version is None:
        clauses.append(f"removed = {_NEVER}")
    elif scope.version != ANY_VERSION:
        clauses.append(f"added <= {scope.version} AND removed > {scope.version}")
    return " AND ".join(clauses)


def _inside(row: Mapping[str, Any], scope: Scope) -> bool:
    """Whether a row that may be seen is in scope."""
    if scope.language is not None and row["language"] != scope.language:
        return False
    return not scope.where or matches(json.loads(row["metadata"]), scope.where)


def _listed(ids: Sequence[str]) -> str:
    return f"({', '.join(map(_quoted, ids))})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
