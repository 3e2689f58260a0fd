"""Who looks at whom: the attention of every head of a model, on a text of yours.

Shapes: L layers, N heads, T tokens that look, S tokens looked at.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.lab.opening import Opened
from yunque.lab.pictures import new_figure
from yunque.model import AttentionRecord, CausalModel, Encoder, EncoderDecoder, record_attention

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


@dataclass(frozen=True)
class AttentionPart:
    """One kind of attention of a model, layer by layer: "self", "encoder", "decoder" or "cross" (decoder to encoder).

    `layers` are weights [N, T, S] whose rows sum to 1; row t is where token t looks. `lookers` and `looked_at` are
    the labels of the T and S tokens; `names` the modules, one for each layer.
    """

    part: str
    layers: tuple[Tensor, ...]
    lookers: tuple[str, ...]
    looked_at: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def heads(self) -> int:
        """N; a model whose layers differ has as many columns as its widest layer."""
        return max(len(weights_NTS) for weights_NTS in self.layers)


@dataclass(frozen=True)
class HeadHabit:
    """Where a head looks on average: at the token itself, the one before it, the first one, and how widely (bits)."""

    itself: float | None
    before: float | None
    first: float
    entropy_bits: float


def habit_of(weights_TS: Tensor, own_text: bool = True) -> HeadHabit:
    """The habit of one head; `own_text` is False for attention to another text, where "itself" means nothing.

    The first token is not counted where others are: it can only look at itself.
    """
    T = len(weights_TS)
    rows = slice(1, None) if own_text and T > 1 else slice(None)
    safe_TS = weights_TS.double().clamp(min=1e-300)
    entropy_T = -(weights_TS.double() * safe_TS.log2()).sum(-1)
    itself = before = None
    if own_text:
        itself = float(weights_TS.diagonal()[rows].mean())
        before = float(weights_TS.diagonal(-1).mean()) if T > 1 else 0.0
    return HeadHabit(itself, before, float(weights_TS[rows, 0].mean()), float(entropy_T[rows].mean()))


@dataclass(frozen=True)
class AttentionView:
    """The attention of a model on a text: its parts in the order in which the model has them."""

    model: str
    parts: tuple[AttentionPart, ...]

    def select(
        self, part: str | None = None, layer: int | None = None, head: int | None = None
    ) -> "AttentionView":
        """Only this part, layer and head (numbers from 0). Raises UserError where the model has no such one."""
        parts = [one for one in self.parts if part in (None, one.part)]
        if not parts:
            known = ", ".join(one.part for one in self.parts)
            raise UserError(f"{self.model} has no part {part!r} here (it has: {known})")
        return AttentionView(self.model, tuple(self._narrowed(one, layer, head) for one in parts))

    def _narrowed(self, part: AttentionPart, layer: int | None, head: int | None) -> AttentionPart:
        layers, names = part.layers, part.names
        if layer is not None:
            _check_number(f"layer of {self.model}", layer, len(layers))
            layers, names = layers[layer : layer + 1], names[layer : layer + 1]
        if head is not None:
            _check_number(f"head of {self.model}", head, min(len(weights_NTS) for weights_NTS in layers))
            layers = tuple(weights_NTS[head : head + 1] for weights_NTS in layers)
        return AttentionPart(part.part, layers, part.lookers, part.looked_at, names)

    def as_dict(self) -> dict[str, Any]:
        """Every weight and every head's habit, for JSON."""
        return {
            "model": self.model,
            "parts": [
                {
                    "part": one.part,
                    "lookers": list(one.lookers),
                    "looked_at": list(one.looked_at),
                    "layers": [
                        {
                            "name": name,
                            "heads": [
                                {
                                    "habit": vars(habit_of(weights_TS, one.part != "cross")),
                                    "weights": weights_TS.tolist(),
                                }
                                for weights_TS in weights_NTS
                            ],
                        }
                        for name, weights_NTS in zip(one.names, one.layers, strict=True)
                    ],
                }
                for one in self.parts
            ],
        }


def _check_number(what: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        told = f"they are numbered from 0 to {count - 1}" if count > 1 else "there is only number 0"
        raise UserError(f"there is no {what} with number {number}: {told}")


@torch.inference_mode()
def look(opened: Opened, text: str, target: str | None = None) -> AttentionView:
    """Run the model on `text` and keep where every head looks.

    An encoder-decoder reads `text` and is given `target` as its answer so far; other models take no target. Raises
    UserError for an empty text, one that does not fit, and a model without attention.
    """
    ids, target_ids = opened.ids(text), _target_ids(opened, target)
    model, input_ids = opened.model, torch.tensor([ids])
    with record_attention(model) as records:
        if isinstance(model, EncoderDecoder):
            model.decode(torch.tensor([target_ids]), model.encode(input_ids))
        elif isinstance(model, CausalModel | Encoder):
            model.hidden(input_ids)
    if not records:
        raise UserError(f"{opened.name} is a recurrent network: it has no attention to look at")
    labels = tuple(opened.label(id) for id in ids)
    return AttentionView(
        opened.name, group_records(records, labels, tuple(opened.label(id) for id in target_ids))
    )


def _target_ids(opened: Opened, target: str | None) -> list[int]:
    if not isinstance(opened.model, EncoderDecoder):
        if target is not None:
            raise UserError(f"{opened.name} has no decoder beside an encoder: leave the target out")
        return []
    answer = opened.tokenizer.encode(target) if target else []
    return opened.checked([opened.start_id, *answer], "target")


def group_records(
    records: Sequence[AttentionRecord], source: Sequence[str], target: Sequence[str] = ()
) -> tuple[AttentionPart, ...]:
    """Records of one text (a batch of 1), gathered into the parts of the model.

    `source` and `target` are the labels of the tokens that were read and, in an encoder-decoder, written.
    """
    groups: dict[str, list[AttentionRecord]] = {}
    for record in records:
        groups.setdefault(_LAYER.sub("", record.name), []).append(record)
    parts: list[AttentionPart] = []
    for path, found in groups.items():
        part = _part_named(path) if target else "self"
        layers = tuple(record.weights_BNTS[0].float() for record in found)
        lookers = source if part in ("self", "encoder") else target
        looked_at = target if part == "decoder" else source
        parts.append(
            AttentionPart(part, layers, tuple(lookers), tuple(looked_at), tuple(one.name for one in found))
        )
    return tuple(parts)


def _part_named(path: str) -> str:
    """The part that a module's path tells of: `decoder.layers.cross_attention` is "cross"."""
    if "cross" in path:
        return "cross"
    return "encoder" if "encoder" in path.split(".")[0] else "decoder"


_TITLES = {
    "self": "where each token (row) looks",
    "encoder": "encoder: where each token of the text (row) looks",
    "decoder": "decoder: where each token of the answer (row) looks in the answer",
    "cross": "cross: where each token of the answer (row) looks in the text",
}
# Inches; a token's name below the smallest size cannot be read, so it is left out.
_WIDEST, _LARGEST_TILE, _SMALLEST_TILE, _SMALLEST_CELL, _SMALLEST_TEXT = 20.0, 6.0, 0.55, 0.085, 4.6
_MOST_NUMBERS = 16
# A tile and the gap after it, in tiles.
_GAP = 1.07


def draw_attention(view: AttentionView, first_layer: int = 0, first_head: int = 0) -> "Figure":
    """A tile for each head, a row of tiles for each layer, one part below the other; darker is more.

    `first_layer` and `first_head` are the numbers on the first tile, for a view that was narrowed.
    """
    sizes = [_tile_size(part) for part in view.parts]
    shapes = list(zip(view.parts, sizes, strict=True))
    widths = [1.3 + _room(part.lookers) + part.heads * _GAP * width for part, (width, _) in shapes]
    heights = [1.1 + _room(part.looked_at) + len(part.layers) * _GAP * height for part, (_, height) in shapes]
    figure = new_figure(max(6.2, *widths), sum(heights) + 0.3)
    rows = figure.subfigures(len(view.parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, size, row in zip(view.parts, sizes, rows, strict=True):
        _draw_part(row, part, size, (first_layer, first_head))
    figure.suptitle(f"Attention of {view.model}", fontsize=13, weight="bold", parse_math=False)
    return figure


def _room(labels: Sequence[str]) -> float:
    """Inches for the longest of the tokens' names."""
    return 0.078 * max(map(len, labels))


def _tile_size(part: AttentionPart) -> tuple[float, float]:
    """Width and height in inches of a head's tile: large enough for the tokens' names where all of it fits."""
    T, S = len(part.lookers), len(part.looked_at)
    longest = max(T, S)
    if part.heads * len(part.layers) == 1:
        cell = min(max(0.5, 2 / longest), max(_LARGEST_TILE / longest, _SMALLEST_CELL), _WIDEST / longest)
    else:
        most = min(_LARGEST_TILE, max(_SMALLEST_TILE, _WIDEST / max(part.heads, len(part.layers))))
        cell = min(0.2, most / longest)
    return S * cell, T * cell


def _draw_part(figure: Any, part: AttentionPart, size: tuple[float, float], first: tuple[int, int]) -> None:
    import numpy
    from matplotlib.colors import PowerNorm

    T, S = len(part.lookers), len(part.looked_at)
    gap_T, gap_S = (max(1, round(count * (_GAP - 1))) for count in (T, S))
    canvas = numpy.full((len(part.layers) * (T + gap_T) - gap_T, part.heads * (S + gap_S) - gap_S), numpy.nan)
    for layer, weights_NTS in enumerate(part.layers):
        for head, weights_TS in enumerate(weights_NTS.numpy()):
            top, left = layer * (T + gap_T), head * (S + gap_S)
            canvas[top : top + T, left : left + S] = weights_TS
    axes = figure.subplots()
    axes.set_facecolor("#dfe4ea")
    # The square root of a weight is drawn: small ones are seen too.
    drawn = axes.imshow(
        canvas, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="equal", interpolation="nearest"
    )
    axes.set_title(_TITLES[part.part], fontsize=10, pad=22)
    axes.set_anchor("W")
    axes.spines[:].set_visible(False)
    _name_tokens(axes, part, size, (T + gap_T, S + gap_S))
    _name_heads(axes, part, (T + gap_T, S + gap_S), first)
    if canvas.size <= _MOST_NUMBERS**2 and part.heads * len(part.layers) == 1:
        _write_numbers(axes, canvas)
    across, down = part.heads * size[0], len(part.layers) * size[1]
    scale = axes.inset_axes((1 + 0.35 / across, max(0.0, 1 - 4 / down), 0.14 / across, min(1.0, 4 / down)))
    bar = figure.colorbar(drawn, cax=scale, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)


def _name_tokens(axes: Any, part: AttentionPart, size: tuple[float, float], step: tuple[int, int]) -> None:
    """The tokens' names beside the tiles of each layer and under those of each head."""
    S, T = len(part.looked_at), len(part.lookers)
    across = min(9.0, 0.82 * 72 * size[0] / S)
    down = min(9.0, 0.82 * 72 * size[1] / T)
    axes.set_xticks([])
    axes.set_yticks([])
    if across >= _SMALLEST_TEXT:
        places = [head * step[1] + place for head in range(part.heads) for place in range(S)]
        names = list(part.looked_at) * part.heads
        axes.set_xticks(places, names, rotation=90, fontsize=across, parse_math=False)
    if down >= _SMALLEST_TEXT:
        places = [layer * step[0] + place for layer in range(len(part.layers)) for place in range(T)]
        axes.set_yticks(places, list(part.lookers) * len(part.layers), fontsize=down, parse_math=False)
    else:
        axes.set_ylabel(f"{T} tokens", fontsize=9)
    if across < _SMALLEST_TEXT:
        axes.set_xlabel(f"{S} tokens: too many for their names; choose one head to read them", fontsize=9)
    axes.tick_params(length=0, pad=2)


def _name_heads(axes: Any, part: AttentionPart, step: tuple[int, int], first: tuple[int, int]) -> None:
    """ "head 3" above each column of tiles and "layer 2" at the right of each row."""
    S, T = len(part.looked_at), len(part.lookers)
    style = {"fontsize": 8, "color": "#333", "annotation_clip": False}
    for head in range(part.heads):
        middle = head * step[1] + (S - 1) / 2
        word = "head " if part.heads <= 14 else ""
        axes.annotate(
            f"{word}{first[1] + head}",
            (middle, -0.5),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            **style,
        )
    right = part.heads * step[1] - (step[1] - S) - 0.5
    for layer in range(len(part.layers)):
        middle = layer * step[0] + (T - 1) / 2
        axes.annotate(
            f"layer {first[0] + layer}",
            (right, middle),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            rotation=90,
            **style,
        )


def _write_numbers(axes: Any, canvas: Any) -> None:
    rows, columns = canvas.shape
    for row in range(rows):
        for column in range(columns):
            value = canvas[row, column]
            if value >= 0.005:
                colour = "white" if value > 0.4 else "#333"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
