"""Texts by id that can be searched at once: what memories and the states of chains are kept in.

Unlike an index it has no versions and is never fitted: a text can be found as soon as it is put, and is gone when it
is deleted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yunque.apps.retrieval.embedders import HashingEmbedder
from yunque.apps.retrieval.fusion import score_fusion
from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.stores import Entry, Scope, Store, Where, open_store
from yunque.apps.retrieval.vectors import Embedder
from yunque.apps.retrieval.words import language_of

_DEPTH = 100
_LEAST_COSINE = 0.1
_VECTOR_WEIGHT = 0.3
_EVERYWHERE: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Text:
    """A text to keep. `groups` may see it, everybody if there are none; `language` None is found out."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    language: str | None = None


@dataclass(frozen=True)
class FoundText:
    """A text found; the scores of one search can be compared, those of two cannot."""

    id: str
    text: str
    score: float
    metadata: Mapping[str, Any]


class TextSearch:
    """Texts in a store, found by keyword and vector. Safe for several threads and processes."""

    def __init__(self, store: Store, embedder: Embedder | None = None) -> None:
        self.store = store
        self.embedder = embedder or HashingEmbedder()

    @classmethod
    def open(cls, address: Path | str, embedder: Embedder | None = None) -> "TextSearch":
        """The texts at a path (SQLite), `postgresql://...` or `lance:FOLDER`; raises UserError."""
        return cls(open_store(address, "texts"), embedder)

    def put(self, texts: Sequence[Text]) -> None:
        """Keep texts, in the place of those with the same ids: all of them, or none."""
        spoken = [one.language or language_of(one.text) for one in texts]
        vectors = self.embedder.embed(
            [(one.text, language) for one, language in zip(texts, spoken, strict=True)]
        )
        self.store.put(
            [
                Entry(
                    one.id,
                    one.text,
                    "",
                    language,
                    one.metadata,
                    one.groups,
                    vector if vector.any() else None,
                )
                for one, language, vector in zip(texts, spoken, vectors, strict=True)
            ]
        )

    def search(
        self, question: str, k: int = 5, where: Where = _EVERYWHERE, groups: Collection[str] | None = None
    ) -> list[FoundText]:
        """The `k` texts nearest to some words, best first, of those that `groups` may see (None: all)."""
        scope = _scope(where, groups)
        # A text may be in another language than the question: its stems are looked for too.
        terms = {stem: 1.0 for language in ("es", "en") for stem in stems_of(question, language)}
        (vector,) = self.embedder.embed([(question, language_of(question))])
        keywords = {one.id: one.score for one in self.store.search_keywords(terms, max(_DEPTH, k), scope)}
        near = self.store.search_vectors(vector, max(_DEPTH, k), scope) if vector.any() else []
        vectors = {one.id: one.score for one in near if one.score >= _LEAST_COSINE}
        fused = score_fusion(keywords, vectors, _VECTOR_WEIGHT)
        best = sorted(fused, key=lambda id: -fused[id])[:k]
        return [
            FoundText(one.id, one.text, fused[one.id], one.metadata) for one in self.store.get(best, scope)
        ]

    def get(self, ids: Sequence[str], groups: Collection[str] | None = None) -> list[FoundText]:
        """Texts by their ids, those that may be seen, in the order asked for."""
        return [
            FoundText(one.id, one.text, 0.0, one.metadata)
            for one in self.store.get(ids, _scope(_EVERYWHERE, groups))
        ]

    def ids(self, where: Where = _EVERYWHERE, groups: Collection[str] | None = None) -> list[str]:
        """What there is, oldest first."""
        return self.store.ids(_scope(where, groups))

    def count(self, where: Where = _EVERYWHERE, groups: Collection[str] | None = None) -> int:
        """How many there are."""
        return self.store.count(_scope(where, groups))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete texts with their words and vectors; returns how many there were."""
        return self.store.delete(ids)

    def erase(self, ids: Sequence[str]) -> int:
        """Like `delete`, and no byte of them is left in the files."""
        return self.store.erase(ids)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()


def _scope(where: Where, groups: Collection[str] | None) -> Scope:
    return Scope(groups=None if groups is None else frozenset(groups), where=where)
