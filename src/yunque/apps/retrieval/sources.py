"""What an index is made from: rows of datasets, of files in folders, and of pages of the web, unit by unit.

A unit is taken in as a whole or not at all; its digest tells whether it must be read again.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from yunque.apps.retrieval.index_config import IndexConfig, digest, normal_pattern
from yunque.apps.retrieval.ledger import Unit
from yunque.data.dataset import read_rows
from yunque.data.language import detect_language
from yunque.data.normalize import normalize
from yunque.data.readers import Found, Limits, Piece, Skipped, find_files, read_file
from yunque.data.row import Row, Source, row_id
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

NOBODY = "nobody, for want of a group in all patterns"
"""The group of files that patterns without a common group match: no groups at all would be everybody."""
_SHORT = 200
_BEGINNING = 400
_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d{1,9})?")


@dataclass(frozen=True)
class Sources:
    """Datasets by name, files and folders, addresses of pages."""

    datasets: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offered:
    """A unit that could be taken in: `rows` reads it, and tells `skipped` of what cannot be read. `groups` alone may
    see it."""

    unit: Unit
    groups: tuple[str, ...]
    rows: Callable[[list[Skipped]], Iterator[Row]]


@dataclass
class Offer:
    """All units of the sources. `covered` says whether a key belongs to what was looked through, so that a unit which
    is not offered any more is gone; `kept` are keys of units that stay as they are."""

    units: list[Offered] = field(default_factory=list)
    parents: list[Artifact] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    def covered(self, key: str) -> bool:
        """Whether the unit with this key would have been offered if it were still there."""
        return any(key == prefix or key.startswith(prefix + "/") for prefix in self.prefixes)


def groups_of(name: str, permissions: Mapping[str, Sequence[str]], *places: str) -> tuple[str, ...]:
    """Who alone may see a file: the groups that all patterns share that match its name or one of its `places`."""
    groups: tuple[str, ...] = ()
    for pattern, theirs in permissions.items():
        if is_matched(pattern, name, *places):
            groups = _both(groups, tuple(theirs))
    return groups


def is_matched(pattern: str, *names: str) -> bool:
    """Whether a pattern matches a name or a trailing part of it, or a folder above: how a file is named depends on
    the folder that was given, and must not decide who may see it."""
    pattern = normal_pattern(pattern)
    for name in names:
        parts = unicodedata.normalize("NFC", name).split("/")
        for start in range(len(parts)):
            part = "/".join(parts[start:])
            if part == pattern or fnmatchcase(part, pattern) or fnmatchcase(part, f"{pattern}/*"):
                return True
    return False


def _both(groups: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    """Whom two lists of groups both let see; an empty one lets everybody."""
    if not groups or not theirs:
        return groups or theirs
    return tuple(one for one in groups if one in theirs) or (NOBODY,)


def place_of(unit: Unit) -> str:
    """Where a unit comes from, as patterns see it: a file's path, an address, or DATASET/FILE."""
    return unit.key.removeprefix("file:").removeprefix("url:").removeprefix("dataset/")


def unmatched(permissions: Mapping[str, Sequence[str]], units: Iterable[Unit]) -> list[str]:
    """The patterns that match none of the units."""
    units = list(units)
    return [
        pattern
        for pattern in permissions
        if not any(is_matched(pattern, unit.name, place_of(unit)) for unit in units)
    ]


def not_offered(
    workspace: Workspace, permissions: Mapping[str, Sequence[str]], units: Iterable[Unit], sources: Sources
) -> list[Unit]:
    """The units that patterns match and these sources do not offer again, so that they would stay as they are."""
    offer = Offer()
    offer.prefixes += [f"dataset/{workspace.get(ref, 'dataset').name}" for ref in sources.datasets]
    offer.prefixes += [f"file:{path.resolve()}" for path in sources.paths]
    offer.prefixes += [f"url:{url}" for url in sources.urls]
    return [
        unit
        for unit in units
        if not offer.covered(unit.key) and groups_of(unit.name, permissions, place_of(unit))
    ]


def offer_datasets(workspace: Workspace, refs: Sequence[str], config: IndexConfig, offer: Offer) -> None:
    """Add the files of datasets."""
    for ref in refs:
        artifact = workspace.get(ref, "dataset")
        offer.parents.append(artifact)
        prefix = f"dataset/{artifact.name}"
        offer.prefixes.append(prefix)
        files: dict[str, list[Row]] = {}
        for row in read_rows(workspace, artifact):
            if not _excluded(row.source.file, config):
                files.setdefault(row.source.file, []).append(row)
        for name, rows in files.items():
            groups = groups_of(name, config.permissions, f"{artifact.name}/{name}")
            key = digest([(row.id, row.text, row.source.locator) for row in rows], groups)
            offer.units.append(Offered(Unit(f"{prefix}/{name}", name, key), groups, _given(rows)))


def _given(rows: Sequence[Row]) -> Callable[[list[Skipped]], Iterator[Row]]:
    def read(skipped: list[Skipped]) -> Iterator[Row]:
        del skipped
        return iter(rows)

    return read


def offer_paths(
    workspace: Workspace, paths: Sequence[Path], config: IndexConfig, offer: Offer, skipped: list[Skipped]
) -> None:
    """Add the files that paths name or hold."""
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise UserError(f"{path}: there is no such file or folder")
        offer.prefixes.append(f"file:{path.resolve()}")
    by_key: dict[str, tuple[Found, str, tuple[str, ...]]] = {}
    for found in find_files(paths, skipped):
        if _excluded(found.name, config):
            continue
        try:
            sha256 = sha256_of(found.path) if found.path.is_file() else ""
        except OSError as error:
            skipped.append(Skipped(found.name, f"cannot be opened ({error.strerror})"))
            continue
        # The path as it was given, too: a link in a folder is in that folder, wherever it leads.
        key = f"file:{found.path.resolve()}"
        places = (found.path.resolve().as_posix(), Path(os.path.abspath(found.path)).as_posix())  # noqa: PTH100
        groups = groups_of(found.name, config.permissions, *places)
        # A file that is named twice is taken in once, under its first name; what holds for either name holds.
        first, sha256, before = by_key.get(key, (found, sha256, ()))
        by_key[key] = first, sha256, _both(before, groups)
    for key, (found, sha256, groups) in by_key.items():
        unit = Unit(key, found.name, digest(sha256, found.name, groups))
        offer.units.append(Offered(unit, groups, file_reader(workspace, found, config)))


def file_reader(
    workspace: Workspace, found: Found, config: IndexConfig
) -> Callable[[list[Skipped]], Iterator[Row]]:
    """What reads a file when its turn comes."""

    def read(skipped: list[Skipped]) -> Iterator[Row]:
        return rows_of_file(workspace, found, config, skipped)

    return read


def rows_of_file(
    workspace: Workspace, found: Found, config: IndexConfig, skipped: list[Skipped]
) -> Iterator[Row]:
    """The rows of a file, as `yunque data add` would make them."""
    from yunque.data.prepare import anonymized_row, pseudonymizer

    reading = read_file(found, Limits(document_bytes=config.document_bytes), skipped)
    if reading is None:
        return
    anonymizer = pseudonymizer(workspace) if config.anonymize else None
    for piece in reading.pieces:
        row = _row(piece, found.name, reading.sha256)
        if row.text:
            yield anonymized_row(row, anonymizer)[0] if anonymizer else row


def _row(piece: Piece, name: str, sha256: str) -> Row:
    text = normalize(piece.text)
    source = Source(name, sha256, normalize(piece.locator))
    return Row(row_id(name, text), text, _language(text), source, name, dict(piece.fields))


def _language(text: str) -> str:
    """The language, by the beginning where that is enough: telling it is a quarter of what reading takes."""
    found = detect_language(text[:_BEGINNING])
    return found if found != "und" else detect_language(text)


def _excluded(name: str, config: IndexConfig) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in config.exclude)


def filterable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record's fields is kept with its passages: short values, and short lists of them. A text that is a
    number (every cell of a CSV is a text) is kept as one, so that it can be compared; "007" is none."""
    return {
        name: float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
        for name, value in fields.items()
        if isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= _SHORT)
        or (
            isinstance(value, list)
            and len(value) <= 50
            and all(isinstance(v, str | int | float) for v in value)
        )
    }
