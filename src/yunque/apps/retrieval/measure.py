"""How good an index is: what it finds, what its quotations answer, what it refuses and what it should not have."""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from yunque.apps.kept import load_definition
from yunque.apps.retrieval.extractive import Finder, Relevance
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.passages import Passage
from yunque.apps.retrieval.synonyms import Synonyms
from yunque.apps.retrieval.words import Language
from yunque.configuration import Settings, validated
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Workspace


class TestQuestion(Settings):
    """A question with the file and the short fact that answer it; `also_ok` are other files that do."""

    __test__ = False

    id: str = ""
    language: Language
    question: str
    answerable: bool
    file: str | None = None
    answer: str | None = None
    also_ok: tuple[str, ...] = Field(default=())


@dataclass
class Measured:
    """Counts over a set of questions; `relevances` are (relevance, answerable, right) of each."""

    k: int
    answerable: int = 0
    unanswerable: int = 0
    found: int = 0
    right: int = 0
    refused_wrongly: int = 0
    refused_rightly: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    relevances: list[tuple[float, bool, bool]] = field(default_factory=list)

    def best_floor(self) -> float:
        """The relevance floor with the most right answers and right refusals on these questions (shares added)."""
        floors = sorted({round(relevance, 2) for relevance, _, _ in self.relevances} | {0.0})

        def merit(floor: float) -> float:
            right = sum(known and right and relevance >= floor for relevance, known, right in self.relevances)
            refused = sum(not known and relevance < floor for relevance, known, _ in self.relevances)
            return right / max(self.answerable, 1) + refused / max(self.unanswerable, 1)

        return max(floors, key=merit)

    def figures(self) -> dict[str, float]:
        """Shares from 0 to 1."""
        answerable, unanswerable = max(self.answerable, 1), max(self.unanswerable, 1)
        return {
            "questions": self.answerable + self.unanswerable,
            f"recall_at_{self.k}": round(self.found / answerable, 3),
            "answers_with_the_fact": round(self.right / answerable, 3),
            "false_refusals": round(self.refused_wrongly / answerable, 3),
            "refused_when_unanswerable": round(self.refused_rightly / unanswerable, 3),
            "best_floor": self.best_floor(),
        }


def read_questions(path: Path) -> list[TestQuestion]:
    """Questions from JSON lines; raises UserError that names the line."""
    questions = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError:
            raise UserError(f"{path}:{number}: is not JSON") from None
        questions.append(validated(TestQuestion, values, f"{path}:{number}"))
    return questions


def measure_index(
    workspace: Workspace,
    ref: str,
    questions: Sequence[TestQuestion],
    app_ref: str | None = None,
    k: int = 5,
    progress: Progress = silent,
) -> Measured:
    """Ask every question of an index, with the synonyms and the relevance of an app if one is named."""
    synonyms, relevance = Synonyms(), Relevance()
    if app_ref:
        definition, _ = load_definition(workspace, app_ref)
        if definition.knowledge:
            synonyms = Synonyms(definition.knowledge.synonyms)
            relevance = definition.knowledge.relevance
    finder = Finder(Index.open(workspace, ref), synonyms, relevance)
    measured = Measured(k)
    with progress("Asking", len(questions)) as task:
        for question in questions:
            ask(finder, question, measured)
            task.advance(1)
    return measured


def ask(finder: Finder, asked: TestQuestion, measured: Measured) -> None:
    """Ask one question and count what comes of it."""
    question = finder.question(asked.question)
    ranked = finder.candidates(question)
    relevance = ranked[0].relevance if ranked else 0.0
    chosen = finder.chosen(ranked)
    known = finder.suffices(ranked)
    text = " ".join(candidate.passage.quote(candidate.unit) for candidate in chosen)
    right = asked.answer is not None and _same_letters(asked.answer) in _same_letters(text)
    measured.relevances.append((relevance, asked.answerable, right))
    if not asked.answerable:
        measured.unanswerable += 1
        measured.refused_rightly += not known
    else:
        measured.answerable += 1
        files = [file for file in (asked.file, *asked.also_ok) if file]
        passages = list(dict.fromkeys(candidate.passage for candidate in ranked))[: measured.k]
        measured.found += any(_is_file(passage.file, file) for passage in passages for file in files)
        measured.right += known and right
        measured.refused_wrongly += not known
    if known != asked.answerable or (asked.answerable and not right):
        measured.wrong.append(
            {
                "id": asked.id,
                "question": asked.question,
                "expected": asked.answer,
                "known": known,
                "relevance": round(relevance, 2),
                "quoted": text,
            }
        )


def holds_the_fact(asked: TestQuestion, passage: Passage, position: int) -> bool:
    """Whether a sentence of a passage has the fact, in one of the files that answer."""
    if asked.answer is None or not any(
        _is_file(passage.file, file) for file in (asked.file, *asked.also_ok) if file
    ):
        return False
    return _same_letters(asked.answer) in _same_letters(passage.quote(passage.units[position]))


def _is_file(name: str, wanted: str) -> bool:
    """Whether two names are one file's: a dataset names it from the folder that was read."""
    return f"/{name}".endswith(f"/{wanted}") or f"/{wanted}".endswith(f"/{name}")


def _same_letters(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
