"""Two small linear models over the features: one orders sentences, one says whether the best of them answers.

`tools/fit_ranking.py` fits them and writes `ranking.json`, which tells when and on how many questions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.features import ANSWER, SENTENCE

FILE = Path(__file__).with_name("ranking.json")


@dataclass(frozen=True)
class Ranking:
    """Weights of the features: `sentence` (S) and `answer` (A), in the order of their names, and the bias."""

    sentence: NDArray[np.float32]
    answer: NDArray[np.float32]
    bias: float

    @classmethod
    @cache
    def shipped(cls) -> "Ranking":
        """The weights that the package brings."""
        values = json.loads(FILE.read_text(encoding="utf-8"))
        return cls(_ordered(values["sentence"], SENTENCE), _ordered(values["answer"], ANSWER), values["bias"])

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """N x S features of sentences to N scores; a difference of two is the logarithm of their odds."""
        return features @ self.sentence

    def probability(self, features: NDArray[np.float32]) -> float:
        """That a sentence with these features (A) answers its question."""
        return float(1 / (1 + np.exp(-(features @ self.answer + self.bias))))


def _ordered(weights: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float32]:
    return np.array([weights[name] for name in names], np.float32)
