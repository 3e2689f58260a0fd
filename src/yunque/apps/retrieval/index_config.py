"""How an index is made."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from yunque.apps.retrieval.passages import PASSAGE_CHARS
from yunque.apps.retrieval.vectors import DIMENSIONS
from yunque.configuration import Settings


class IndexConfig(Settings):
    """How an index is made.

    Files whose name matches a pattern in `exclude` are left out. `permissions`: a pattern of file names and the
    groups that alone may see what matches; the first pattern that does counts, and what none matches is open to
    everybody. `embedder`: `corpus` (fitted on the passages), `hashing`, `none`, `model/NAME` or a remote model.
    `store`: where the passages are kept, "" for a file in the workspace. `anonymize` replaces personal data of files
    before cutting.
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


# `json.dumps` would make an encoder for every passage.
_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=list)


def digest(*values: Any) -> str:
    """20 hexadecimal digits for JSON values."""
    return hashlib.sha256(_WRITER.encode(values).encode()).hexdigest()[:20]
