"""`yunque train`: pre-train a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note


def train(
    overrides: list[str] | None = typer.Argument(
        None,
        metavar="[FIELD=VALUE]...",
        help="Settings, such as model.layers=6 optimizer.learning_rate=0.002.",
    ),
    family: str | None = typer.Option(
        None,
        help="llama, mistral, qwen2, qwen3, gpt2, falcon or rnn learn the next token; t5, transformer or "
        "rnn-seq2seq to fill in spans that were taken out. (default: llama)",
    ),
    data: list[str] = typer.Option(
        [], "--data", help="A dataset; may be given several times. (default: what the tokenizer learned from)"
    ),
    tokenizer: str | None = typer.Option(None, help="The tokenizer. (default: the only one there is)"),
    name: str | None = typer.Option(None, help="The name of the model. (default: mini)"),
    seconds: float | None = typer.Option(None, help="Train about this long. (default: 90)"),
    steps: int | None = typer.Option(None, help="Train this many steps, however long it takes."),
    parallel: str | None = typer.Option(
        None, help="How several processes (torchrun) share a model: ddp or fsdp. (default: ddp)"
    ),
    tensorboard: bool = typer.Option(
        False, "--tensorboard", help="Write TensorBoard files in the run's folder too."
    ),
    config: Path | None = typer.Option(None, help="A YAML file of settings."),
    plan: bool = typer.Option(False, "--plan", help="Only tell what it would take."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Pre-train a model, or go on where the same command was stopped."""
    from yunque.configuration import resolve
    from yunque.errors import UserError
    from yunque.train import PretrainSettings, plan_pretraining, pretrain
    from yunque.workspace import Workspace

    if seconds is not None and steps is not None:
        raise UserError("--seconds and --steps exclude each other: give one of them")
    settings = resolve(
        PretrainSettings,
        config,
        [*([f"model.family={family}"] if family else []), *(overrides or ())],
        data=data or None,
        tokenizer=tokenizer,
        name=name,
        seconds=seconds,
        steps=steps,
        parallel=parallel,
        tensorboard=tensorboard or None,
    )
    workspace = Workspace.open()
    if plan:
        planned = plan_pretraining(workspace, settings, bars)
        emit(planned.as_dict(), as_json, lambda console: console.print("\n".join(planned.sentences())))
        return
    made = pretrain(workspace, settings, bars, note)
    curves = workspace.runs / made.config["run"] / "curves.png"
    emit(made.as_dict(), as_json, lambda console: _render(console, made.ref, made.figures, curves))


def _render(console: Console, ref: str, figures: Mapping[str, Any], curves: Path) -> None:
    validation = f", validation loss {figures['validation_loss']:.3f}" if "validation_loss" in figures else ""
    console.print(
        f"{ref}: {figures['parameters'] / 1e6:.2f} million parameters, {figures['steps']:,} steps, "
        f"{figures['tokens']:,} tokens in {figures['seconds']:.0f} s; loss {figures['loss']:.3f}{validation}"
    )
    console.print(f"Curves: {curves}", style="dim", markup=False)
