"""`yunque quantize`: make a model a quarter of its size."""

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, size, table


def quantize(
    model: str = typer.Argument(help="The model: NAME or model/NAME@VERSION."),
    name: str | None = typer.Option(None, help="The name of the int8 model. [default: MODEL-int8]"),
    data: str | None = typer.Option(
        None, help="Measure on the test split of this dataset. [default: those the model was trained on]"
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep a model's weights as int8, and measure what is lost."""
    from yunque.train import quantize as quantize_artifact
    from yunque.workspace import Workspace

    made = quantize_artifact(Workspace.open(), model, name, data, bars)

    def render(console: Console) -> None:
        figures = made.figures
        before, after = figures["bytes_before"], figures["bytes_after"]
        rows = [
            ("weights", size(before), size(after), f"{after / before - 1:+.1%}"),
            (
                "perplexity",
                f"{figures['perplexity_before']:.3f}",
                f"{figures['perplexity_after']:.3f}",
                f"{figures['perplexity_after'] / figures['perplexity_before'] - 1:+.2%}",
            ),
        ]
        console.print(
            table(made.ref, ("", "before", "int8", "change"), rows, right=("before", "int8", "change"))
        )
        console.print(f"perplexity on the test split of {', '.join(figures['measured_on'])}", style="dim")

    emit(made.as_dict(), as_json, render)
