"""Scaling: loss against parameters and tokens, a power law through them, and the best size for a budget.

python examples/scaling/run.py
"""

import math
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from power_law import Point, PowerLaw, fit, intervals
from recipe import Options, Outcome, Table, run_recipe, text_dataset

from yunque.cli.show import bars
from yunque.data.dataset import read_rows
from yunque.data.prepare import add, split
from yunque.data.split import SPLITS
from yunque.errors import UserError
from yunque.tokenizer.training import train_tokenizer
from yunque.train import PretrainSettings, pretrain
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings
from yunque.workspace import Artifact, Workspace

SIZES = (16, 32, 64, 128)
# Tokens in units of 1,024; the law is fitted without the last column, which then shows whether it foretells.
TOKENS = (64, 128, 256, 512)
FORETOLD = 832
CONTEXT, ROWS = 128, 4
VOCABULARY = 512


def _dataset(options: Options) -> Artifact:
    """The text: files of the user's, else the documentation that comes with every Python."""
    workspace = options.workspace
    if options.quick and options.data is None:
        with as_file(files("yunque") / "samples" / "airline") as folder:
            made, _ = add(workspace, "text", [folder], progress=bars)
    else:
        made, _ = add(workspace, "text", [options.data or "python:docs"], progress=bars)
    rows = [row for row in read_rows(workspace, made) if row.text]
    if len({row.group for row in rows}) >= len(SPLITS):
        return split(workspace, made.ref, progress=bars)
    # A split keeps the rows of a file together. Of one file the end is held out.
    texts = [row.text for row in rows]
    cuts = [0, round(0.9 * len(texts)), round(0.95 * len(texts)), len(texts)]
    parts = (texts[first:last] for first, last in pairwise(cuts))
    return text_dataset(workspace, "text-in-parts", dict(zip(SPLITS, parts, strict=True)))


def _train(workspace: Workspace, data: Artifact, tokenizer: Artifact, size: int, steps: int) -> Point:
    """One model of this size, with a learning rate that comes down to its own last step."""
    settings = PretrainSettings(
        name=f"size-{size}",
        data=(data.ref,),
        tokenizer=tokenizer.ref,
        model=ModelSettings(
            hidden_size=size,
            intermediate_size=8 * round(size / 3),
            layers=2,
            heads=max(2, size // 32),
            key_value_heads=max(2, size // 32),
            context=CONTEXT,
        ),
        optimizer=OptimizerSettings(learning_rate=0.08 / math.sqrt(size)),
        batch_size=ROWS,
        steps=steps,
        validate_every=steps,
        validation_windows=8 if steps < 16 else 256,
        precision="float32",
    )
    figures = pretrain(workspace, settings, bars).figures
    if "validation_loss" not in figures:
        raise UserError("the data is too small: no text is left to measure the loss on")
    return Point(figures["parameters"], figures["tokens"], figures["validation_loss"])


def _grid_table(grid: Sequence[Sequence[Point]], law: PowerLaw) -> Table:
    amounts = (f"{point.tokens / 1000:,.0f}k tokens" for point in grid[0])
    rows = [
        [
            f"{points[0].parameters:,.0f}",
            *(f"{point.loss:.3f}" for point in points),
            f"{law.loss(points[-1].parameters, points[-1].tokens):.3f}",
        ]
        for points in grid
    ]
    columns = ("parameters", *amounts, "foretold for the last")
    return Table("Loss on text that was not trained on, in nats a token", columns, rows)


def _law_table(law: PowerLaw, spread: dict[str, tuple[float, float]]) -> Table:
    rows = [
        [name, f"{getattr(law, name):.3f}", f"{spread[name][0]:.3f} to {spread[name][1]:.3f}", meaning]
        for name, meaning in (
            ("E", "loss that no size and no data would take away"),
            ("a", "how soon a larger model helps: E + A / N^a"),
            ("b", "how soon more tokens help: + B / D^b"),
        )
    ]
    return Table("The power law", ("number", "value", "95 % interval", "what it is"), rows)


def _budget_table(law: PowerLaw, points: Sequence[Point]) -> Table:
    most = max(point.flops for point in points)
    rows = []
    for flops in (most / 100, most / 10, most, 10 * most):
        parameters, tokens = law.optimal(flops)
        within = [point for point in points if point.flops <= flops * 1.001]
        best = min(within, key=lambda point: point.loss, default=None)
        measured = f"{best.loss:.3f} ({best.parameters / 1000:,.0f}k parameters)" if best else "none"
        rows.append(
            [
                f"{flops / 1e9:,.0f}",
                f"{parameters / 1000:,.0f}k",
                f"{tokens / 1000:,.0f}k",
                f"{law.loss(parameters, tokens):.3f}",
                measured if flops <= most * 1.001 else "not run",
            ]
        )
    columns = (
        "budget, GFLOP",
        "best size",
        "tokens",
        "loss by the law",
        "best of the runs within the budget",
    )
    return Table("The best size for a budget", columns, rows)


def _draw(path: Path, grid: Sequence[Sequence[Point]], law: PowerLaw, known: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [point for row in grid for point in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in grid:
        xs = [point.tokens for point in row]
        (line,) = left.plot(xs, [law.loss(row[0].parameters, x) for x in xs], lw=1)
        color = line.get_color()
        left.scatter(
            xs[:known], [p.loss for p in row[:known]], color=color, label=f"{row[0].parameters:,.0f}"
        )
        left.scatter(xs[known:], [p.loss for p in row[known:]], facecolors="none", edgecolors=color)
    left.set(
        xscale="log",
        xlabel="tokens",
        ylabel="loss, nats a token",
        title="Dots: measured (hollow: not fitted)",
    )
    left.legend(title="parameters")
    most = max(point.flops for point in points)
    sizes = [min(p.parameters for p in points) * 1.1**n for n in range(48)]
    sizes = [n for n in sizes if n <= 4 * max(p.parameters for p in points)]
    for flops in (most / 100, most / 10, most):
        right.plot(sizes, [law.loss(n, flops / 6 / n) for n in sizes], label=f"{flops / 1e9:,.0f} GFLOP")
        best = law.optimal(flops)
        right.scatter([best[0]], [law.loss(*best)], marker="*", s=90, color="black", zorder=3)
    right.set(
        xscale="log", xlabel="parameters", ylabel="loss by the law", title="Stars: the best size for a budget"
    )
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def experiment(options: Options) -> Outcome:
    """Train every size on every amount of text, and fit the law."""
    workspace, data = options.workspace, _dataset(options)
    sizes = (16, 32) if options.quick else SIZES
    amounts = (1, 2, 3) if options.quick else (*TOKENS, FORETOLD)
    known = len(amounts) - 1
    tokenizer = train_tokenizer(workspace, "pieces", [data.ref], VOCABULARY)
    a_step = CONTEXT * ROWS
    grid = [
        [
            _train(workspace, data, tokenizer, size, max(1, round(amount * 1024 * options.scale) // a_step))
            for amount in amounts
        ]
        for size in sizes
    ]
    fitted = [point for row in grid for point in row[:known]]
    law = fit(fitted)
    spread = intervals(fitted, law, 20 if options.quick else 200)
    points = [point for row in grid for point in row]
    chart = workspace.root / "scaling.png"
    _draw(chart, grid, law, known)
    misses = [abs(law.loss(row[-1].parameters, row[-1].tokens) - row[-1].loss) for row in grid]
    share = law.b / (law.a + law.b)
    findings = [
        f"The last column was not fitted: the law foretells it to {max(misses):.3f} nats a token "
        f"(mean {sum(misses) / len(misses):.3f}).",
        f"With ten times the budget the best model has {10**share:.1f} times the parameters "
        f"and reads {10 ** (1 - share):.1f} times the tokens.",
    ]
    tables = [_grid_table(grid, law), _law_table(law, spread), _budget_table(law, points)]
    figures = {name: getattr(law, name) for name in ("E", "A", "B", "a", "b")}
    return Outcome(tables, findings, [chart], figures)


if __name__ == "__main__":
    run_recipe("scaling", __doc__, experiment, "text to train on, a file or a folder")
