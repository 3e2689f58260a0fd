"""An index: the passages of one or more datasets, found by keyword and by vector, the two lists fused.

Files of the artifact: `passages.jsonl`, `vocabulary.json`, `index.safetensors`. Nothing is pickled.
Fusion: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion" (2009), with its constant 60.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.keywords import KeywordIndex
from yunque.apps.retrieval.passages import PASSAGE_CHARS, Passage, cut
from yunque.apps.retrieval.vectors import DIMENSIONS, CorpusEmbedder, Embedder
from yunque.apps.retrieval.words import language_of
from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

FUSION = 60.0


class IndexConfig(Settings):
    """How an index is made: files whose name matches a pattern in `exclude` are left out."""

    exclude: tuple[str, ...] = ()
    dimensions: int = DIMENSIONS
    passage_chars: int = PASSAGE_CHARS


@dataclass(frozen=True)
class Hit:
    """A passage found: `score` is the fused one, `keyword` its BM25, `vector` its cosine."""

    number: int
    passage: Passage
    score: float
    keyword: float
    vector: float


class Index:
    """N passages with their postings and vectors (N x D)."""

    def __init__(
        self,
        passages: Sequence[Passage],
        keywords: KeywordIndex,
        embedder: Embedder,
        vectors: NDArray[np.float32],
        ref: str = "",
    ) -> None:
        self.passages = list(passages)
        self.keywords, self.embedder, self.vectors, self.ref = keywords, embedder, vectors, ref
        self._languages = np.array([passage.language for passage in self.passages])

    @classmethod
    def of(cls, passages: Sequence[Passage], dimensions: int = DIMENSIONS) -> "Index":
        """Index passages with an embedder fitted on them."""
        texts = [(f"{passage.heading}\n{passage.text}", passage.language) for passage in passages]
        embedder = CorpusEmbedder.fit(texts, dimensions)
        keywords = KeywordIndex.build([(item.heading, item.text, item.language) for item in passages])
        return cls(passages, keywords, embedder, embedder.embed(texts))

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "Index":
        """Load the index artifact called `ref`."""
        from safetensors.numpy import load_file

        artifact = workspace.get(ref, "index")
        lines = workspace.file(artifact, "passages.jsonl").read_text(encoding="utf-8").splitlines()
        vocabulary = json.loads(workspace.file(artifact, "vocabulary.json").read_text(encoding="utf-8"))
        arrays = load_file(workspace.file(artifact, "index.safetensors"))
        return cls(
            [Passage.from_dict(json.loads(line)) for line in lines],
            KeywordIndex.restore(vocabulary["keywords"], arrays),
            CorpusEmbedder.restore(vocabulary["features"], arrays),
            arrays["vectors"].astype(np.float32),
            artifact.ref,
        )

    def search(
        self,
        question: str,
        k: int = 10,
        language: str | None = None,
        terms: Mapping[str, float] | None = None,
    ) -> list[Hit]:
        """The `k` passages nearest to a question, best first.

        `language` keeps to passages in that language; `terms` are weighted stems to look for instead of the
        question's own (a caller that knows synonyms adds them there).
        """
        if not self.passages:
            return []
        spoken = language or language_of(question)
        if terms is None:
            from yunque.apps.retrieval.keywords import stems_of

            terms = dict.fromkeys(stems_of(question, spoken), 1.0)
        keyword = self.keywords.scores(terms)
        vector = self.vectors @ self.embedder.embed([(question, spoken)])[0]
        if language is not None:
            elsewhere = self._languages != language
            keyword = np.where(elsewhere, np.float32(0), keyword)
            vector = np.where(elsewhere, np.float32(-1), vector)
        fused = _reciprocal_ranks(keyword, 0.0) + _reciprocal_ranks(vector, 0.05)
        best = np.argsort(-fused, kind="stable")[:k]
        return [
            Hit(int(n), self.passages[n], float(fused[n]), float(keyword[n]), float(vector[n]))
            for n in best
            if fused[n] > 0
        ]


def _reciprocal_ranks(scores: NDArray[np.float32], floor: float) -> NDArray[np.float64]:
    """1 / (60 + rank) of every score above `floor`, 0 for the others."""
    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    return np.where(scores > floor, 1 / (FUSION + ranks), 0.0)


def build_index(
    workspace: Workspace,
    name: str,
    dataset_refs: Sequence[str],
    progress: Progress = silent,
    config: IndexConfig | None = None,
) -> Artifact:
    """Cut the rows of datasets into passages and keep their index as `index/name`."""
    from safetensors.numpy import save

    from yunque.data.dataset import read_rows

    config = config or IndexConfig()
    if not dataset_refs:
        raise UserError("an index needs at least one dataset: --data NAME")
    datasets = [workspace.get(ref, "dataset") for ref in dataset_refs]
    passages: list[Passage] = []
    with progress("Cutting passages") as task:
        for dataset in datasets:
            for row in read_rows(workspace, dataset):
                if not any(fnmatch(row.source.file, pattern) for pattern in config.exclude):
                    passages.extend(cut(row, config.passage_chars))
                task.advance(1, note=row.source.file)
    if not passages:
        raise UserError(f"{', '.join(dataset_refs)}: no text to index")
    with progress("Fitting vectors") as task:
        made = Index.of(passages, config.dimensions)
        task.advance(1)
    assert isinstance(made.embedder, CorpusEmbedder)
    vocabulary = {"keywords": made.keywords.vocabulary(), "features": made.embedder.features}
    arrays: dict[str, Any] = {
        **made.keywords.arrays(),
        **made.embedder.arrays(),
        "vectors": made.vectors.astype(np.float16),
    }
    lines = "".join(json.dumps(passage.as_dict(), ensure_ascii=False) + "\n" for passage in passages)
    files = {
        "passages.jsonl": lines.encode(),
        "vocabulary.json": json.dumps(vocabulary, ensure_ascii=False).encode(),
        "index.safetensors": save({key: np.ascontiguousarray(value) for key, value in arrays.items()}),
    }
    languages = dict.fromkeys(sorted({passage.language for passage in passages}), 0)
    for passage in passages:
        languages[passage.language] += 1
    figures = {"passages": len(passages), "languages": languages, "words": len(made.keywords.stems)}
    return workspace.put("index", name, files, datasets, config.model_dump(mode="json"), figures)
