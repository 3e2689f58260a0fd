"""Reading the best passages again, and putting those first that answer.

Reranking is for the few: what it costs grows with the passages it reads, and what was not found it cannot put first.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from yunque.apps.retrieval.extractive import Finder
from yunque.apps.retrieval.index import Hit
from yunque.llm.face import Message, ScoringModel

_ASKED = {
    "es": "¿Responde este pasaje a la pregunta? Contesta sí o no.\n\nPasaje:\n{passage}\n\nPregunta: {question}",
    "en": "Does this passage answer the question? Reply yes or no.\n\nPassage:\n{passage}\n\nQuestion: {question}",
}
_ANSWERS = {"es": ("sí", "no"), "en": ("yes", "no")}


class Reranker(Protocol):
    """Puts hits into a better order."""

    def reranked(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """The same hits, best first, each with its new score."""
        ...


class ScoringReranker:
    """A model that scores answers: how much likelier "yes" is than "no" (pointwise, as monoT5: Nogueira et al.
    2020)."""

    def __init__(self, model: ScoringModel) -> None:
        self._model = model

    def reranked(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """See `Reranker.reranked`; the score is the logarithm of the odds."""
        scored = []
        for hit in hits:
            spoken = hit.passage.language
            above = f"{hit.passage.heading}\n" if hit.passage.heading else ""
            prompt = _ASKED[spoken].format(passage=above + hit.passage.text, question=question)
            yes, no = self._model.score([Message("user", prompt)], _ANSWERS[spoken])
            scored.append(replace(hit, score=yes - no))
        return sorted(scored, key=lambda hit: -hit.score)


class SentenceReranker:
    """The ranking model that quotes answers (`ranking.py`): a passage is as good as its best sentence."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    def reranked(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """See `Reranker.reranked`; passages without a sentence that could answer come last, in their order."""
        scores = self._finder.passage_scores(self._finder.question(question), hits)
        lowest = min(scores.values(), default=0.0) - 1
        scored = [replace(hit, score=scores.get(hit.id, lowest)) for hit in hits]
        return sorted(scored, key=lambda hit: -hit.score)
