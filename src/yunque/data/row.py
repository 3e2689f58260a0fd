"""A row of a dataset: a text, where it came from, and an id that stays the same for as long as both do."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where a row was read: `file` as the user named it (relative paths stay relative), its bytes' SHA-256, and
    `locator`, the place inside in words a person can follow ("page 3", "line 12", "Cabin baggage > Size")."""

    file: str
    sha256: str
    locator: str


@dataclass(frozen=True)
class Row:
    """One text of a dataset.

    `language` is "es", "en" or "und"; `group` is what must not be divided between splits (rows of one file, one
    person, one module); `fields` holds what else the record had (columns of a CSV, keys of a JSON line).
    """

    id: str
    text: str
    language: str
    source: Source
    group: str
    fields: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Row":
        """The row that `as_dict` wrote."""
        return cls(**{**values, "source": Source(**values["source"])})


def row_id(file: str, text: str) -> str:
    """The stable id of a row: 16 hexadecimal digits from its file's name and its text as read.

    It does not depend on the other rows, so a change elsewhere in the file leaves it alone.
    """
    return hashlib.sha256(f"{file}\0{text}".encode()).hexdigest()[:16]
