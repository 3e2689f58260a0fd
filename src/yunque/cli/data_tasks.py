"""`yunque data tasks`, and how a dataset of instruction rows is shown."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.data.task_rendering import TaskSettings
    from yunque.workspace import Artifact, Workspace


def tasks(
    folder: Path | None = typer.Argument(
        None, help="A folder of TASK.yaml with TASK.jsonl. (default: the tasks that come with Yunque)"
    ),
    name: str = typer.Option(..., "--name", "-n", help="The name of the dataset."),
    shots: str | None = typer.Option(
        None, help="How many examples a prompt may have, 0 for none, such as 0,2,4. (default: 0,2)"
    ),
    few_shot_share: float | None = typer.Option(
        None, help="The share of training rows with examples. (default: 0.3)"
    ),
    inversion: float | None = typer.Option(
        None, help="The share of training rows asked the other way round. (default: 0.1)"
    ),
    templates_per_row: int | None = typer.Option(
        None, help="In how many templates each row is trained on. (default: 1)"
    ),
    held_out_task: list[str] | None = typer.Option(
        None, help="A task that is not trained on: its rows are the split unseen. May be given several times."
    ),
    held_out_cluster: list[str] | None = typer.Option(
        None, help="A cluster of tasks that are not trained on. May be given several times."
    ),
    held_out_share: float | None = typer.Option(
        None, help="The share of the rows of a trained task that are not trained on. (default: 0.1)"
    ),
    train_tasks: int | None = typer.Option(None, help="Train on so many of the tasks. (default: all)"),
    max_characters: int | None = typer.Option(None, help="A longer prompt loses examples. (default: 2000)"),
    seed: int | None = typer.Option(None, help="The same seed makes the same rows. (default: 0)"),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave bad rows and bad tasks out."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Turn a collection of tasks into instructions with many templates, some tasks held out to measure on."""
    from yunque.configuration import resolve
    from yunque.data.task_rendering import TaskSettings
    from yunque.workspace import Workspace

    settings = resolve(
        TaskSettings,
        shots=_numbers(shots) if shots is not None else None,
        few_shot_share=few_shot_share,
        inversion=inversion,
        templates_per_row=templates_per_row,
        held_out_tasks=held_out_task or None,
        held_out_clusters=held_out_cluster or None,
        held_out_share=held_out_share,
        train_tasks=train_tasks,
        max_characters=max_characters,
        seed=seed,
    )
    _add(Workspace.open(), name, folder, settings, skip_bad, as_json)


def _add(
    workspace: "Workspace",
    name: str,
    folder: Path | None,
    settings: "TaskSettings",
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Make the dataset, and show what became of each task."""
    from yunque.data.instruction_card import instruction_card
    from yunque.data.task_rendering import add_tasks

    skipped: list[str] = []
    artifact, rendered = add_tasks(workspace, name, folder, settings, skipped.append if skip_bad else None)
    for sentence in skipped:
        warn(f"left out: {sentence}")
    if rendered.overlapping:
        warn(f"{rendered.overlapping} training rows ask what a row for measuring asks, and were left out")
    card = instruction_card(workspace, artifact)
    value = {"ref": artifact.ref, "card": card, "skipped": len(skipped)}
    emit(value, as_json, lambda console: draw_card(console, artifact, card))
    if "unseen" in card["splits"]:
        note(
            f"measure the unseen tasks with `yunque eval MODEL --instructions {name} --instruction-split unseen`"
        )


def _numbers(text: str) -> list[int]:
    """ "0,2" as numbers."""
    from yunque.data.task_rendering import MOST_SHOTS

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise UserError(f"--shots: {text!r} is not a list of numbers such as 0,2")
    numbers = [int(part) for part in parts]
    if max(numbers) > MOST_SHOTS:
        raise UserError(f"--shots: a prompt has at most {MOST_SHOTS} examples, not {max(numbers)}")
    return numbers


def show_rows(workspace: "Workspace", artifact: "Artifact", count: int, as_json: bool) -> None:
    """Show a dataset whose rows are JSON lines of instructions, preferences or prompts."""
    import json
    from itertools import islice

    from yunque.data.instruction_card import instruction_card, split_sizes

    is_instructions = artifact.config["format"] == "instructions"
    card = instruction_card(workspace, artifact) if is_instructions else {"splits": split_sizes(artifact)}
    first: list[dict[str, Any]] = []
    for split in card["splits"]:
        with workspace.file(artifact, f"{split}.jsonl").open(encoding="utf-8", newline="\n") as lines:
            first += [{"split": split, **json.loads(line)} for line in islice(lines, count)]

    def render(console: Console) -> None:
        draw_card(console, artifact, card)
        for row in first:
            told = (row["split"], row["id"], row.get("template"))
            console.print("\n" + "  ".join(part for part in told if part), style="dim", markup=False)
            for field in ("instruction", "input", "prompt", "answer", "chosen", "rejected"):
                if row.get(field) and not (field == "input" and row[field] in row["instruction"]):
                    console.print(f"{field}: {row[field]}", markup=False)

    emit({"ref": artifact.ref, "card": card, "rows": first}, as_json, render)


def draw_card(console: Console, artifact: "Artifact", card: dict[str, Any]) -> None:
    """Draw the splits of a dataset and, where they are instructions, their tasks."""
    splits, found = card["splits"], card.get("tasks", [])
    clustered = any("cluster" in task for task in found)
    forms = Counter[str]()
    for task in found:
        forms.update(task.get("forms", {}))
    columns = ["task", *(["cluster"] if clustered else []), "language", "templates", *splits]
    if forms:
        columns += ["few-shot", "inverted"]
    rows = []
    for task in found:
        few_shot = sum(count for form, count in task.get("forms", {}).items() if form != "zero-shot")
        templates = "+".join(str(task[key]) for key in ("templates", "inverted_templates") if key in task)
        told = {**task, "few-shot": few_shot, "templates": templates}
        rows.append([told.get(column) or "" for column in columns])
    if rows:
        console.print(table(artifact.ref, columns, rows, right=columns[3 if clustered else 2 :]))
    total = ", ".join(f"{count:,} {split}" for split, count in splits.items())
    if clustered:
        total += f"; tasks: {len(found)} ({card['unseen_tasks']} unseen), clusters: {card['clusters']}"
    console.print(f"{artifact.ref}: {total}", markup=False)
    if forms:
        shown = ", ".join(f"{count:,} {form}" for form, count in sorted(forms.items(), reverse=True))
        inverted = sum(task["inverted"] for task in found)
        console.print(f"Training rows: {shown}; {inverted:,} of them inverted", markup=False)
