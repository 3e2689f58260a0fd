"""What a SQLite store keeps in memory: a few numbers and the vector of every entry, up to date before a search.

A view never changes; the next one shares its arrays and is longer. N entries ever seen, D dimensions.
"""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores.store import (
    ANY_VERSION,
    Between,
    Condition,
    Scope,
    Value,
    kind_of,
    wanted_values,
)

NEVER = 2**31 - 1
KINDS = {"truth": 0, "number": 1, "text": 2}
_MOST_MASKS = 64


def field_of(value: Value) -> tuple[int, str | float]:
    """A metadata value as it is kept: its kind, and itself (a number as 64 bits)."""
    kind = kind_of(value)
    return KINDS[kind], value if isinstance(value, str) else float(value)


@dataclass(frozen=True)
class View:
    """The entries as of a change, at places 0 to N - 1 in the order of their numbers; `alive` are not deleted."""

    change: int = 0
    last: int = 0
    places: NDArray[np.int32] = field(default_factory=lambda: np.full(1, -1, np.int32))  # number -> place
    numbers: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    lengths: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    languages: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, "<U8"))
    audiences: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    added: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    removed: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    alive: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    has_vector: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # >= N x D
    groups: dict[int, frozenset[str]] = field(default_factory=dict)
    masks: dict[object, NDArray[np.bool_]] = field(default_factory=dict)
    means: dict[object, tuple[int, float]] = field(default_factory=dict)

    def visible(self, scope: Scope) -> NDArray[np.bool_]:
        """Which entries (N) the asker may see in this version."""
        key = (scope.groups, scope.version)
        if key not in self.masks:
            if scope.version is None:
                mask = self.alive & (self.removed == NEVER)
            elif scope.version == ANY_VERSION:
                mask = self.alive.copy()
            else:
                mask = self.alive & (self.added <= scope.version) & (scope.version < self.removed)
            if scope.groups is not None:
                mask &= np.isin(self.audiences, self.audiences_of(scope))
            self._keep(key, mask)
        return self.masks[key]

    def audiences_of(self, scope: Scope) -> list[int]:
        """The audiences that the asker belongs to."""
        return [
            number
            for number, groups in self.groups.items()
            if scope.groups is None or not groups or not scope.groups.isdisjoint(groups)
        ]

    def extent(self, scope: Scope) -> tuple[int, float]:
        """How many entries are visible, and how long they are on average."""
        key = (scope.groups, scope.version)
        if key not in self.means:
            mask = self.visible(scope)
            count = int(mask.sum())
            self.means[key] = (count, float(self.lengths[mask].mean()) if count else 1.0)
        return self.means[key]

    def allowed(self, scope: Scope, connection: sqlite3.Connection) -> NDArray[np.bool_]:
        """Which entries (N) are in scope."""
        mask = self.visible(scope)
        if scope.language is not None:
            mask = mask & (self.languages == scope.language)
        for name, condition in scope.where.items():
            key = json.dumps([name, condition], default=repr, sort_keys=True)
            if key not in self.masks:
                fits = np.zeros(len(self.numbers), np.bool_)
                numbers = np.fromiter(_fitting(connection, name, condition), np.int64)
                places = self.places[numbers[numbers < len(self.places)]]
                fits[places[places >= 0]] = True
                self._keep(key, fits)
            mask = mask & self.masks[key]
        return mask

    def _keep(self, key: object, mask: NDArray[np.bool_]) -> None:
        if len(self.masks) >= _MOST_MASKS:
            self.masks.clear()
        self.masks[key] = mask


def _fitting(connection: sqlite3.Connection, name: str, condition: Condition) -> Iterable[int]:
    """The numbers of the entries whose metadata fulfils a condition."""
    if isinstance(condition, Between):
        ends = [
            (sign, end) for sign, end in ((">=", condition.low), ("<=", condition.high)) if end is not None
        ]
        kinds = {kind_of(end) for _, end in ends}
        if len(kinds) != 1 or kinds == {"truth"}:
            return
        clauses = "".join(f" AND value {sign} ?" for sign, _ in ends)
        values = [field_of(end)[1] for _, end in ends]
        query = f"SELECT entry FROM fields WHERE name = ? AND kind = ?{clauses}"
        yield from (n for (n,) in connection.execute(query, (name, KINDS[kinds.pop()], *values)))
        return
    for wanted in wanted_values(condition):
        kind, value = field_of(wanted)
        query = "SELECT entry FROM fields WHERE name = ? AND kind = ? AND value = ?"
        yield from (n for (n,) in connection.execute(query, (name, kind, value)))


def refreshed(view: View, connection: sqlite3.Connection) -> View:
    """The view as of now; to be called in a transaction, so that what is read next belongs to it."""
    change, kept_from = connection.execute("SELECT change, kept_from FROM state").fetchone()
    if change == view.change:
        return view
    dead = len(view.alive) - int(view.alive.sum())
    if view.change < kept_from or dead > max(1000, 0.3 * len(view.alive)):
        view = View()
    rows = connection.execute(
        "SELECT number, length, language, audience, added, removed FROM entries WHERE number > ? ORDER BY number",
        (view.last,),
    ).fetchall()
    count, longer = len(view.numbers), len(view.numbers) + len(rows)
    numbers = np.array([row[0] for row in rows], np.int32)
    last = int(numbers[-1]) if len(rows) else view.last
    places = np.full(last + 1, -1, np.int32)
    places[: len(view.places)] = view.places[: last + 1]
    places[numbers] = np.arange(count, longer, dtype=np.int32)
    vectors, with_vector = _vectors(view, connection, places, longer)
    has_vector = np.concatenate([view.has_vector, np.zeros(len(rows), np.bool_)])
    has_vector[with_vector] = True
    alive = np.concatenate([view.alive, np.ones(len(rows), np.bool_)])
    removed = np.concatenate([view.removed, np.array([row[5] for row in rows], np.int32)])
    gone = connection.execute(
        "SELECT number, removed FROM changed WHERE change > ?", (view.change,)
    ).fetchall()
    for number, until in gone:
        place = places[number] if number <= last else -1
        if place < 0:
            continue
        if until is None:
            alive[place] = False
            if vectors.shape[1]:
                vectors[place] = 0
        else:
            removed[place] = until
    return View(
        change,
        last,
        places,
        np.concatenate([view.numbers, numbers]),
        np.concatenate([view.lengths, np.array([row[1] for row in rows], np.float32)]),
        np.concatenate([view.languages, np.array([row[2] for row in rows], "<U8")]),
        np.concatenate([view.audiences, np.array([row[3] for row in rows], np.int32)]),
        np.concatenate([view.added, np.array([row[4] for row in rows], np.int32)]),
        removed,
        alive,
        has_vector,
        vectors,
        {n: frozenset(json.loads(g)) for n, g in connection.execute("SELECT number, groups FROM audiences")},
    )


def _vectors(
    view: View, connection: sqlite3.Connection, places: NDArray[np.int32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The matrix with room for `count` rows, the new vectors in it, and their places."""
    rows = connection.execute(
        "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number", (view.last,)
    ).fetchall()
    matrix = view.vectors
    dimensions = len(rows[0][1]) // 4 if rows else matrix.shape[1]
    if len(matrix) < count or matrix.shape[1] != dimensions:
        # Room for more than is needed now: otherwise each new entry would copy all the others.
        room = max(count + count // 4, 64) if len(view.numbers) else count
        grown = np.zeros((room, dimensions), np.float32)
        if matrix.shape[1] == dimensions:
            grown[: len(view.numbers)] = matrix[: len(view.numbers)]
        matrix = grown
    where = places[np.array([number for number, _ in rows], np.int64)] if rows else np.zeros(0, np.int32)
    if rows:
        read = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), -1)
        matrix[where] = read
    return matrix, where
