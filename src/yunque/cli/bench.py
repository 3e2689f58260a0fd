"""`yunque bench`: how fast this machine runs a model, and how far that is from what it could."""

from typing import Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, table
from yunque.errors import UserError

_COLUMNS = ("kind", "task", "tokens/s", "ms", "floor, ms", "of the floor")


def bench(
    model: str | None = typer.Option(None, help="A model of the workspace: NAME or model/NAME@VERSION."),
    shape: str | None = typer.Option(
        None,
        help="Random weights of this shape instead: smollm2-135m, smollm2-360m, llama-3.2-1b, tiny. "
        "(default: smollm2-135m)",
    ),
    threads: int | None = typer.Option(None, min=1, max=1024, help="Use so many cores. (default: all)"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Tokens a second of this machine in float32, INT8 and INT4, beside what its memory and processor allow."""
    if model is not None and shape is not None:
        raise UserError("--model and --shape: measure one or the other")
    import torch

    from yunque.generate.bench import measure, measure_machine, model_of_shape

    if threads is not None:
        torch.set_num_threads(threads)
    measured_model = model_of_shape(shape or "smollm2-135m") if model is None else _open(model)
    machine = measure_machine(torch.get_num_threads())
    found = list(measure(measured_model, machine, bars))
    value = {
        "model": model or shape or "smollm2-135m",
        "machine": vars(machine),
        "measured": [one.as_dict() for one in found],
    }
    emit(value, as_json, lambda console: _render(console, value))


def _open(ref: str) -> Any:
    import torch

    from yunque.model import load_model
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    return load_model(workspace.files(workspace.get(ref, "model")), torch.float32)


def _render(console: Console, value: dict[str, Any]) -> None:
    rows = [
        (
            one["kind"],
            one["task"],
            f"{one['tokens_per_second']:.1f}",
            f"{1000 * one['seconds']:.2f}",
            f"{1000 * one['floor_seconds']:.2f}",
            f"{one['of_the_floor']:.0%}",
        )
        for one in value["measured"]
    ]
    console.print(table(value["model"], _COLUMNS, rows, right=_COLUMNS[2:]))
    machine = value["machine"]
    console.print(
        f"threads: {machine['threads']}; {machine['instructions'] or 'PyTorch (no native step)'}; memory "
        f"{machine['bytes_per_second'] / 1e9:.1f} GB/s; INT8 {machine['integer_products_per_second'] / 1e9:.0f} and "
        f"float32 {machine['float_products_per_second'] / 1e9:.0f} G products and sums a second",
        style="dim",
    )
