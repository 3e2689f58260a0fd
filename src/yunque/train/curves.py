"""The curves of a run, drawn from its log."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from yunque.train.log import read_log as read_log

_DOTS = 40
"""Fewer steps than this are drawn as dots on a line: one step alone is no line at all."""


def draw_curves(log: list[dict[str, Any]], title: str) -> bytes:
    """A PNG of training and validation loss over the tokens read, with learning rate and gradient norm below."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _line(loss, log, "loss", color="tab:blue", alpha=0.7, linewidth=0.8, label="training")
    if any("validation_loss" in line for line in log):
        _line(loss, log, "validation_loss", color="tab:orange", marker="o", label="validation")
    # A title is the user's: a dollar sign in it begins no formula.
    loss.set_title(title, parse_math=False, wrap=True)
    loss.set_ylabel("loss (nats a token)")
    loss.legend()
    _line(below, log, "learning_rate", color="tab:green", linewidth=1.2)
    below.set_ylabel("learning rate", color="tab:green")
    below.set_ylim(bottom=0)
    norms = below.twinx()
    _line(norms, log, "gradient_norm", color="tab:purple", alpha=0.6, linewidth=0.7)
    norms.set_ylabel("gradient norm", color="tab:purple")
    if all(line.get("gradient_norm", 0) > 0 for line in log):
        norms.set_yscale("log")
    below.set_xlabel("tokens read")
    below.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for axes in (loss, below):
        axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    return drawn.getvalue()


def _line(axes: Axes, log: list[dict[str, Any]], name: str, **style: Any) -> None:
    """One figure of the log over the tokens, where lines have it."""
    points = [(line["tokens"], line[name]) for line in log if name in line]
    if len(points) < _DOTS:
        style.setdefault("marker", ".")
    axes.plot([tokens for tokens, _ in points], [value for _, value in points], **style)
