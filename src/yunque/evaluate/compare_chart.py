"""A picture of a comparison: quality with its interval, what answers cost, how long they take, where texts go."""

from collections.abc import Sequence
from pathlib import Path

from yunque.errors import UserError
from yunque.evaluate.compare import Compared
from yunque.evaluate.model_list import PRIVACY

_COLORS = ("#2a9d8f", "#457b9d", "#e9a23b", "#c8553d")
_UNKNOWN = "#888888"


def draw_comparison(path: Path, compared: Sequence[Compared], task: str, metric: str) -> None:
    """Draw into a PNG, SVG or PDF; raises UserError where that cannot be."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path}: a picture is a .png, .svg or .pdf")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [each for each in compared if each.score is not None][::-1]
    if not shown:
        raise UserError(f"{path}: there is nothing to draw: no model answered")
    names = [each.model for each in shown]
    colors = dict(zip(PRIVACY, _COLORS, strict=True))
    bars = [colors.get(each.privacy, _UNKNOWN) for each in shown]
    figure = Figure(figsize=(12, 1.9 + 0.5 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    quality, cost, latency = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    scores = [each.score or 0.0 for each in shown]
    spread = [
        [score - (each.low or 0.0) for score, each in zip(scores, shown, strict=True)],
        [(each.high or 0.0) - score for score, each in zip(scores, shown, strict=True)],
    ]
    quality.barh(names, scores, xerr=spread, color=bars, height=0.6, ecolor="#333333", capsize=3)
    quality.set_xlim(0, 1.0)
    quality.set_xlabel(f"{metric}, with its 95 % interval")
    _bars(cost, names, [each.usd_for_1000 for each in shown], bars, "$ for 1,000 answers", "{:.3g}")
    _bars(latency, names, [each.seconds for each in shown], bars, "median seconds", "{:.2g} s")
    met = {each.privacy for each in shown}
    legend = [Patch(color=color, label=f"a text {words}") for words, color in colors.items() if words in met]
    if met - set(colors):
        legend.append(Patch(color=_UNKNOWN, label="what happens to a text is not known"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    figure.suptitle(f"{task}: {max(each.answered for each in shown)} questions")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def _bars(
    axis: object, names: list[str], values: list[float | None], colors: list[str], label: str, form: str
) -> None:
    known = [value or 0.0 for value in values]
    drawn = axis.barh(names, known, color=colors, height=0.6)  # type: ignore[attr-defined]  # no types
    words = ["not known" if value is None else form.format(value) for value in values]
    axis.bar_label(drawn, words, padding=3)  # type: ignore[attr-defined]
    axis.set_xlim(0, 1.35 * max(known) or 1.0)  # type: ignore[attr-defined]
    axis.set_xlabel(label)  # type: ignore[attr-defined]
