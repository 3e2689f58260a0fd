"""`yunque eval`: how good a model is."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError


def evaluate(
    model: str | None = typer.Argument(
        None, help="The model: NAME, model/NAME@VERSION or http://HOST/v1#MODEL."
    ),
    data: str | None = typer.Option(None, help="A dataset of texts: its loss and perplexity are measured."),
    split: str = typer.Option("test", help="The split of --data that is measured."),
    instructions: str | None = typer.Option(
        None, help="Instruction rows, a file or a dataset (its held-out rows): answers are counted by task."
    ),
    instruction_split: str = typer.Option(
        "heldout", help="The split of --instructions, such as unseen (of `yunque data tasks`)."
    ),
    rows: int | None = typer.Option(
        None, min=1, help="Answer only the first ROWS rows of each task and language."
    ),
    predictions: Path | None = typer.Option(
        None, help="A file of texts, one a line, to compare; needs no model."
    ),
    references: Path | None = typer.Option(None, help="The right text for each line of --predictions."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave bad lines of --instructions out."),
    json: bool = JSON_OPTION,
) -> None:
    """Measure a model (perplexity, accuracy, ROUGE, BLEU, chrF), or compare a file of texts with another.

    Without --data and --instructions the shipped held-out instructions are answered.
    """
    if predictions or references:
        if model or data or instructions or not predictions or not references:
            raise UserError("--predictions and --references go together, without a model")
        _compare(predictions, references, json)
        return
    if not model:
        raise UserError("name the model to evaluate, or give --predictions and --references")
    _measure(model, data, split, instructions, instruction_split, rows, skip_bad, json)


def _measure(
    model: str,
    data: str | None,
    split: str,
    instructions: str | None,
    instruction_split: str,
    rows: int | None,
    skip_bad: bool,
    as_json: bool,
) -> None:
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import EvaluationSettings, evaluate_model, instruction_dataset
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    skipped: list[str] = []
    tasks = None
    if instructions:
        tasks = instruction_dataset(
            workspace, instructions, instruction_split, skipped.append if skip_bad else None
        )
    elif not data:
        tasks = shipped_instructions(workspace)
    for sentence in skipped:
        warn(f"left out: {sentence}")
    made, results = evaluate_model(
        workspace,
        model,
        workspace.get(data, "dataset") if data else None,
        tasks,
        EvaluationSettings(split=split, instruction_split=instruction_split, rows_of_each=rows),
        bars,
    )
    emit(
        {"evaluation": made.ref, **results, "skipped": len(skipped)},
        as_json,
        lambda console: render(console, results),
    )
    note(f"kept as {made.ref}, every answer in its predictions.jsonl")


def render(console: Console, results: dict[str, Any]) -> None:
    """Draw the results of an evaluation."""
    if text := results["text"]:
        console.print(
            f"{text['data']} ({text['tokens']:,} tokens): loss {text['loss']:.3f}, "
            f"perplexity {text['perplexity']:.2f}, {text['bits_per_byte']:.3f} bits per byte"
        )
    if results["tasks"]:
        console.print(
            task_table(f"Answers of {results['model']} (accuracy with its 95 % interval)", results["tasks"])
        )


def task_table(title: str, tasks: list[dict[str, Any]]) -> Table:
    """A table with a line for each task and language, narrow enough for 80 columns; ROUGE is in hundredths."""
    figures = ("rows", "accuracy", "chance", "exact", "ROUGE 1/2/L", "BLEU/chrF")
    lines = [
        (
            f"{line['task']} {line['language']}",
            line["rows"],
            share(line),
            f"{line['chance']:.0%}" if "chance" in line else "",
            f"{line['exact_match']:.0%}",
            "/".join(f"{100 * line[name]:.0f}" for name in ("rouge1", "rouge2", "rougeL") if name in line),
            "/".join(f"{line[name]:.0f}" for name in ("bleu", "chrf") if name in line),
        )
        for line in tasks
    ]
    return table(title, ("task", *figures), lines, right=figures)


def share(line: dict[str, Any]) -> str:
    """An accuracy with its 95 % interval, in per cent."""
    return f"{line['accuracy']:.0%} ({100 * line['low']:.0f}–{100 * line['high']:.0f})"


def _compare(predictions: Path, references: Path, as_json: bool) -> None:
    from yunque.evaluate.evaluation import compare_files

    scores = compare_files(predictions, references)
    rows = [(name, f"{value:.4f}" if value <= 1 else f"{value:.2f}") for name, value in scores.items()]
    emit(
        scores, as_json, lambda console: console.print(table("", ("metric", "value"), rows, right=("value",)))
    )
