"""`yunque quantize`: make a model a quarter of its size, or an eighth, and see what it costs."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, size, table
from yunque.errors import UserError

_KINDS = ("int8", "int4", "float16", "bfloat16")
_GROUP_SIZES = (32, 64, 128)


def quantize(
    model: str = typer.Argument(help="The model: NAME or model/NAME@VERSION."),
    to: str = typer.Option("int8", "--to", help=f"{', '.join(_KINDS)}."),
    group_size: int | None = typer.Option(
        None, help="int4: so many neighbours share a scale; 32, 64 or 128. (default: 64)"
    ),
    name: str | None = typer.Option(None, help="The name of what is made. (default: MODEL-int8, ...)"),
    data: str | None = typer.Option(
        None, help="Measure on this dataset. (default: the test splits of what the model was trained on)"
    ),
    text: Path | None = typer.Option(None, help="Measure on this text file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep a model's weights in fewer bits, and measure what is lost."""
    if to not in _KINDS:
        raise UserError(f"--to {to}: there are {', '.join(_KINDS)}")
    if group_size is not None and (to != "int4" or group_size not in _GROUP_SIZES):
        raise UserError("--group-size is for --to int4, and is 32, 64 or 128")
    from yunque.train import quantize as quantize_artifact
    from yunque.workspace import Workspace

    made = quantize_artifact(Workspace.open(), model, to, group_size or 64, name, data, text, bars)
    emit(made.as_dict(), as_json, lambda console: _render(console, made.ref, to, made.figures))
    if made.figures["perplexity_before"] is None:
        note(
            "perplexity was not measured: name a dataset with --data or a file with --text that suits the model"
        )


def _render(console: Console, ref: str, kind: str, figures: dict[str, Any]) -> None:
    before, after = figures["bytes_before"], figures["bytes_after"]
    rows = [("weights", size(before), size(after), f"{after / before - 1:+.1%}")]
    if figures["linear_ratio"] is not None:
        rows.append(("linear layers, of FP32", "", f"{figures['linear_ratio']:.4f}x", ""))
    if figures["perplexity_before"] is not None:
        was, now = figures["perplexity_before"], figures["perplexity_after"]
        rows.append(("perplexity", f"{was:.3f}", f"{now:.3f}", f"{figures['perplexity_change']:+.3%}"))
    rows.append(("error of the outputs", "", f"{figures['output_error']:.2%}", ""))
    console.print(table(ref, ("", "before", kind, "change"), rows, right=("before", kind, "change")))
    worst = [
        (
            layer["name"],
            f"{layer['rows']} x {layer['columns']}",
            size(layer["bytes_after"]),
            f"{layer['weight_error']:.2%}",
            f"{layer['largest_weight_error']:.4f}",
            "-" if layer["output_error"] is None else f"{layer['output_error']:.2%}",
            "-" if layer["largest_output_error"] is None else f"{layer['largest_output_error']:.4f}",
        )
        for layer in figures["worst_layers"]
    ]
    columns = ("layer", "shape", "bytes", "weights", "largest", "outputs", "largest output")
    title = f"The largest errors of {figures['layers']} layers"
    console.print(table(title, columns, worst, right=columns[1:]))
    if figures["measured_on"]:
        console.print(f"perplexity on {', '.join(figures['measured_on'])}", style="dim")
