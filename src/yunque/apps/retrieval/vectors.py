"""The vector half of retrieval: texts to unit vectors, without downloading anything unless it is asked for.

`CorpusEmbedder`, the default, is fitted on the corpus itself: TF-IDF of word stems and of the character n-grams in
words, then a truncated SVD (latent semantic analysis, Deerwester et al. 1990). Others are in `embedders.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from yunque.apps.retrieval.keywords import stems_of

DIMENSIONS = 128
_MAX_FEATURES = 60_000
_MOST_FITTED = 20_000
"""So many texts, evenly spread over the corpus, are enough to learn from; what it takes grows faster than they."""
_BATCH = 2048
NGRAM_WEIGHT = 0.35
"""A character n-gram says less than a word, and a word has many of them."""


class Embedder(Protocol):
    """Texts to unit vectors."""

    name: str

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to vectors of length 1 (or 0 for a text without a known feature)."""
        ...


def features_of(stem: str) -> list[str]:
    """A stem, and the 3- and 4-letter pieces of it with its edges marked."""
    marked = f"<{stem}>"
    pieces = [
        "#" + marked[start : start + length] for length in (3, 4) for start in range(len(marked) - length + 1)
    ]
    return [stem, *pieces]


class CorpusEmbedder:
    """F features to D dimensions; `weights` (F) are inverse document frequencies, `projection` is F x D."""

    name = "corpus"

    def __init__(
        self, features: Sequence[str], weights: NDArray[np.float32], projection: NDArray[np.float16]
    ) -> None:
        self.features = list(features)
        self.weights, self.projection = weights, projection
        self._wide = projection.astype(np.float32)
        self._columns = {feature: number for number, feature in enumerate(self.features)}
        self._of_stem: dict[str, NDArray[np.int64]] = {}
        self._scale = weights * np.array(
            [NGRAM_WEIGHT if feature[0] == "#" else 1.0 for feature in self.features], np.float32
        )

    @classmethod
    def fit(cls, texts: Sequence[tuple[str, str]], dimensions: int = DIMENSIONS) -> "CorpusEmbedder":
        """Learn the projection from (text, language) pairs; the same texts give the same bytes."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        texts = texts[:: -(-len(texts) // _MOST_FITTED)] if len(texts) > _MOST_FITTED else texts
        frequency = _frequencies(texts)
        # A feature of one text alone links it to nothing; the commonest ones come first if there are too many.
        kept = sorted(frequency, key=lambda feature: (-frequency[feature], feature))[:_MAX_FEATURES]
        features = sorted(feature for feature in kept if frequency[feature] > 1 or len(texts) < 4)
        weights = np.array([np.log(len(texts) / frequency[feature]) + 1 for feature in features], np.float32)
        fitted = cls(features, weights, np.zeros((len(features), 0), np.float16))
        rank = min(dimensions, len(texts) - 1, len(features) - 1)
        if rank < 1:
            return cls(features, weights, np.ones((len(features), 1), np.float16))
        matrix = fitted._matrix(texts).astype(np.float64)
        # The left singular vectors are the eigenvectors of A A^T, which is small beside A^T A: the features are
        # many. That is several times faster than a sparse SVD, which orthogonalizes the long side too.
        turned = matrix.T.tocsr()
        products = LinearOperator((len(texts),) * 2, matvec=lambda x: matrix @ (turned @ x), dtype=np.float64)
        squared, left = eigsh(products, k=rank, v0=np.ones(len(texts)))
        order = np.argsort(-squared)
        kept_ranks = order[squared[order] > 1e-9 * squared.max()]
        right = (turned @ left[:, kept_ranks] / np.sqrt(squared[kept_ranks])).T  # D x F
        # A singular vector's sign is arbitrary: the largest entry is made positive.
        signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
        return cls(features, weights, (right * signs[:, None]).T.astype(np.float16))

    def _matrix(self, texts: Sequence[tuple[str, str]]) -> csr_matrix:
        """N x F rows of length 1: how often each feature stands in a text (a logarithm), times its weight."""
        rows = [self._row(text, language) for text, language in texts]
        indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)])
        if not indptr[-1]:
            return csr_matrix((len(texts), len(self.features)), dtype=np.float32)
        values = np.concatenate([values for _, values in rows])
        columns = np.concatenate([columns for columns, _ in rows])
        return csr_matrix((values, columns, indptr), shape=(len(texts), len(self.features)))

    def _row(self, text: str, language: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        found = [self._stem_columns(stem) for stem in stems_of(text, language)]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        columns, counts = np.unique(np.concatenate(found), return_counts=True)
        values = (1 + np.log(counts)).astype(np.float32) * self._scale[columns]
        return columns, values / (float(np.sqrt(values @ values)) or 1.0)

    def _stem_columns(self, stem: str) -> NDArray[np.int64]:
        found = self._of_stem.get(stem)
        if found is None:
            known = [self._columns[one] for one in features_of(stem) if one in self._columns]
            found = self._of_stem[stem] = np.array(known, np.int64)
        return found

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to N x D unit vectors."""
        vectors = np.zeros((len(texts), self._wide.shape[1]), np.float32)
        for start in range(0, len(texts), _BATCH):
            vectors[start : start + _BATCH] = self._matrix(texts[start : start + _BATCH]) @ self._wide
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)

    def without(self, stems: Collection[str]) -> "CorpusEmbedder":
        """The embedder without features that none of these stems, all that there still are, has: what a deleted text
        alone had is forgotten, and no other text's vector changes."""
        alive = {feature for stem in stems for feature in features_of(stem)}
        kept = [number for number, feature in enumerate(self.features) if feature in alive]
        return CorpusEmbedder(
            [self.features[number] for number in kept], self.weights[kept], self.projection[kept]
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers, for a safetensors file."""
        return {"embedder.weights": self.weights, "embedder.projection": self.projection}

    @classmethod
    def restore(cls, features: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> "CorpusEmbedder":
        """The embedder that `features` and `arrays` described."""
        return cls(features, arrays["embedder.weights"], arrays["embedder.projection"])


def _frequencies(texts: Sequence[tuple[str, str]]) -> dict[str, int]:
    """In how many texts each feature stands."""
    of_stem: dict[str, list[str]] = {}
    frequency: dict[str, int] = {}
    for text, language in texts:
        found: set[str] = set()
        for stem in set(stems_of(text, language)):
            if stem not in of_stem:
                of_stem[stem] = features_of(stem)
            found.update(of_stem[stem])
        for feature in found:
            frequency[feature] = frequency.get(feature, 0) + 1
    return frequency
