"""An index: passages in a store, found by keyword and by vector, the two lists fused.

The artifact `index/NAME@VERSION` is a view: it says which store holds the passages (`ledger.py`) and which of them
belong to it, and never changes. Those made before there were stores hold their passages, and can be opened.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.fusion import (
    maximal_marginal_relevance,
    reciprocal_rank_fusion,
    score_fusion,
)
from yunque.apps.retrieval.index_config import IndexConfig as IndexConfig
from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import Passage, Unit
from yunque.apps.retrieval.stores import EVERYTHING, Between, Entry, Scope, Scored, Store, Where
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.apps.retrieval.stores.store import Condition, kind_of, matches, wanted_values
from yunque.apps.retrieval.vectors import DIMENSIONS, CorpusEmbedder, Embedder
from yunque.apps.retrieval.vocabulary import Vocabulary
from yunque.apps.retrieval.words import language_of
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

FILE = "index.json"
FORMAT = 2
_DEPTH = 200
"""How far down each of the two lists is read."""
_LEAST_COSINE = 0.05
_VECTOR_WEIGHT = {"corpus": 0.35, "hashing": 0.2}
"""What share the cosine has; of a model's vectors the half. Measured on Cranfield's even questions."""
_NEAREST = 5
"""How many of the best are taken to be on the topic, for a question made longer by their words (see `feedback`)."""


@dataclass(frozen=True)
class Hit:
    """A passage found: `score` is the fused one, `keyword` its BM25, `vector` its cosine, `metadata` its file's and
    record's."""

    id: str
    passage: Passage
    score: float
    keyword: float
    vector: float
    metadata: Mapping[str, Any]


class Index:
    """Passages in a store, within a scope. `floor` is the relevance floor calibrated on them, if there is one."""

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        scope: Scope = EVERYTHING,
        ref: str = "",
        floor: float | None = None,
    ) -> None:
        self.store, self.embedder, self.scope, self.ref, self.floor = store, embedder, scope, ref, floor
        self.keywords = Vocabulary(store, scope)

    @classmethod
    def of(
        cls, passages: Sequence[Passage], dimensions: int = DIMENSIONS, embedder: Embedder | None = None
    ) -> "Index":
        """An index of its own over passages, with an embedder fitted on them unless one is given."""
        texts = [embedded_text(passage) for passage in passages]
        embedder = embedder or CorpusEmbedder.fit(texts, dimensions)
        store = SQLiteStore()
        store.put(
            [
                entry_of(passage, str(number), vector if vector.any() else None)
                for number, (passage, vector) in enumerate(zip(passages, embedder.embed(texts), strict=True))
            ]
        )
        return cls(store, embedder)

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "Index":
        """Open the index artifact called `ref`; raises UserError when there is none or its store is gone."""
        from yunque.apps.retrieval.ledger import Ledger

        artifact = workspace.get(ref, "index")
        if FILE not in artifact.files:
            return _older(workspace, artifact.ref)
        described = json.loads(workspace.file(artifact, FILE).read_bytes())
        if described["format"] != FORMAT:
            raise UserError(f"{artifact.ref}: was made by another Yunque than this one: build it again")
        with Ledger.open(workspace, artifact.name) as ledger:
            ledger.check_view(artifact.ref, described["generation"], described["view"])
            store = ledger.store(described["generation"])
            embedder = ledger.embedder(workspace, described["generation"])
        return cls(store, embedder, Scope(version=described["view"]), artifact.ref, described["floor"])

    def narrowed(self, groups: frozenset[str] | None = None, where: Where | None = None) -> "Index":
        """The index as a member of `groups` sees it (None: as before), and of that what fulfils `where`. What it was
        narrowed to before holds too: an index cannot be widened again."""
        conditions = dict(self.scope.where)
        for name, condition in (where or {}).items():
            before = conditions.get(name)
            conditions[name] = condition if before is None else _both(before, condition)
        scope = replace(self.scope, where=conditions)
        if groups is not None:
            kept = groups if scope.groups is None else groups & scope.groups
            scope = replace(scope, groups=kept)
        return Index(self.store, self.embedder, scope, self.ref, self.floor)

    @property
    def passages(self) -> list[Passage]:
        """All the passages in scope, oldest first."""
        return [passage_of(entry) for entry in self.store.get(self.store.ids(self.scope), self.scope)]

    def search(
        self,
        question: str,
        k: int = 10,
        language: str | None = None,
        terms: Mapping[str, float] | None = None,
        diversity: float = 0.0,
        feedback: bool = False,
        fusion: Literal["scores", "ranks"] = "scores",
    ) -> list[Hit]:
        """The `k` passages nearest to a question, best first.

        `language` keeps to passages in that language; `terms` are weighted stems to look for instead of the
        question's own (a caller that knows synonyms adds them there). `diversity`, from 0 to 1, puts passages that
        are like better ones further down (MMR). `feedback` searches twice, the second time with words of what it
        found.
        """
        spoken = language or language_of(question)
        scope = replace(self.scope, language=language) if language else self.scope
        if terms is None:
            terms = dict.fromkeys(stems_of(question, spoken), 1.0)
        depth = max(_DEPTH, 10 * k)
        (vector,) = self.embedder.embed([(question, spoken)])
        lists = self._lists(terms, vector, depth, scope)
        if feedback:
            from yunque.apps.retrieval.feedback import expanded

            first = self._fused(*lists, fusion)
            best = sorted(first, key=lambda id: -first[id])[:_NEAREST]
            entries = self.store.get(best, scope)
            lists = self._lists(*expanded(self, terms, vector, entries), depth, scope)
        keywords, vectors = ({one.id: one.score for one in found} for found in lists)
        fused = self._fused(*lists, fusion)
        best = sorted(fused, key=lambda id: -fused[id])[: k if not diversity else 4 * k]
        if diversity:
            theirs = self.store.vectors(best)
            best = [
                best[n]
                for n in maximal_marginal_relevance(
                    [fused[id] for id in best], [theirs.get(id) for id in best], k, diversity
                )
            ]
        self._fill(best, vector, vectors)
        return [
            Hit(
                entry.id,
                passage_of(entry),
                fused[entry.id],
                keywords.get(entry.id, 0.0),
                vectors.get(entry.id, 0.0),
                entry.metadata,
            )
            for entry in self.store.get(best, scope)
        ]

    def _fused(
        self, keywords: Sequence[Scored], vectors: Sequence[Scored], fusion: Literal["scores", "ranks"]
    ) -> dict[str, float]:
        if fusion == "ranks":
            return reciprocal_rank_fusion([[one.id for one in found] for found in (keywords, vectors)])
        weight = _VECTOR_WEIGHT.get(self.embedder.name.partition("-")[0], 0.5)
        by_keyword, by_vector = ({one.id: one.score for one in found} for found in (keywords, vectors))
        return score_fusion(by_keyword, by_vector, weight)

    def _lists(
        self, terms: Mapping[str, float], vector: NDArray[np.float32], depth: int, scope: Scope
    ) -> tuple[list[Scored], list[Scored]]:
        """What is found by keyword and what by vector."""
        by_vector = self.store.search_vectors(vector, depth, scope) if vector.any() else []
        return (
            self.store.search_keywords(terms, depth, scope),
            [one for one in by_vector if one.score > _LEAST_COSINE],
        )

    def _fill(self, best: Sequence[str], vector: NDArray[np.float32], vectors: dict[str, float]) -> None:
        """Add the cosines of those that only the keywords found."""
        missing = [id for id in best if id not in vectors]
        for id, theirs in self.store.vectors(missing).items() if missing and vector.any() else ():
            vectors[id] = float(theirs @ vector)

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()


def build_index(
    workspace: Workspace,
    name: str,
    dataset_refs: Sequence[str],
    progress: Progress = silent,
    config: IndexConfig | None = None,
) -> Artifact:
    """Make `index/NAME` of datasets; see `ingest.build`, which takes files and addresses too."""
    from yunque.apps.retrieval.ingest import build
    from yunque.apps.retrieval.sources import Sources

    return build(workspace, name, Sources(datasets=tuple(dataset_refs)), config, progress)[0]


def _both(one: Condition, other: Condition) -> Condition:
    """The condition that a value fulfils when it fulfils two."""
    if isinstance(one, Between) and isinstance(other, Between):
        ends = [end for end in (one.low, one.high, other.low, other.high) if end is not None]
        if len({kind_of(end) for end in ends}) != 1 or Between() in (one, other):
            return []
        lows = [end for end in (one.low, other.low) if end is not None]
        highs = [end for end in (one.high, other.high) if end is not None]
        return Between(max(lows, default=None), min(highs, default=None))
    if isinstance(one, Between):
        one, other = other, one
    return [value for value in wanted_values(one) if matches({"": value}, {"": other})]


def embedded_text(passage: Passage) -> tuple[str, str]:
    """What of a passage its vector is made from, and the language."""
    return f"{passage.heading}\n{passage.text}", passage.language


def entry_of(
    passage: Passage,
    id: str,
    vector: NDArray[np.float32] | None = None,
    fields: Mapping[str, Any] | None = None,
    groups: Sequence[str] = (),
) -> Entry:
    """A passage as a store keeps it. The fields of its record can be filtered by, and its file, row and page."""
    place = {
        "locator": passage.locator,
        "start": passage.start,
        "units": [[unit.start, unit.end] for unit in passage.units],
    }
    metadata = {**(fields or {}), "file": passage.file, "row": passage.row_id, "passage": place}
    page = passage.locator.removeprefix("page ").partition(",")[0]
    if passage.locator.startswith("page ") and page.isdecimal():
        metadata["page"] = int(page)
    return Entry(id, passage.text, passage.heading, passage.language, metadata, tuple(groups), vector)


def passage_of(entry: Entry) -> Passage:
    """The passage that `entry_of` kept."""
    place = entry.metadata["passage"]
    return Passage(
        entry.metadata["row"],
        entry.metadata["file"],
        place["locator"],
        "en" if entry.language == "en" else "es",
        entry.heading,
        place["start"],
        place["start"] + len(entry.text),
        entry.text,
        tuple(Unit(*unit) for unit in place["units"]),
    )


def _older(workspace: Workspace, ref: str) -> Index:
    """An index whose artifact holds the passages and the embedder."""
    from safetensors.numpy import load_file

    artifact = workspace.get(ref, "index")
    lines = workspace.file(artifact, "passages.jsonl").read_text(encoding="utf-8").splitlines()
    vocabulary = json.loads(workspace.file(artifact, "vocabulary.json").read_text(encoding="utf-8"))
    arrays = load_file(workspace.file(artifact, "index.safetensors"))
    embedder = CorpusEmbedder.restore(vocabulary["features"], arrays)
    index = Index.of([Passage.from_dict(json.loads(line)) for line in lines], embedder=embedder)
    index.ref = ref
    return index
