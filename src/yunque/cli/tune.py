"""`yunque tune`: teach a model to follow instructions."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from yunque.cli.evaluate import share
from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError


def tune(
    model: str = typer.Argument(help="The model to start from: NAME or model/NAME@VERSION."),
    overrides: list[str] | None = typer.Argument(None, help="Settings as field.subfield=value."),
    data: str | None = typer.Option(
        None, help="Instruction rows, a file or a dataset. (default: the shipped ones)"
    ),
    held_out: str | None = typer.Option(
        None,
        help="Rows to measure on, a file or a dataset. (default: those of --data, else the shipped ones)",
    ),
    general: list[str] | None = typer.Option(
        None, help="Dataset of text to measure forgetting on. (default: what the model was trained on)"
    ),
    name: str | None = typer.Option(None, help="The name of the tuned model. (default: MODEL-tuned)"),
    epochs: float | None = typer.Option(None, help="How often each row is seen. (default: 6)"),
    seconds: float | None = typer.Option(None, help="At most as many steps as fit in this time."),
    lora: bool = typer.Option(
        False, "--lora", help="Train an adapter beside the frozen model (lora.rank=16 ...)."
    ),
    config: Path | None = typer.Option(None, help="A YAML file with settings."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave bad lines of the files out."),
    json: bool = JSON_OPTION,
) -> None:
    """Tune a model on instructions, and tell what it learnt and what it forgot."""
    from yunque.configuration import resolve
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import instruction_dataset
    from yunque.evaluate.tuning import general_datasets, tune_with_report
    from yunque.train import TuneSettings
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    options: dict[str, Any] = {
        "name": name,
        "epochs": epochs,
        "seconds": seconds,
        "lora": {} if lora else None,
    }
    settings = resolve(TuneSettings, config, overrides or [], **options)
    skipped: list[str] = []
    on_bad = skipped.append if skip_bad else None
    training = (
        instruction_dataset(workspace, data, "train", on_bad) if data else shipped_instructions(workspace)
    )
    if held_out:
        tests = instruction_dataset(workspace, held_out, "heldout", on_bad)
    else:
        tests = training if "heldout.jsonl" in training.files else shipped_instructions(workspace)
    if "train.jsonl" not in training.files:
        raise UserError(
            f"{training.ref} has no training rows (its files: {', '.join(sorted(training.files))})"
        )
    for sentence in skipped:
        warn(f"left out: {sentence}")
    texts = [workspace.get(ref, "dataset") for ref in general or []] or general_datasets(workspace, model)
    if not texts:
        warn(f"forgetting is not measured: {model} has no dataset with a test split; name one with --general")
    tuned, made, report = tune_with_report(workspace, model, training, tests, texts, settings, bars, note)
    value = {"model": tuned.ref, "report": made.ref, **report, "skipped": len(skipped)}
    emit(value, json, lambda console: render(console, report))
    note(f"the model is {tuned.ref}, the report {made.ref}")


def render(console: Console, report: dict[str, Any]) -> None:
    """Draw the report of a tuning."""
    lines = [
        (
            f"{line['task']} {line['language']}",
            line["rows"],
            f"{line['chance']:.0%}" if "chance" in line else "",
            share(line["before"]),
            share(line["after"]),
            " → ".join(
                f"{line[when]['rougeL']:.2f}" for when in ("before", "after") if "rougeL" in line[when]
            ),
        )
        for line in report["tasks"]
    ]
    columns = ("rows", "chance", "before", "after", "ROUGE-L")
    title = "Held-out instructions: accuracy with its 95 % interval"
    console.print(table(title, ("task", *columns), lines, right=columns))
    total = report["accuracy"]
    console.print(
        f"Learnt: accuracy {total['before']:.1%} before, {total['after']:.1%} after; "
        f"change {total['change']:+.1%} (95 %: {total['low']:+.1%} to {total['high']:+.1%}, {total['rows']} rows)"
    )
    for text in report["general"]:
        console.print(
            f"Forgotten: loss on {text['data']} ({text['split']}, {text['tokens']:,} tokens) "
            f"{text['before']:.3f} before, {text['after']:.3f} after ({text['forgotten']:+.3f})"
        )
