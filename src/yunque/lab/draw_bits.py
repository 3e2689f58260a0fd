"""The picture of a number's bits in every format."""

from typing import TYPE_CHECKING, Any

from yunque.lab.bits import Held, as_formula, told_error, told_value
from yunque.lab.pictures import BLUE, GREEN, GREY, RED, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW, _GAP, _LEFT, _RIGHT = 2.7, 0.35, 6.0, 13.5


def draw_bits(number: str, held: list[Held]) -> "Figure":
    """A row of cells for each format: sign, exponent, fraction; how they make the value, and the error."""
    width = _LEFT + 32 + 2 * _GAP + _RIGHT
    height = _ROW * len(held) + 2.4
    figure = new_figure(13.2, 13.2 * height / width)
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    axes.text(
        0,
        0.9,
        f"{number} in the formats of a model",
        fontsize=15,
        weight="bold",
        va="center",
        parse_math=False,
    )
    _legend(axes, width)
    for row, one in enumerate(held):
        _draw_row(axes, one, 2.4 + row * _ROW)
    return figure


def _legend(axes: Any, width: float) -> None:
    for left, name, colour in ((14.5, "sign", RED), (10.5, "exponent", GREEN), (5, "fraction", BLUE)):
        x = width - left
        _cell(axes, x, 0.45, colour, "")
        axes.text(x + 1.3, 0.95, name, fontsize=10, va="center")


def _draw_row(axes: Any, held: Held, top: float) -> None:
    axes.text(0, top + 0.5, held.format, fontsize=12, weight="bold", va="center")
    axes.text(0, top + 1.55, held.hexadecimal, fontsize=8, va="center", color=GREY, family="DejaVu Sans Mono")
    x = _LEFT
    for bits, colour in ((held.sign, RED), (held.exponent, GREEN), (held.fraction, BLUE)):
        for bit in bits:
            _cell(axes, x, top, colour, bit)
            x += 1
        x += _GAP if bits else 0
    value = told_value(held)
    formula = f"{as_formula(held)}  =  {value}"
    axes.text(
        _LEFT,
        top + 1.55,
        formula.replace(" x ", " × ").replace(" - ", " − "),
        fontsize=9,
        va="center",
        color="#333",
    )
    right = _LEFT + 32 + 2 * _GAP + 0.9
    axes.text(right, top + 0.5, value, fontsize=12, va="center")
    told = told_error(held)
    axes.text(right, top + 1.55, told, fontsize=9, va="center", color="#333")


def _cell(axes: Any, x: float, y: float, colour: str, bit: str) -> None:
    from matplotlib.patches import Rectangle

    full = bit != "0"
    axes.add_patch(
        Rectangle((x + 0.05, y), 0.9, 1, facecolor=colour if full else "white", edgecolor=colour, linewidth=1)
    )
    axes.text(
        x + 0.5, y + 0.53, bit, ha="center", va="center", fontsize=10, color="white" if full else colour
    )
