"""Evaluating a model: text it was not trained on, and instructions whose answers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field

from yunque.configuration import Settings
from yunque.data.dataset import read_rows
from yunque.data.instructions import InstructionRow, add_instructions, read_instruction_split
from yunque.errors import UserError
from yunque.evaluate.loss import text_loss
from yunque.evaluate.metrics import text_metrics
from yunque.evaluate.tasks import by_task, one_thread, predict
from yunque.llm import LanguageModel, open_model
from yunque.llm.local import LocalModel
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name


class EvaluationSettings(Settings):
    """What is measured and how much of it.

    `split` and `most_tokens` belong to the text, the others to the instructions; `rows_of_each` keeps the first
    rows of each task and language.
    """

    split: str = "test"
    instruction_split: str = "heldout"
    most_tokens: int = Field(default=20_000, ge=1)
    rows_of_each: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=40, ge=1)


def evaluate_model(
    workspace: Workspace,
    model: str,
    data: Artifact | None,
    instructions: Artifact | None,
    settings: EvaluationSettings,
    progress: Progress = silent,
) -> tuple[Artifact, dict[str, Any]]:
    """Measure `model` on the texts of `data` and on the held-out rows (`instruction_split`) of `instructions`.

    Returns the evaluation artifact (results.json, predictions.jsonl) and its results. A model behind an address
    does not tell likelihoods: it has no loss on text, and its labels are judged by what it wrote.
    """
    opened = open_model(workspace, model)
    local = opened if isinstance(opened, LocalModel) else None
    results: dict[str, Any] = {"model": opened.name, "text": None, "tasks": []}
    files: dict[str, bytes] = {}
    if data:
        results["text"] = _measured_text(workspace, local, data, settings, progress)
    if instructions:
        rows = first_of_each(
            read_instruction_split(workspace, instructions, settings.instruction_split), settings.rows_of_each
        )
        score = local.score if local else None
        with one_thread():
            predictions = predict(opened, score, rows, settings.max_new_tokens, progress=progress)
        results["tasks"] = by_task(predictions)
        results["instructions"] = instructions.ref
        lines = [json.dumps(each.as_dict(), ensure_ascii=False) + "\n" for each in predictions]
        files["predictions.jsonl"] = "".join(lines).encode()
    files["results.json"] = json.dumps(results, ensure_ascii=False, indent=2).encode()
    parents = [artifact for artifact in (_artifact_of(workspace, opened), data, instructions) if artifact]
    name = parents[0].name if opened.local else _name_of(model)
    made = workspace.put(
        "evaluation", name, files, parents, settings.model_dump() | {"model": opened.name}, summary(results)
    )
    return made, results


def _measured_text(
    workspace: Workspace,
    local: LocalModel | None,
    data: Artifact,
    settings: EvaluationSettings,
    progress: Progress,
) -> dict[str, Any]:
    if local is None:
        raise UserError(
            "--data needs a model of the workspace: a server does not tell the likelihood of a text"
        )
    split = settings.split if f"{settings.split}.jsonl" in data.files else None
    if split is None and "rows.jsonl" not in data.files:
        raise UserError(
            f"{data.ref} has no split {settings.split!r} (it has: {', '.join(sorted(data.files))})"
        )
    measured = text_loss(local.engine, read_rows(workspace, data, split), settings.most_tokens, progress)
    return {"data": data.ref, "split": split, **measured.as_dict()}


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The few figures by which an evaluation is known in a list."""
    figures: dict[str, Any] = {}
    if results["text"]:
        figures["perplexity"] = results["text"]["perplexity"]
    if lines := results["tasks"]:
        rows = sum(line["rows"] for line in lines)
        figures["accuracy"] = sum(line["accuracy"] * line["rows"] for line in lines) / rows
    return figures


def first_of_each(rows: list[InstructionRow], most: int | None) -> list[InstructionRow]:
    """The first `most` rows of each task and language, in their order; all where it is None."""
    if most is None:
        return rows
    counts: dict[tuple[str, str], int] = {}
    kept: list[InstructionRow] = []
    for row in rows:
        key = (row.task, row.language)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= most:
            kept.append(row)
    return kept


def instruction_dataset(
    workspace: Workspace, name: str, split: str = "heldout", on_bad: Callable[[str], None] | None = None
) -> Artifact:
    """Instruction rows by the name of a dataset, or of a file, which becomes the `split` of a new dataset."""
    path = Path(name)
    if not path.is_file():
        if path.suffix == ".jsonl":
            raise UserError(f"{name}: no such file")
        return workspace.get(name, "dataset")
    return add_instructions(workspace, _name_of(path.stem), {split: path}, on_bad)


def compare_files(predictions: Path, references: Path) -> dict[str, float]:
    """Every metric on text between two files, line by line."""
    return text_metrics(_lines(predictions), _lines(references))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    # Not splitlines(): U+2028 and its like are inside of a text.
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _artifact_of(workspace: Workspace, opened: LanguageModel) -> Artifact | None:
    return workspace.get(opened.name) if opened.local else None


def _name_of(text: str) -> str:
    """A name for an artifact from a file's name or an address."""
    letters = "".join(char if char.isascii() and char.isalnum() else "-" for char in text.lower())
    return checked_name(letters.strip("-")[:64] or "unnamed")
