"""The forgetting matrix: models by tasks, with what each model lost against the first.

Forgetting of a task is the first model's measure less the other's, as in Chaudhry et al. 2018 (arXiv:1801.10112); of
text it is the increase of the loss, where both models read the same tokens.
"""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from yunque.data.dataset import read_rows
from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.errors import UserError
from yunque.evaluate.answers import change, row_scores
from yunque.evaluate.evaluation import first_of_each
from yunque.evaluate.loss import NoTextLoss, text_loss
from yunque.evaluate.metrics import bootstrap_interval
from yunque.evaluate.tasks import Prediction, one_thread, predict
from yunque.evaluate.tuning_lineage import ancestors, general_split, holds_instructions
from yunque.llm.local import LocalModel
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

_GENERAL_TOKENS = 20_000
_ANSWER_TOKENS = 40

Answers = list[Prediction]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """Nats a token, and what such a token is: two losses are held against each other where that is the same."""

    value: float
    unit: str = ""


def forgetting_matrix(
    workspace: Workspace,
    models: Sequence[str],
    instructions: Sequence[Artifact],
    general: Sequence[Artifact] = (),
    rows_of_each: int | None = None,
    progress: Progress = silent,
) -> tuple[Artifact, dict[str, Any]]:
    """Measure every model on the held-out rows of `instructions`, by task, and on the held-out text of `general`.

    `rows_of_each` keeps the first rows of each task and language. Returns the report artifact (matrix.json, matrix.md
    and .png, answers.jsonl) and the matrix: `models`, `columns`, and `cells`, a row for each model. A cell has the
    `value` (accuracy 0 to 1, or nats a token), what was `forgotten` against the first model (above 0: worse), both of
    an accuracy with a 95 % interval, the second paired; and whether the model was `tuned` on the task. `summary` has
    for each model the mean that was learnt on tasks that it was tuned on, and forgotten on all others. Raises
    UserError for fewer than two models, and where there is nothing to measure.
    """
    chosen = [workspace.get(ref) for ref in models]
    if len({artifact.ref for artifact in chosen}) < max(2, len(chosen)):
        raise UserError(
            "a matrix needs two models or more, each once: the first is what the others are held against"
        )
    tasks = _tasks(workspace, instructions, rows_of_each)
    texts = [(dataset, general_split(dataset)) for dataset in {each.ref: each for each in general}.values()]
    if not tasks and not texts:
        raise UserError("there is nothing to measure: name instructions or text")
    columns = [_task_column(name, ref, rows) for name, (ref, rows) in tasks.items()]
    names = Counter(dataset.name for dataset, _ in texts)
    columns += [
        {
            "name": dataset.name if names[dataset.name] == 1 else dataset.ref,
            "kind": "loss",
            "data": dataset.ref,
        }
        for dataset, _ in texts
    ]
    rows = [row for _, some in tasks.values() for row in some]
    measured = [_measure(workspace, model, rows, texts, progress) for model in chosen]
    learned = [_learned(workspace, model, chosen[0]) for model in chosen]
    matrix = assembled([model.ref for model in chosen], columns, measured, learned)
    answers = [
        json.dumps({"model": model.ref, **answer.as_dict()}, ensure_ascii=False) + "\n"
        for model, (given, _) in zip(chosen, measured, strict=True)
        for answer in given
    ]
    files = {
        "matrix.json": json.dumps(matrix, ensure_ascii=False, indent=2).encode(),
        "matrix.md": matrix_markdown(matrix).encode(),
        "matrix.png": draw_matrix(matrix),
        "answers.jsonl": "".join(answers).encode(),
    }
    config = {
        "rows_of_each": rows_of_each,
        "general_tokens": _GENERAL_TOKENS,
        "answer_tokens": _ANSWER_TOKENS,
    }
    parents = [*chosen, *instructions, *general]
    made = workspace.put("report", f"{chosen[0].name}-forgetting", files, parents, config)
    return made, matrix


def _tasks(
    workspace: Workspace, instructions: Sequence[Artifact], rows_of_each: int | None
) -> dict[str, tuple[str, list[InstructionRow]]]:
    """The rows of each task, and the dataset that it is from; two datasets may have a task of the same name."""
    found: dict[str, tuple[str, list[InstructionRow]]] = {}
    for dataset in {each.ref: each for each in instructions}.values():
        named: dict[str, list[InstructionRow]] = {}
        for row in first_of_each(read_instruction_split(workspace, dataset, "heldout"), rows_of_each):
            named.setdefault(row.task, []).append(row)
        for task, rows in named.items():
            found[task if task not in found else f"{task} ({dataset.ref})"] = (dataset.ref, rows)
    return found


def _task_column(name: str, ref: str, rows: Sequence[InstructionRow]) -> dict[str, Any]:
    column = {"name": name, "kind": "accuracy", "data": ref, "rows": len(rows), "task": rows[0].task}
    if all(row.labels for row in rows):
        column["chance"] = sum(1 / len(row.labels or ()) for row in rows) / len(rows)
    return column


def _measure(
    workspace: Workspace,
    model: Artifact,
    rows: Sequence[InstructionRow],
    texts: Sequence[tuple[Artifact, str]],
    progress: Progress,
) -> tuple[Answers, list[Loss | None]]:
    """The answers of a model, and its loss on each text; None where that is not defined."""
    opened = LocalModel.open(workspace, model.ref)
    losses: list[Loss | None] = []
    for dataset, split in texts:
        try:
            found = text_loss(opened.engine, read_rows(workspace, dataset, split), _GENERAL_TOKENS, progress)
            texts_read = [row.text for row in read_rows(workspace, dataset, split) if row.text][: found.rows]
            losses.append(Loss(found.loss, f"{found.of} of {_digest(opened, texts_read)}"))
        except NoTextLoss:
            losses.append(None)
    with one_thread():
        answers = predict(opened, opened.score, rows, _ANSWER_TOKENS, write_labels=False, progress=progress)
    return answers, losses


def _digest(model: LocalModel, texts: Sequence[str]) -> str:
    """What stands for the tokens that a model reads."""
    ids = [model.engine.tokenizer.encode(text) for text in texts]
    return sha256(json.dumps(ids).encode()).hexdigest()


def _learned(workspace: Workspace, model: Artifact, first: Artifact) -> set[str]:
    """The tasks that a model was tuned on since the first one."""
    if model.ref == first.ref:
        return set()
    return {
        row.task
        for dataset in ancestors(workspace, model, until=first.ref)
        if holds_instructions(dataset) and "train.jsonl" in dataset.files
        for row in read_instruction_split(workspace, dataset, "train")
    }


def assembled(
    models: Sequence[str],
    columns: Sequence[dict[str, Any]],
    measured: Sequence[tuple[Answers, Sequence[Loss | None]]],
    learned: Sequence[set[str]],
) -> dict[str, Any]:
    """The matrix from what was measured: the answers of a model to the rows of all columns, in their order, and its
    losses; and the tasks that each model was tuned on."""
    first_answers, first_losses = measured[0]
    cells: list[list[Cell]] = []
    for (answers, losses), tasks in zip(measured, learned, strict=True):
        line, start, texts = list[Cell](), 0, 0
        for column in columns:
            if column["kind"] == "accuracy":
                part = slice(start, start := start + column["rows"])
                cell = _accuracy_cell(first_answers[part], answers[part])
                line.append(cell | {"tuned": column.get("task", column["name"]) in tasks})
            else:
                line.append(_loss_cell(first_losses[texts], losses[texts]))
                texts += 1
        cells.append(line)
    return {
        "models": list(models),
        "columns": list(columns),
        "cells": cells,
        "summary": [_summary(model, columns, line) for model, line in zip(models, cells, strict=True)],
    }


def _accuracy_cell(first: Answers, answers: Answers) -> Cell:
    before, after = (row_scores(each, "accuracy") for each in (first, answers))
    low, high = bootstrap_interval(after)
    lost = change(after, before)
    return {
        "value": sum(after) / len(after),
        "low": low,
        "high": high,
        "forgotten": lost["change"],
        "forgotten_low": lost["low"],
        "forgotten_high": lost["high"],
    }


def _loss_cell(first: Loss | None, loss: Loss | None) -> Cell:
    if loss is None or first is None or loss.unit != first.unit:
        return {"value": loss and loss.value, "forgotten": None, "tuned": False}
    return {"value": loss.value, "forgotten": loss.value - first.value, "tuned": False}


def _summary(model: str, columns: Sequence[dict[str, Any]], line: Sequence[Cell]) -> dict[str, Any]:
    tasks = [cell for column, cell in zip(columns, line, strict=True) if column["kind"] == "accuracy"]
    losses = [
        cell["forgotten"]
        for column, cell in zip(columns, line, strict=True)
        if column["kind"] == "loss" and cell["forgotten"] is not None
    ]
    return {
        "model": model,
        "learnt": _mean([-cell["forgotten"] for cell in tasks if cell["tuned"]]),
        "forgotten": _mean([cell["forgotten"] for cell in tasks if not cell["tuned"]]),
        "forgotten_loss": _mean(losses),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def matrix_rows(matrix: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the matrix as text. Accuracies are per cent with their change against the first model; a star
    marks a task that the model was tuned on."""
    head = ["model", *(column["name"] for column in matrix["columns"])]
    rows = [
        [model.removeprefix("model/"), *(_told(cell, number == 0) for cell in line)]
        for number, (model, line) in enumerate(zip(matrix["models"], matrix["cells"], strict=True))
    ]
    return head, rows


def _told(cell: Cell, first: bool) -> str:
    if cell["value"] is None:
        return "not defined"
    if "low" in cell:
        value = f"{100 * cell['value']:.0f} ({100 * cell['low']:.0f}–{100 * cell['high']:.0f})"
        moved = f" {-100 * cell['forgotten']:+.0f}"
    else:
        value, moved = (
            f"{cell['value']:.3f}",
            f" {cell['forgotten']:+.3f}" if cell["forgotten"] is not None else "",
        )
    return value + ("" if first else moved) + ("*" if cell["tuned"] else "")


def summary_rows(matrix: dict[str, Any]) -> list[list[str]]:
    """A row of text for each model after the first: what it learnt and forgot on average."""
    return [
        [
            each["model"].removeprefix("model/"),
            "" if each["learnt"] is None else f"{100 * each['learnt']:+.1f}",
            "" if each["forgotten"] is None else f"{100 * each['forgotten']:+.1f}",
            "" if each["forgotten_loss"] is None else f"{each['forgotten_loss']:+.3f}",
        ]
        for each in matrix["summary"][1:]
    ]


SUMMARY = ("model", "learnt", "forgotten", "forgotten, text")
NOTE = (
    "Accuracy in per cent (95 % interval) and its change against the first model; loss in nats a token. "
    "* tuned on this task. A loss without a change is of other tokens than the first model's."
)


def matrix_markdown(matrix: dict[str, Any]) -> str:
    """The matrix and its summary as Markdown."""
    tables = [matrix_rows(matrix), (list(SUMMARY), summary_rows(matrix))]
    drawn = [
        "\n".join(
            f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
            for row in (head, ["---"] * len(head), *rows)
        )
        for head, rows in tables
    ]
    return "\n\n".join([*drawn, NOTE]) + "\n"


def draw_matrix(matrix: dict[str, Any]) -> bytes:
    """A PNG of the matrix: red is worse than the first model, blue better; losses are coloured on a scale of their
    own."""
    head, rows = matrix_rows(matrix)
    figure = Figure(figsize=(2.6 + 1.5 * (len(head) - 1), 1.4 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_shades(matrix), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, text in enumerate(row[1:]):
            axes.text(x, y, text.replace(" ", "\n", 1), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(head) - 1), head[1:], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_title("Blue: better than the first model, red: forgotten. * tuned on this task", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def _shades(matrix: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What was gained in each cell, between -0.6 and 0.6 (darker, and the text cannot be read)."""
    gained = np.array([[-(cell["forgotten"] or 0.0) for cell in line] for line in matrix["cells"]])
    for kind, least in (("accuracy", 0.1), ("loss", 0.1)):
        of_kind = [column["kind"] == kind for column in matrix["columns"]]
        if any(of_kind):
            gained[:, of_kind] *= 0.6 / max(least, float(np.abs(gained[:, of_kind]).max()))
    return gained
