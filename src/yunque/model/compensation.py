"""Rounding a matrix to int4 so that what it computes changes little: GPTQ (Frantar et al. 2022, arXiv:2210.17323).

Columns are rounded one after the other, and what each one loses is made up for by those that are still floats, as far
as the inputs that the layer really sees let them stand in for it.

Shapes: T tokens, O outputs (rows), I inputs (columns), W numbers of a group.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Added to the diagonal, as a share of its mean: inputs that are nearly copies of others would make it singular.
_DAMPING = 0.01

Run = Callable[[Any], object]
"""Runs a model on sample data."""


@torch.no_grad()
def input_moments(model: nn.Module, layers: Iterable[nn.Linear], run: Run) -> Mapping[nn.Linear, Tensor]:
    """For each layer that `run` makes use of, the sum over tokens of the products of its inputs: [I, I]."""
    moments: dict[nn.Linear, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        x_TI = inputs[0].detach().reshape(-1, layer.in_features).float()
        moments[layer] = moments[layer].addmm_(x_TI.t(), x_TI) if layer in moments else x_TI.t() @ x_TI

    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def compensated(
    weight_OI: Tensor, moments_II: Tensor, width: int, quantize: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Whole numbers [O, I], and scales and centers [O, G], of a matrix in groups of `width` columns.

    `quantize` gives those of one group [O, 1, W]; its scales and centers are taken when the group's turn comes. None
    where the moments allow no compensation (inputs that are not numbers).
    """
    spread_II = _spread(moments_II)
    if spread_II is None:
        return None
    left_OI = weight_OI.detach().float().clone()
    steps_OI = torch.empty_like(left_OI, dtype=torch.int8)
    scales, centers = [], []
    for start in range(0, left_OI.shape[1], width):
        end = min(start + width, left_OI.shape[1])
        _, scale_O1, center_O1 = quantize(left_OI[:, None, start:end])
        scale_O, center_O = scale_O1[:, 0].float(), center_O1[:, 0].float()
        errors_OW = torch.empty_like(left_OI[:, start:end])
        for column in range(start, end):
            steps_O = ((left_OI[:, column] - center_O) / scale_O).round_().clamp_(-8, 7)
            steps_OI[:, column] = steps_O.to(torch.int8)
            lost_O = left_OI[:, column] - (steps_O * scale_O + center_O)
            error_O = lost_O / spread_II[column, column]
            errors_OW[:, column - start] = error_O
            left_OI[:, column:end].addr_(error_O, spread_II[column, column:end], alpha=-1)
        left_OI[:, end:].addmm_(errors_OW, spread_II[start:end, end:], alpha=-1)
        scales.append(scale_O1)
        centers.append(center_O1)
    return steps_OI, torch.cat(scales, 1), torch.cat(centers, 1)


def _spread(moments_II: Tensor) -> Tensor | None:
    """How an error in one column is spread over the later ones: the upper Cholesky factor of the moments' inverse."""
    damped_II = moments_II.clone()
    diagonal_I = damped_II.diagonal()
    # An input that is always 0 has no moment of its own; its column may be rounded alone.
    diagonal_I += _DAMPING * diagonal_I.mean() + torch.finfo(torch.float32).tiny
    lower_II, failed = torch.linalg.cholesky_ex(damped_II)
    if bool(failed) or not bool(lower_II.isfinite().all()):
        return None
    upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
    usable = not bool(failed) and bool(upper_II.isfinite().all())
    return upper_II if usable else None
