"""The curves of a run: loss.jsonl read back, and drawn."""

import io
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss.jsonl, one for each step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_curves(log: list[dict[str, Any]], title: str) -> bytes:
    """A PNG of training and validation loss over the tokens read."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [line["tokens"] for line in log],
        [line["loss"] for line in log],
        color="tab:blue",
        linewidth=0.8,
        alpha=0.7,
        label="training",
    )
    measured = [line for line in log if "validation_loss" in line]
    if measured:
        axes.plot(
            [line["tokens"] for line in measured],
            [line["validation_loss"] for line in measured],
            color="tab:orange",
            marker="o",
            label="validation",
        )
    axes.set(title=title, xlabel="tokens read", ylabel="loss (nats a token)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()
