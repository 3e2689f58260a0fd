"""`yunque tune`: teach a model to follow instructions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.evaluate.tuning import HeldOut
    from yunque.workspace import Artifact, Workspace

_MODEL = typer.Argument(help="The model to start from: NAME or model/NAME@VERSION.")
_OVERRIDES = typer.Argument(None, help="Settings as field.subfield=value.")
_DATA = typer.Option(
    [], "--data", help="Instruction rows, a file or a dataset; several are mixed. (default: the shipped ones)"
)
_HELD_OUT = typer.Option(
    None, help="Rows to measure on, a file or a dataset. (default: those of --data, else the shipped ones)"
)
_HELD_OUT_SPLIT = typer.Option("heldout", help="The split of them, such as unseen (of `yunque data tasks`).")
_GENERAL = typer.Option(
    [], help="Dataset of text to measure forgetting on. (default: what the model was trained on)"
)
_OTHER = typer.Option(
    [],
    "--other",
    help="Rows of other tasks, to measure what is forgotten. (default: what the model was tuned on)",
)
_NAME = typer.Option(None, help="The name of the tuned model. (default: MODEL-tuned)")
_EPOCHS = typer.Option(None, help="How often each row is seen. (default: 10)")
_SECONDS = typer.Option(None, help="At most as many steps as fit in this time.")
_LORA = typer.Option(False, "--lora", help="Train an adapter beside the frozen model (lora.rank=16 ...).")
_PROMPT = typer.Option(
    False,
    "--prompt",
    help="Train vectors before every text, not the model (prompt.num_virtual_tokens=20 ...).",
)
_PATIENCE = typer.Option(
    None,
    help="Stop after this many measurements of held-out rows without a gain; the best weights are kept.",
)
_PROTECT = typer.Option(False, "--protect", help="Hold the model to what it knew (replay, kl).")
_PARALLEL = typer.Option(
    None, help="How several processes (torchrun) share a model: ddp or fsdp. (default: ddp)"
)
_CONFIG = typer.Option(None, help="A YAML file with settings.")
_SKIP_BAD = typer.Option(
    False, "--skip-bad", help="Leave bad lines of the files, and rows that are too long, out."
)
_TENSORBOARD = typer.Option(False, "--tensorboard", help="Write TensorBoard files in the run's folder too.")
_PLAN = typer.Option(False, "--plan", help="Only tell what it would take.")


def tune(
    model: str = _MODEL,
    overrides: list[str] | None = _OVERRIDES,
    data: list[str] = _DATA,
    held_out: str | None = _HELD_OUT,
    held_out_split: str = _HELD_OUT_SPLIT,
    general: list[str] = _GENERAL,
    other: list[str] = _OTHER,
    name: str | None = _NAME,
    epochs: float | None = _EPOCHS,
    seconds: float | None = _SECONDS,
    lora: bool = _LORA,
    prompt: bool = _PROMPT,
    patience: int | None = _PATIENCE,
    protect: bool = _PROTECT,
    parallel: str | None = _PARALLEL,
    config: Path | None = _CONFIG,
    skip_bad: bool = _SKIP_BAD,
    tensorboard: bool = _TENSORBOARD,
    plan: bool = _PLAN,
    json: bool = JSON_OPTION,
) -> None:
    """Tune a model on instructions, and tell what it learnt and what it forgot."""
    from yunque.configuration import resolve
    from yunque.train import TuneSettings
    from yunque.workspace import Workspace

    if lora and prompt:
        raise UserError("--lora and --prompt exclude each other: one adapter is trained at a time")
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
    measured_on = (held_out, held_out_split, general, other)
    _run(Workspace.open(), model, data, measured_on, settings, skip_bad, plan, json)


def _run(
    workspace: "Workspace",
    model: str,
    data: Sequence[str],
    measured_on: tuple[str | None, str, Sequence[str], Sequence[str]],
    settings: Any,
    skip_bad: bool,
    plan: bool,
    as_json: bool,
) -> None:
    """Find the rows, tune (or only plan), and show the report."""
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import instruction_dataset
    from yunque.evaluate.tuning import tune_with_report
    from yunque.train import plan_tuning, tuning_rows

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
        emit(planned.as_dict(), as_json, lambda console: console.print("\n".join(planned.sentences())))
        return
    held_out = _held_out(workspace, model, training, measured_on, on_bad)
    tuned, made, report = tune_with_report(workspace, model, training, held_out, settings, bars, note, on_bad)
    value = {"model": tuned.ref, "report": made.ref, **report, "skipped": len(skipped)}
    emit(value, as_json, lambda console: render(console, report))
    note(f"the {tuned.kind} is {tuned.ref}, the report {made.ref}")


def _held_out(
    workspace: "Workspace",
    model: str,
    training: "Sequence[Artifact]",
    measured_on: tuple[str | None, str, Sequence[str], Sequence[str]],
    on_bad: Callable[[str], None] | None,
) -> "HeldOut":
    """What the options say to measure on: the held-out rows of all that is trained on, where nothing else is said."""
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import instruction_dataset
    from yunque.evaluate.tuning import HeldOut, general_datasets

    named, split, general, other = measured_on
    if named:
        tests = [instruction_dataset(workspace, named, split, on_bad)]
    else:
        tests = [dataset for dataset in training if f"{split}.jsonl" in dataset.files]
        without = [dataset.ref for dataset in training if dataset not in tests]
        if without and tests:
            warn(
                f"{', '.join(without)}: no rows are held out ({split}), so what is learnt of it is not measured"
            )
        tests = tests or [shipped_instructions(workspace)]
    texts = [workspace.get(ref, "dataset") for ref in general] or general_datasets(workspace, model)
    if not texts:
        warn(f"forgetting is not measured: {model} has no dataset with a test split; name one with --general")
    others = [instruction_dataset(workspace, each, "heldout", on_bad) for each in other]
    return HeldOut(tests, texts, split, others or None)


def render(console: Console, report: dict[str, Any]) -> None:
    """Draw the report of a tuning or an alignment."""
    from yunque.evaluate import tuning_report as told

    title = "Held-out rows, per cent with 95 % intervals; changes are paired"
    if report["tasks"]:
        console.print(table(title, told.COLUMNS, told.task_rows(report["tasks"]), right=told.COLUMNS[1:]))
    if report["others"]:
        rows = told.task_rows(report["others"]["tasks"])
        console.print(table("Tasks not tuned on", told.COLUMNS, rows, right=told.COLUMNS[1:]))
    sentences = [told.learnt(report), *told.forgotten(report), told.cost(report)]
    console.print("\n".join(sentences), markup=False)
    for what, ref, digest in told.lineage(report):
        console.print(f"From: {what} {ref} {digest[:12]}", markup=False)
