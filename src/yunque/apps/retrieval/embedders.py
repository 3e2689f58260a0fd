"""Embedders besides the one fitted on the corpus: hashed features, an encoder of the workspace, a remote model."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.vectors import NGRAM_WEIGHT, Embedder, features_of
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, EmbeddingModel
from yunque.workspace import Workspace

HASHED_DIMENSIONS = 512
_BATCH = 64
_SHORTEST = 16


class HashingEmbedder:
    """Stems and their pieces, each with a place and a sign by its hash (Weinberger et al. 2009).

    Nothing is fitted, so that a text's vector never changes; it knows forms of a word, but nothing of meanings.
    """

    def __init__(self, dimensions: int = HASHED_DIMENSIONS) -> None:
        self.name = f"hashing-{dimensions}"
        self._dimensions = dimensions
        self._of_stem: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def _stem(self, stem: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if stem not in self._of_stem:
            if len(self._of_stem) > 200_000:
                self._of_stem.clear()
            pieces = features_of(stem)
            hashes = np.array([crc32(piece.encode()) for piece in pieces], np.int64)
            signs = np.where(hashes & 1, 1.0, -1.0)
            weights = np.array([NGRAM_WEIGHT if piece[0] == "#" else 1.0 for piece in pieces])
            self._of_stem[stem] = ((hashes >> 1) % self._dimensions, (signs * weights).astype(np.float32))
        return self._of_stem[stem]

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to N x D unit vectors."""
        vectors = np.zeros((len(texts), self._dimensions), np.float32)
        for number, (text, language) in enumerate(texts):
            stems = stems_of(text, language)
            for stem in set(stems):
                places, values = self._stem(stem)
                np.add.at(vectors[number], places, values * (1 + np.log(stems.count(stem))))
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


class ModelEmbedder:
    """The vectors of a model. A remote one is given texts whose personal data is replaced by marks."""

    def __init__(self, model: EmbeddingModel, local: bool) -> None:
        self.name, self._model, self._local = model.name, model, local

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """(text, language) pairs to N x D unit vectors; a text too long for the model is the mean of its halves."""
        sent = [self._sendable(text) for text, _ in texts]
        if not sent:
            return np.zeros((0, 0), np.float32)
        parts = [self._batch(sent[start : start + _BATCH]) for start in range(0, len(sent), _BATCH)]
        return np.concatenate(parts)

    def _sendable(self, text: str) -> str:
        text = text.strip() or "-"
        if self._local:
            return text
        from yunque.data.personal import Redaction

        return Redaction(text).text

    def _batch(self, texts: Sequence[str]) -> NDArray[np.float32]:
        try:
            return _unit(np.array(self._model.embed(texts).vectors, np.float32))
        except ContextOverflow:
            if len(texts) > 1:
                return np.concatenate([self._batch([text]) for text in texts])
            (text,) = texts
            if len(text) < 2 * _SHORTEST:
                raise
            middle = text.find(" ", len(text) // 2)
            middle = middle if 0 < middle < len(text) - _SHORTEST else len(text) // 2
            halves = np.concatenate([self._batch([text[:middle]]), self._batch([text[middle:]])])
            return _unit(halves.mean(axis=0, keepdims=True))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


class NoEmbedder:
    """For an index of keywords alone."""

    name = "none"

    def embed(self, texts: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """N x 0: no vector is like another."""
        return np.zeros((len(texts), 0), np.float32)


def open_embedder(workspace: Workspace, name: str) -> Embedder:
    """The embedder called `hashing`, `hashing-D`, `none`, `model/NAME` (an encoder of the workspace), or the one that
    a remote model's name is of. (`corpus` is not opened but fitted.) Raises UserError when there is none."""
    if name == "none":
        return NoEmbedder()
    if name.partition("-")[0] == "hashing":
        digits = name.partition("-")[2] or str(HASHED_DIMENSIONS)
        if not digits.isdecimal() or not 16 <= int(digits) <= 4096:
            raise UserError(f"{name!r} is not an embedder: the number after hashing- must be from 16 to 4096")
        return HashingEmbedder(int(digits))
    plain = not any(mark in name for mark in "/:#")
    if name.startswith("model/") or (plain and workspace.find(name, "model")):
        from yunque.llm.embedding import LocalEncoder

        return ModelEmbedder(LocalEncoder.open(workspace, name), True)
    from yunque.llm.open import open_model

    model: Any = open_model(workspace, name)
    if not hasattr(model, "embed"):
        raise UserError(
            f"{name!r} makes no vectors: use corpus, hashing, none, model/NAME (an encoder) or a remote model"
        )
    return ModelEmbedder(model, model.local)
