"""`yunque tune`: teach a model to follow instructions."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError


def tune(
    model: str = typer.Argument(help="The model to start from: NAME or model/NAME@VERSION."),
    overrides: list[str] | None = typer.Argument(None, help="Settings as field.subfield=value."),
    data: list[str] = typer.Option(
        [],
        "--data",
        help="Instruction rows, a file or a dataset; several are mixed. (default: the shipped ones)",
    ),
    held_out: str | None = typer.Option(
        None,
        help="Rows to measure on, a file or a dataset. (default: those of --data, else the shipped ones)",
    ),
    held_out_split: str = typer.Option(
        "heldout", help="The split of them, such as unseen (of `yunque data tasks`)."
    ),
    general: list[str] | None = typer.Option(
        None, help="Dataset of text to measure forgetting on. (default: what the model was trained on)"
    ),
    other: list[str] = typer.Option(
        [],
        "--other",
        help="Rows of other tasks, to measure what is forgotten. (default: what the model was tuned on)",
    ),
    name: str | None = typer.Option(None, help="The name of the tuned model. (default: MODEL-tuned)"),
    epochs: float | None = typer.Option(None, help="How often each row is seen. (default: 6)"),
    seconds: float | None = typer.Option(None, help="At most as many steps as fit in this time."),
    lora: bool = typer.Option(
        False, "--lora", help="Train an adapter beside the frozen model (lora.rank=16 ...)."
    ),
    prompt: bool = typer.Option(
        False,
        "--prompt",
        help="Train vectors before every text, not the model (prompt.num_virtual_tokens=20 ...).",
    ),
    patience: int | None = typer.Option(
        None,
        help="Stop after this many measurements of held-out rows without a gain; the best weights are kept.",
    ),
    protect: bool = typer.Option(False, "--protect", help="Hold the model to what it knew (replay, kl)."),
    parallel: str | None = typer.Option(
        None, help="How several processes (torchrun) share a model: ddp or fsdp. (default: ddp)"
    ),
    config: Path | None = typer.Option(None, help="A YAML file with settings."),
    skip_bad: bool = typer.Option(
        False, "--skip-bad", help="Leave bad lines of the files, and rows that are too long, out."
    ),
    tensorboard: bool = typer.Option(
        False, "--tensorboard", help="Write TensorBoard files in the run's folder too."
    ),
    plan: bool = typer.Option(False, "--plan", help="Only tell what it would take."),
    json: bool = JSON_OPTION,
) -> None:
    """Tune a model on instructions, and tell what it learnt and what it forgot."""
    from yunque.configuration import resolve
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import instruction_dataset
    from yunque.evaluate.tuning import general_datasets, tune_with_report
    from yunque.train import TuneSettings, plan_tuning, tuning_rows
    from yunque.workspace import Workspace

    if lora and prompt:
        raise UserError("--lora and --prompt exclude each other: one adapter is trained at a time")
    workspace = Workspace.open()
    options: dict[str, Any] = {
        "name": name,
        "epochs": epochs,
        "seconds": seconds,
        "lora": {} if lora else None,
        "prompt": {} if prompt else None,
        "early_stopping": None if patience is None else {"patience": patience},
        "protect": True if protect else None,
        "parallel": parallel,
        "tensorboard": tensorboard or None,
    }
    settings = resolve(TuneSettings, config, overrides or [], **options)
    skipped: list[str] = []

    def leave_out(sentence: str) -> None:
        skipped.append(sentence)
        warn(f"left out: {sentence}")

    on_bad = leave_out if skip_bad else None
    training = [instruction_dataset(workspace, each, "train", on_bad) for each in data]
    training = training or [shipped_instructions(workspace)]
    if plan:
        rows = [tuning_rows(workspace, dataset) for dataset in training]
        planned = plan_tuning(workspace, model, rows, settings, note, on_bad)
        emit(planned.as_dict(), json, lambda console: console.print("\n".join(planned.sentences())))
        return
    if held_out:
        tests = instruction_dataset(workspace, held_out, held_out_split, on_bad)
    else:
        having = [dataset for dataset in training if f"{held_out_split}.jsonl" in dataset.files]
        tests = having[0] if having else shipped_instructions(workspace)
    texts = [workspace.get(ref, "dataset") for ref in general or []] or general_datasets(workspace, model)
    others = [instruction_dataset(workspace, each, "heldout", on_bad) for each in other]
    if not texts:
        warn(f"forgetting is not measured: {model} has no dataset with a test split; name one with --general")
    tuned, made, report = tune_with_report(
        workspace, model, training, tests, texts, settings, bars, note, on_bad, held_out_split, others or None
    )
    value = {"model": tuned.ref, "report": made.ref, **report, "skipped": len(skipped)}
    emit(value, json, lambda console: render(console, report))
    note(f"the {tuned.kind} is {tuned.ref}, the report {made.ref}")


def render(console: Console, report: dict[str, Any]) -> None:
    """Draw the report of a tuning."""
    from yunque.evaluate import tuning_report as told

    title = "Held-out rows, per cent with 95 % intervals; changes are paired"
    console.print(table(title, told.COLUMNS, told.task_rows(report["tasks"]), right=told.COLUMNS[1:]))
    if report["others"]:
        rows = told.task_rows(report["others"]["tasks"])
        console.print(table("Tasks not tuned on", told.COLUMNS, rows, right=told.COLUMNS[1:]))
    sentences = [told.learnt(report), *told.forgotten(report), told.cost(report)]
    console.print("\n".join(sentences), markup=False)
    for what, ref, digest in told.lineage(report):
        console.print(f"From: {what} {ref} {digest[:12]}", markup=False)
