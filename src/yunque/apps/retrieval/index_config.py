"""How an index is made."""

import hashlib
import json
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from yunque.apps.retrieval.passages import PASSAGE_CHARS
from yunque.apps.retrieval.vectors import DIMENSIONS
from yunque.configuration import Settings
from yunque.errors import UserError


class IndexConfig(Settings):
    """How an index is made.

    Files whose name matches a pattern in `exclude` are left out. `permissions`: a pattern of file names and the
    groups that alone may see what matches; where several match, only who is in a group of all of them (see
    `sources.groups_of`), and what none matches is open to everybody. `embedder`: `corpus`
    (fitted on the passages), `hashing`, `none`, `model/NAME` or a remote model. `store`: where the passages are kept,
    "" for a file in the workspace. `anonymize` replaces personal data of files before cutting.
    """

    exclude: tuple[str, ...] = ()
    dimensions: int = Field(default=DIMENSIONS, ge=1, le=4096)
    passage_chars: int = Field(default=PASSAGE_CHARS, ge=100, le=20_000)
    embedder: str = "corpus"
    store: str = ""
    anonymize: bool = False
    permissions: Mapping[str, tuple[str, ...]] = Field(default={})
    document_bytes: int = Field(default=64_000_000, ge=1)

    def cutting(self) -> dict[str, Any]:
        """What all passages of one store have in common: with another value they would have to be cut again."""
        kept = self.model_dump(mode="json", include={"passage_chars", "embedder", "store", "anonymize"})
        return {**kept, **({"dimensions": self.dimensions} if self.embedder == "corpus" else {})}

    def tightened(self, permissions: Mapping[str, Sequence[str]]) -> "IndexConfig":
        """With further patterns: those that there are hold too. Raises UserError where no group is left."""
        merged: dict[str, tuple[str, ...]] = {}
        for pattern, groups in (*self.permissions.items(), *permissions.items()):
            name = normal_pattern(pattern)
            before = merged.get(name)
            merged[name] = tuple(groups) if before is None else tuple(one for one in before if one in groups)
            if not merged[name]:
                raise UserError(
                    f"{pattern}: is for {', '.join(before or ())} alone, of which none is in {', '.join(groups)}; "
                    f"for whoever is in one of several write '{name}=GROUP,GROUP', and to loosen what an index "
                    "has, build it anew"
                )
        return self.model_copy(update={"permissions": merged})


def normal_pattern(pattern: str) -> str:
    """A pattern as it is compared: `hr/` is `hr/*`, `./hr/*` and `hr//*` are `hr/*`; accents are one character each.
    One of addresses (with `://`) stays."""
    pattern = unicodedata.normalize("NFC", pattern)
    if "://" in pattern:
        return pattern
    return posixpath.normpath(pattern + "*" if pattern.endswith("/") else pattern)


# `json.dumps` would make an encoder for every passage.
_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=list)


def digest(*values: Any) -> str:
    """20 hexadecimal digits for JSON values."""
    return hashlib.sha256(_WRITER.encode(values).encode()).hexdigest()[:20]
