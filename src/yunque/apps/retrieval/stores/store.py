"""What a store of entries can do. `tests/apps/test_stores.py` holds every implementation to it.

Statistics of the keyword search (how many entries there are, how many have a word, how long they are) are taken over
what the asker may see and nothing else: a score, too, would tell of what is hidden.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yunque.errors import UserError

Value = str | int | float | bool


@dataclass(frozen=True)
class Between:
    """A range with both its ends, either of which may be open. Numbers are compared with numbers, texts with texts
    (by code point, so that ISO dates work); a truth value is in no range."""

    low: str | int | float | None = None
    high: str | int | float | None = None


Condition = Value | Sequence[Value] | Between
Where = Mapping[str, Condition]
"""Conditions on metadata that must all hold: a value to equal, several values of which one must be equal, or a range.
Of metadata that is a list it is enough that one item fits. True is not 1 here, and 1 is 1.0."""


@dataclass(frozen=True)
class Entry:
    """A text that can be found.

    `heading` is searched too, its words count more. `groups` are who may see it; none means everybody. `metadata` is
    any JSON object; its values, or the items of its lists, can be filtered by. `vector` has length 1, or is None.
    `added` and `removed` are the first version that has the entry and the first that has it no more.
    """

    id: str
    text: str
    heading: str = ""
    language: str = "es"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    vector: NDArray[np.float32] | None = field(default=None, compare=False)
    added: int = 0
    removed: int | None = None


ANY_VERSION = -1


@dataclass(frozen=True)
class Scope:
    """What a search looks at: nothing outside it is found, counted, or told of by a score.

    `groups`: those of the asker; None is whoever may see all. `version`: None is what is there now, ANY_VERSION what
    any version has. `language` and `where` narrow what is found, but not the statistics.
    """

    groups: frozenset[str] | None = None
    version: int | None = None
    language: str | None = None
    where: Where = field(default_factory=dict)


EVERYTHING = Scope()


@dataclass(frozen=True)
class Scored:
    """An entry found, by its id."""

    id: str
    score: float


class Store(Protocol):
    """Entries by id. Safe for several threads; a call that writes does all of it or nothing, also when killed."""

    @property
    def dimensions(self) -> int | None:
        """How long the vectors are; None before the first one."""
        ...

    def put(self, entries: Sequence[Entry], retired: Sequence[str] = (), version: int = 0) -> None:
        """Keep entries, in the place of those with the same ids; those `retired` are there no more from `version`
        on, but still in older ones."""
        ...

    def delete(self, ids: Sequence[str]) -> int:
        """Delete entries from every version, with their words; returns how many there were."""
        ...

    def erase(self, ids: Sequence[str]) -> int:
        """Like `delete`, and no byte of them is left in the store's files (see each store for what that takes)."""
        ...

    def prune(self, version: int) -> int:
        """Delete what no version from `version` on has."""
        ...

    def get(self, ids: Sequence[str], scope: Scope = EVERYTHING) -> list[Entry]:
        """Those of the entries that are in scope, in the order asked for, without their vectors."""
        ...

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of entries that have one."""
        ...

    def ids(self, scope: Scope = EVERYTHING) -> list[str]:
        """What is in scope, oldest first."""
        ...

    def count(self, scope: Scope = EVERYTHING) -> int:
        """How many entries are in scope."""
        ...

    def search_keywords(self, terms: Mapping[str, float], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """The `k` best entries by BM25 for weighted stems (`keywords.stems_of`), best first; 0 is not found."""
        ...

    def search_vectors(self, vector: NDArray[np.float32], k: int, scope: Scope = EVERYTHING) -> list[Scored]:
        """The `k` entries of largest inner product, best first."""
        ...

    def frequencies(self, stems: Sequence[str], scope: Scope = EVERYTHING) -> dict[str, int]:
        """How many entries that the asker may see have each stem."""
        ...

    def words(self, scope: Scope = EVERYTHING) -> Iterator[tuple[str, str]]:
        """The folded words that stand in what the asker may see, each with its stem."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...

    def destroy(self) -> None:
        """Delete the store with all that it holds."""
        ...


def visible(entry: Entry, scope: Scope) -> bool:
    """Whether the asker may see an entry, in this version."""
    if scope.groups is not None and entry.groups and scope.groups.isdisjoint(entry.groups):
        return False
    if scope.version is None or scope.version == ANY_VERSION:
        return scope.version == ANY_VERSION or entry.removed is None
    return entry.added <= scope.version and (entry.removed is None or scope.version < entry.removed)


def matches(metadata: Mapping[str, Any], where: Where) -> bool:
    """Whether metadata fulfils all conditions."""
    return all(
        any(_fits(value, condition) for value in values_of(metadata.get(name)))
        for name, condition in where.items()
    )


def values_of(value: Any) -> list[Value]:
    """What of a metadata value can be filtered by: itself, or the items of a list."""
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, str | int | float | bool)]


def kind_of(value: Value) -> str:
    """`truth`, `number` or `text`: only what is of one kind is compared."""
    return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def wanted_values(condition: Condition) -> list[Value]:
    """The values of which one must be equal; of a range none."""
    if isinstance(condition, Between):
        return []
    return [condition] if isinstance(condition, str | int | float | bool) else list(condition)


def _fits(value: Value, condition: Condition) -> bool:
    if isinstance(condition, Between):
        ends = [end for end in (condition.low, condition.high) if end is not None]
        if any(kind_of(end) != kind_of(value) for end in ends) or isinstance(value, bool) or not ends:
            return False
        low, high = condition.low, condition.high
        return (low is None or low <= value) and (high is None or value <= high)  # type: ignore[operator]  # all of one kind
    return any(kind_of(value) == kind_of(wanted) and value == wanted for wanted in wanted_values(condition))


def checked(entries: Sequence[Entry], dimensions: int | None) -> int | None:
    """How long vectors are from now on. Raises UserError for an entry that no store can keep: without an id, with
    two entries of one id, metadata that is not JSON, or a vector of another length than the others."""
    seen: set[str] = set()
    for entry in entries:
        if not entry.id or entry.id in seen:
            raise UserError(f"entry {entry.id!r}: an id must not be empty, nor come twice in one call")
        seen.add(entry.id)
        for name, text in (("id", entry.id), ("text", entry.text), ("heading", entry.heading)):
            _check_text(text, entry.id, name)
        try:
            written = json_of(entry.metadata)
        except (TypeError, ValueError) as error:
            raise UserError(f"entry {entry.id!r}: its metadata is not JSON ({error})") from None
        _check_text(written, entry.id, "metadata")
        if "\\u0000" in written:
            raise UserError(f"entry {entry.id!r}: its metadata holds a NUL character")
        for group in entry.groups:
            _check_text(group, entry.id, "groups")
        if entry.vector is not None:
            if entry.vector.ndim != 1 or dimensions not in (None, len(entry.vector)):
                raise UserError(
                    f"entry {entry.id!r}: its vector has {entry.vector.shape} numbers, those here {dimensions}"
                )
            dimensions = len(entry.vector)
    return dimensions


# `json.dumps` would make an encoder for every entry.
json_of = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode


def _check_text(text: str, id: str, name: str) -> None:
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise UserError(f"entry {id!r}: its {name} cannot be written as UTF-8") from None
    if "\0" in text:
        raise UserError(f"entry {id!r}: its {name} holds a NUL character")
