"""Examples that are most like an input."""

from collections.abc import Mapping, Sequence
from typing import Any

from yunque.apps.prompts.definition import Example
from yunque.apps.retrieval.vectors import CorpusEmbedder, Embedder


class SimilarExamples:
    """Finds examples by the likeness of their texts; without an embedder one is fitted on the examples themselves."""

    def __init__(self, examples: Sequence[Example], embedder: Embedder | None = None) -> None:
        self.examples = list(examples)
        texts = [(text_of(one.inputs), one.language or "en") for one in self.examples]
        self._embedder: Embedder = embedder or CorpusEmbedder.fit(texts)
        self._vectors = self._embedder.embed(texts)

    def nearest(self, values: Mapping[str, Any], most: int, language: str) -> list[Example]:
        """The `most` examples nearest to these inputs, the nearest last: it stands beside the question."""
        vector = self._embedder.embed([(text_of(values), language)])[0]
        likeness = self._vectors @ vector
        fitting = [number for number, one in enumerate(self.examples) if one.language in (None, language)]
        best = sorted(fitting, key=lambda number: (-float(likeness[number]), number))[:most]
        return [self.examples[number] for number in reversed(best)]


def text_of(values: Mapping[str, Any]) -> str:
    """The texts among inputs."""
    return "\n".join(value for value in values.values() if isinstance(value, str))
