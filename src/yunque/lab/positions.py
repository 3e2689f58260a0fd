"""How positions look to a Transformer: the table that is added or turned by, and how alike two positions are.

Shapes: T positions, S positions looked at, D dimensions, N heads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.lab.pictures import new_figure
from yunque.model.positions import Rope, rotary_angles, sinusoids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["sinusoid", "rotary"]
KINDS: tuple[Kind, ...] = ("sinusoid", "rotary")


@dataclass(frozen=True)
class PositionTable:
    """`values_TD` is what a position is made of; `similarity_TT` is 1 where two positions are the same.

    For sinusoids that is their dot product over D / 2. For rotary positions D counts pairs: the values are cosines of
    their angles, and the similarity is what is left of q.k when q and k are alike and stand at the two positions.
    """

    kind: Kind
    values_TD: Tensor
    similarity_TT: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Both tables as lists, for JSON."""
        return {
            "kind": self.kind,
            "positions": self.values_TD.shape[0],
            "size": self.values_TD.shape[1],
            "values": self.values_TD.tolist(),
            "similarity": self.similarity_TT.tolist(),
        }


def position_table(kind: Kind, positions: int, size: int) -> PositionTable:
    """The table of `positions` positions for vectors of `size` numbers (a head's, for rotary; base 10 000).

    Raises UserError for an odd size, since both kinds are made of pairs, and for fewer than two positions.
    """
    if positions < 2:
        raise UserError(f"{positions} positions are too few: there are two to compare")
    if size % 2:
        raise UserError(f"size {size} is odd: positions are made of pairs of a sine and a cosine")
    if kind == "sinusoid":
        values_TD = sinusoids(positions, size)
        return PositionTable(kind, values_TD, values_TD @ values_TD.T / (size / 2))
    cos_1Th, sin_1Th = rotary_angles(torch.arange(positions)[None], Rope(), size, positions)
    cos_Th, sin_Th = cos_1Th[0], sin_1Th[0]
    # cos(a - b) of every pair of positions, averaged over the pairs of numbers.
    similarity_TT = (cos_Th @ cos_Th.T + sin_Th @ sin_Th.T) / cos_Th.shape[1]
    return PositionTable(kind, cos_Th, similarity_TT)


_TITLES = {
    "sinusoid": ("Sinusoids added to the token vectors", "dimension (sine on even, cosine on odd)"),
    "rotary": ("Rotary positions: cosine of each pair's angle", "pair of dimensions"),
}


def draw_positions(table: PositionTable) -> "Figure":
    """The table as a heat map, some of its waves, and how alike positions are."""
    T, D = table.values_TD.shape
    title, across = _TITLES[table.kind]
    figure = new_figure(13, 5.6)
    sides: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1))
    left, right = sides
    heat, waves = left.subplots(2, 1, height_ratios=(2.6, 1))
    drawn = heat.imshow(
        table.values_TD.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
    )
    heat.set(title=title, xlabel=across, ylabel="position")
    left.colorbar(drawn, ax=heat, pad=0.01)
    for place in _spread(D, 4):
        waves.plot(table.values_TD[:, place].numpy(), linewidth=1.4, label=str(place))
    waves.set(xlabel="position", ylim=(-1.15, 1.15), xlim=(0, max(T - 1, 1)))
    name = "dimension" if table.kind == "sinusoid" else "pair"
    waves.legend(title=name, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    waves.grid(alpha=0.3)
    alike = right.subplots()
    drawn = alike.imshow(table.similarity_TT.numpy(), cmap="magma", vmax=1, interpolation="nearest")
    alike.set(title="How alike two positions are", xlabel="position", ylabel="position")
    right.colorbar(drawn, ax=alike, shrink=0.8, pad=0.02)
    for axis in (heat.xaxis, heat.yaxis, waves.xaxis, alike.xaxis, alike.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return figure


def _spread(size: int, count: int) -> list[int]:
    """Some even dimensions, those of short waves first: the later ones hardly move."""
    return sorted({min(size - 1, int(size * share) // 2 * 2) for share in (0.0, 0.12, 0.25, 0.5)})[:count]
