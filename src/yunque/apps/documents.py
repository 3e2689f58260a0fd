"""Answers from documents: quoted word for word, or written by a model and held against what it cites."""

import re
from collections.abc import Sequence
from dataclasses import replace

from yunque.apps.answer import NO_TOKENS, AppAnswer, Asked, Citation, Drafted
from yunque.apps.asking import Asking
from yunque.apps.checks import Exchange
from yunque.apps.definition import AppDefinition
from yunque.apps.retrieval.extractive import Candidate, Finder
from yunque.apps.retrieval.grounding import ground
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.passages import RECORD, Passage
from yunque.apps.retrieval.question import Question
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import Language

_MARK = re.compile(r"\[[A-Z_]+-\d+\]")
"""What stands in a question for personal data; it is nothing to look for."""

_EXTRACTIVE_NOTE = {
    "es": "Respuesta extractiva: citas literales de los documentos.",
    "en": "Extractive answer: quoted word for word from the documents.",
}
_UNSUPPORTED_NOTE = {
    "es": "La respuesta del modelo no se apoyaba en los documentos y se ha sustituido.",
    "en": "The model's answer was not borne out by the documents and was replaced.",
}
_DROPPED_NOTE = {
    "es": "Se han quitado frases del modelo que los documentos no apoyan.",
    "en": "Sentences of the model that the documents do not bear out were left out.",
}
_LEAKED_NOTE = {
    "es": "La respuesta del modelo no pasó los controles y se ha sustituido.",
    "en": "The model's answer did not pass the checks and was replaced.",
}


class FromDocuments:
    """Finds the passages that answer, and quotes them, or has a model answer from them."""

    def __init__(self, definition: AppDefinition, index: Index, asking: Asking) -> None:
        assert definition.knowledge is not None
        self.definition, self._knowledge, self._asking = definition, definition.knowledge, asking
        self.index: str | None = index.ref
        self._finder = Finder(index, Synonyms(self._knowledge.synonyms), self._knowledge.relevance)

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """Whether the documents answer is decided by code, before a model is asked."""
        language = asked.language
        taken = self._finder.question(_MARK.sub(" ", asked.question), language)
        found = self._finder.answer(taken)
        unknown = self.definition.unknown_answer(language)
        if not found:
            return Drafted(AppAnswer(unknown, language, known=False))
        if asked.model is None and self.definition.model is None:
            return Drafted(_extractive(found, language))
        drafted = self._asking.draft(asked, self._passages(taken, found, exchange))
        answer, passages = drafted.answer, drafted.passages
        if not answer.known:
            return replace(drafted, answer=_extractive(found, language, answer.note, answer))
        if answer.text.strip().rstrip(".") == unknown.strip().rstrip("."):
            return replace(drafted, answer=replace(answer, known=False, citations=()))
        grounded = ground(answer.text, [(passage.text, passage.language) for passage in passages])
        if not grounded.text:
            return replace(drafted, answer=_extractive(found, language, _UNSUPPORTED_NOTE[language], answer))
        citations = [
            _citation(number, passages[number - 1], passages[number - 1].text)
            for number in grounded.citations
        ]
        notes = [answer.note, "" if grounded.whole else _DROPPED_NOTE[language]]
        note = " ".join(filter(None, notes))
        answer = replace(answer, text=grounded.text, citations=tuple(citations), note=note)
        return replace(drafted, answer=answer)

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Quotations, where a model's answer was stopped."""
        if blocked.extractive:
            return None
        found = self._finder.answer(self._finder.question(_MARK.sub(" ", asked.question), asked.language))
        if not found:
            return None
        return _extractive(found, asked.language, _LEAKED_NOTE[asked.language], blocked)

    def _passages(self, question: Question, found: Sequence[Candidate], exchange: Exchange) -> list[Passage]:
        """What a model is given: the best sentences' passages first, those that the guard stops left out."""
        ranked = [*found, *self._finder.candidates(question)]
        passages = list(dict.fromkeys(candidate.passage for candidate in ranked))[: self._knowledge.top_k]
        checked = [(passage, exchange.context(passage.text)) for passage in passages]
        return [replace(passage, text=safe.text) for passage, safe in checked if not safe.blocked]


def _extractive(
    found: Sequence[Candidate], language: Language, note: str = "", model: AppAnswer | None = None
) -> AppAnswer:
    """Sentences word for word, each with the number of its citation."""
    citations: list[Citation] = []
    numbers: dict[tuple[str, int], int] = {}
    parts: list[str] = []
    for candidate in found:
        quote = candidate.passage.quote(candidate.unit)
        key = (candidate.passage.row_id, candidate.passage.start)
        if key in numbers:
            kept = citations[numbers[key] - 1]
            citations[kept.number - 1] = replace(kept, quote=f"{kept.quote} … {quote}")
        else:
            numbers[key] = len(citations) + 1
            citations.append(_citation(numbers[key], candidate.passage, quote))
        parts.append(f"{quote} [{numbers[key]}]")
    # Lines of a table have no full stop to part them.
    between = "\n" if any(RECORD.match(c.passage.quote(c.unit)) for c in found) else " "
    return AppAnswer(
        between.join(parts),
        language,
        tuple(citations),
        extractive=True,
        note=f"{note} {_EXTRACTIVE_NOTE[language]}".strip(),
        usage=model.usage if model else NO_TOKENS,
        cost=model.cost if model else None,
    )


def _citation(number: int, passage: Passage, quote: str) -> Citation:
    return Citation(number, passage.file, passage.locator, passage.row_id, quote)
