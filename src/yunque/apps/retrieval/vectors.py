"""The vector half of retrieval: an embedder fitted on the corpus itself, so that nothing is downloaded.

TF-IDF of word stems and of the character n-grams inside words, then a truncated SVD (latent semantic analysis,
Deerwester et al. 1990). Any other embedder can be put behind the same protocol.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.keywords import stems_of

DIMENSIONS = 128
_MAX_FEATURES = 60_000
_NGRAM_WEIGHT = 0.35
"""A character n-gram says less than a word, and a word has many of them."""


class Embedder(Protocol):
    """Texts to unit vectors."""

    name: str

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to vectors of length 1 (or 0 for a text without a known feature)."""
        ...


def _features(text: str, language: str) -> Counter[str]:
    """Weighted features of a text: its stems, and the 3- and 4-letter pieces of each with its edges marked."""
    found: Counter[str] = Counter()
    for word in stems_of(text, language):
        found[word] += 1
        marked = f"<{word}>"
        for length in (3, 4):
            for start in range(len(marked) - length + 1):
                found["#" + marked[start : start + length]] += 1
    return found


class CorpusEmbedder:
    """F features to D dimensions; `weights` (F) are inverse document frequencies, `projection` is F x D."""

    name = "corpus"

    def __init__(
        self, features: Sequence[str], weights: NDArray[np.float32], projection: NDArray[np.float16]
    ) -> None:
        self.features = list(features)
        self.weights, self.projection = weights, projection
        self._columns = {feature: number for number, feature in enumerate(self.features)}

    @classmethod
    def fit(cls, texts: Sequence[tuple[str, str]], dimensions: int = DIMENSIONS) -> "CorpusEmbedder":
        """Learn the projection from (text, language) pairs; the same texts give the same bytes."""
        from scipy.sparse import csr_matrix
        from scipy.sparse.linalg import LinearOperator, eigsh

        counted = [_features(text, language) for text, language in texts]
        frequency = Counter(feature for counts in counted for feature in counts)
        # A feature of one text alone links it to nothing; the commonest ones come first if there are too many.
        kept = sorted(frequency, key=lambda feature: (-frequency[feature], feature))[:_MAX_FEATURES]
        features = sorted(feature for feature in kept if frequency[feature] > 1 or len(texts) < 4)
        weights = np.array([np.log(len(texts) / frequency[feature]) + 1 for feature in features], np.float32)
        fitted = cls(features, weights, np.zeros((len(features), 0), np.float16))
        rank = min(dimensions, len(texts) - 1, len(features) - 1)
        if rank < 1:
            fitted.projection = np.ones((len(features), 1), np.float16)
            return fitted
        rows = [fitted._row(counts) for counts in counted]
        indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)])
        matrix = csr_matrix(
            (
                np.concatenate([values for _, values in rows]),
                np.concatenate([columns for columns, _ in rows]),
                indptr,
            ),
            shape=(len(texts), len(features)),
        ).astype(np.float64)
        # The left singular vectors are the eigenvectors of A A^T, which is small beside A^T A: the features are
        # many. That is several times faster than a sparse SVD, which orthogonalizes the long side too.
        products = LinearOperator(
            (len(texts),) * 2, matvec=lambda x: matrix @ (matrix.T @ x), dtype=np.float64
        )
        squared, left = eigsh(products, k=rank, v0=np.ones(len(texts)))
        order = np.argsort(-squared)
        kept_ranks = order[squared[order] > 1e-9 * squared.max()]
        right = (matrix.T @ left[:, kept_ranks] / np.sqrt(squared[kept_ranks])).T  # D x F
        # A singular vector's sign is arbitrary: the largest entry is made positive.
        signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
        fitted.projection = (right * signs[:, None]).T.astype(np.float16)
        return fitted

    def _row(self, counts: Mapping[str, int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        columns = np.array(
            sorted(self._columns[feature] for feature in counts if feature in self._columns), np.int64
        )
        values = np.array([1 + np.log(counts[self.features[column]]) for column in columns], np.float32)
        grams = np.array([self.features[column][0] == "#" for column in columns], bool)
        values = values * self.weights[columns] * np.where(grams, np.float32(_NGRAM_WEIGHT), np.float32(1))
        norm = float(np.sqrt((values**2).sum())) or 1.0
        return columns, (values / norm).astype(np.float32)

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to N x D unit vectors."""
        vectors = np.zeros((len(texts), self.projection.shape[1]), np.float32)
        for number, (text, language) in enumerate(texts):
            columns, values = self._row(_features(text, language))
            vector = values @ self.projection[columns].astype(np.float32)
            vectors[number] = vector / (float(np.linalg.norm(vector)) or 1.0)
        return vectors

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numbers, for a safetensors file."""
        return {"embedder.weights": self.weights, "embedder.projection": self.projection}

    @classmethod
    def restore(cls, features: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> "CorpusEmbedder":
        """The embedder that `features` and `arrays` described."""
        return cls(features, arrays["embedder.weights"], arrays["embedder.projection"])
