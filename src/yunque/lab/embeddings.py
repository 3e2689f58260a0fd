"""How near words lie to one another in a model: cosines, the nearest tokens, and a map in two dimensions.

Shapes: W words, D hidden_size, V vocab_size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.lab.opening import Opened
from yunque.lab.pictures import BLUE, GREY, label, new_figure, plain_text
from yunque.model import Encoder, LanguageModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more words than this the names of their neighbours would cover one another.
_MOST_WITH_NEIGHBOUR_NAMES = 12


@dataclass(frozen=True)
class Neighbour:
    """A token of the vocabulary near a word."""

    token_id: int
    label: str
    cosine: float


@dataclass(frozen=True)
class WordMap:
    """Words and where they lie.

    `tokens` are those of each word (none where vectors are of whole texts); `cosines_WW` compares words; `places`
    [W + neighbours, 2] are the words and then their neighbours, word by word, on the two principal axes, which keep
    `kept` of the variance.
    """

    model: str
    words: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    cosines_WW: Tensor
    neighbours: tuple[tuple[Neighbour, ...], ...]
    places: Tensor
    kept: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "model": self.model,
            "words": [
                {
                    "word": word,
                    "tokens": list(tokens),
                    "x": float(self.places[number, 0]),
                    "y": float(self.places[number, 1]),
                    "nearest": [
                        {"id": one.token_id, "token": one.label, "cosine": one.cosine} for one in nearest
                    ],
                }
                for number, (word, tokens, nearest) in enumerate(
                    zip(self.words, self.tokens, self.neighbours, strict=True)
                )
            ],
            "cosines": self.cosines_WW.tolist(),
            "variance_kept": list(self.kept),
        }


def cosine_matrix(vectors_WD: Tensor) -> Tensor:
    """Cosine of every pair of vectors, [W, W]; a vector of zeros is like nothing."""
    directions_WD = F.normalize(vectors_WD.float(), dim=-1)
    return directions_WD @ directions_WD.T


def nearest_tokens(
    vectors_WD: Tensor, table_VD: Tensor, count: int, leave_out: Sequence[Sequence[int]] = ()
) -> list[list[tuple[int, float]]]:
    """For each vector the `count` tokens of highest cosine, with that cosine, nearest first.

    `leave_out` are, for each vector, ids that do not count: a word's own tokens.
    """
    # Divided by the lengths after the product: a large table is not copied.
    lengths_V = table_VD.norm(dim=-1).clamp(min=1e-12)
    cosines_WV = F.normalize(vectors_WD.to(table_VD.dtype), dim=-1) @ table_VD.T / lengths_V
    for row, ids in enumerate(leave_out):
        cosines_WV[row, list(ids)] = float("-inf")
    best = cosines_WV.float().topk(min(count, len(table_VD)))
    return [
        [(int(id), float(value)) for value, id in zip(values, ids, strict=True) if value > float("-inf")]
        for values, ids in zip(best.values, best.indices, strict=True)
    ]


def principal_map(vectors_WD: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Places [W, 2] on the two principal axes, and the share of the variance that each keeps (Pearson 1901).

    The sign of an axis is free; it is chosen so that the vector farthest along it lies on the positive side.
    """
    centred_WD = vectors_WD.double() - vectors_WD.double().mean(0)
    left, strengths, _ = torch.linalg.svd(centred_WD, full_matrices=False)
    places = F.pad(left * strengths, (0, 2))[:, :2]
    farthest = places.gather(0, places.abs().argmax(0, keepdim=True))
    total = float(strengths.square().sum()) or 1.0
    first, second = (F.pad(strengths, (0, 2))[:2].square() / total).tolist()
    return (places * torch.where(farthest < 0, -1.0, 1.0)).float(), (first, second)


def map_words(
    model: str,
    words: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    table_VD: Tensor,
    name: Callable[[int], str],
    neighbours: int = 4,
) -> WordMap:
    """Words by the rows of a model's table; a word of several tokens is the mean of their rows.

    `token_ids` are those of each word, `name` makes the label of a token. Raises UserError for no word.
    """
    if not words:
        raise UserError("name at least one word")
    vectors_WD = torch.stack([table_VD[list(ids)].float().mean(0) for ids in token_ids])
    near = [
        tuple(Neighbour(id, name(id), cosine) for id, cosine in nearest)
        for nearest in nearest_tokens(vectors_WD, table_VD, neighbours, token_ids)
    ]
    around = [table_VD[one.token_id].float() for nearest in near for one in nearest]
    places, kept = principal_map(torch.stack([*vectors_WD, *around]))
    tokens = tuple(tuple(name(id) for id in ids) for ids in token_ids)
    return WordMap(model, tuple(words), tokens, cosine_matrix(vectors_WD), tuple(near), places, kept)


def map_texts(model: str, texts: Sequence[str], vectors_WD: Tensor) -> WordMap:
    """Whole texts by the vectors that an encoder gives them: no tokens, no neighbours."""
    places, kept = principal_map(vectors_WD)
    nothing: tuple[()] = ()
    count = len(texts)
    return WordMap(
        model,
        tuple(texts),
        (nothing,) * count,
        cosine_matrix(vectors_WD),
        (nothing,) * count,
        places,
        kept,
    )


def words_of(opened: Opened, words: Sequence[str], neighbours: int = 4) -> WordMap:
    """Words by the embedding table of any model.

    A word is read as it stands inside of a text, with a space before it, unless it is fewer tokens without one.
    Raises UserError for an empty word, or none.
    """
    ids: list[list[int]] = []
    for word in words:
        if not word.strip():
            raise UserError("a word is empty: name words such as perro gato")
        alone, inside = (opened.tokenizer.encode(text) for text in (word, " " + word.lstrip()))
        ids.append(opened.checked(inside if len(inside) <= len(alone) else alone, f"word {word!r}"))
    return map_words(opened.name, words, ids, embedding_table(opened.model), opened.label, neighbours)


@torch.inference_mode()
def texts_of(opened: Opened, texts: Sequence[str]) -> WordMap:
    """Texts by the vectors that an encoder gives them as a whole. Raises UserError for a model that is none."""
    if not isinstance(opened.model, Encoder):
        raise UserError(f"{opened.name} is no encoder: it has vectors for words, not for whole texts")
    if not texts:
        raise UserError("name at least one text")
    vectors = [opened.model.embed(torch.tensor([opened.ids(text)]))[0] for text in texts]
    return map_texts(opened.name, texts, torch.stack(vectors))


@torch.inference_mode()
def embedding_table(model: LanguageModel) -> Tensor:
    """The vectors of all tokens, [V, D], as numbers also where the model keeps them quantized."""
    size = model.config.vocab_size
    for part in model.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear) or not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if len(weight) == size:
            rows = weight if weight.is_floating_point() else part(torch.arange(size)[None])[0]
            return rows.detach()
    raise UserError(f"a {model.config.model_type} model has no table of token vectors")


def draw_embeddings(words: WordMap) -> "Figure":
    """Left the cosine of every pair, right the map: words in blue, the tokens nearest to them in grey."""
    count = len(words.words)
    side = min(9.0, 3.2 + 0.42 * count)
    names = 0.08 * max(len(label(word, 20)) for word in words.words)
    figure = new_figure(side + 7.2, max(4.8, side) + names)
    left, right = figure.subplots(1, 2, width_ratios=(side, 7.2))
    _draw_cosines(left, words)
    _draw_map(right, words)
    what = "Words" if any(words.tokens) else "Texts"
    figure.suptitle(
        f"{what} in {words.model}", fontsize=13, weight="bold", x=0.01, ha="left", parse_math=False
    )
    return figure


def _draw_cosines(axes: Any, words: WordMap) -> None:
    count = len(words.words)
    drawn = axes.imshow(words.cosines_WW.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    labels = [label(word, 20, blanks=False) for word in words.words]
    small = 10 if count <= 12 else 7
    turned = 45 if max(map(len, labels)) <= 10 else 90
    plain_text(
        axes,
        "x",
        range(count),
        labels,
        rotation=turned,
        ha="right" if turned == 45 else "center",
        fontsize=small,
    )
    plain_text(axes, "y", range(count), labels, fontsize=small)
    if count <= 16:
        for row in range(count):
            for column in range(count):
                value = float(words.cosines_WW[row, column])
                colour = "white" if abs(value) > 0.6 else "#222"
                axes.text(
                    column,
                    row,
                    f"{round(value, 2) + 0.0:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set_title("cosine (1: same direction)", fontsize=11)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, pad=0.02)


def _draw_map(axes: Any, words: WordMap) -> None:
    count = len(words.words)
    _set_limits(axes, words)
    places = words.places.tolist()
    row = count
    for number, nearest in enumerate(words.neighbours):
        for one in nearest:
            x, y = places[row]
            axes.plot([places[number][0], x], [places[number][1], y], color=GREY, alpha=0.35, linewidth=0.8)
            axes.plot(x, y, "o", color=GREY, markersize=3.5)
            if count <= _MOST_WITH_NEIGHBOUR_NAMES:
                _name(axes, x, y, one.label, color="#5b6673", fontsize=8)
            row += 1
    size = 11 if count <= _MOST_WITH_NEIGHBOUR_NAMES else 9
    for number, word in enumerate(words.words):
        x, y = places[number]
        axes.plot(x, y, "o", color=BLUE, markersize=8)
        _name(axes, x, y, label(word, 28, blanks=False), color=BLUE, fontsize=size, weight="bold")
    axes.grid(alpha=0.25)
    axes.set_title("map: the two principal axes", fontsize=11)
    first, second = words.kept
    axes.set(xlabel=f"{100 * first:.0f} % of the variance", ylabel=f"{100 * second:.0f} % of the variance")


def _set_limits(axes: Any, words: WordMap) -> None:
    """Room around all points; where they lie in one line, an axis of rounding errors would say otherwise."""
    low, high = words.places.min(0).values, words.places.max(0).values
    spread = float((high - low).max()) or 1.0
    for kept, start, end, limit in zip(
        words.kept, low.tolist(), high.tolist(), (axes.set_xlim, axes.set_ylim), strict=True
    ):
        around = 0.14 * (end - start) if kept > 1e-6 else spread / 2
        limit(start - around, end + around)


def _name(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """A name beside its point, on the side where there is room."""
    low, high = axes.get_xlim()
    left = x > low + 0.7 * (high - low)
    side, aligned = (-5, "right") if left else (5, "left")
    axes.annotate(
        text, (x, y), xytext=(side, 5), textcoords="offset points", ha=aligned, parse_math=False, **style
    )
