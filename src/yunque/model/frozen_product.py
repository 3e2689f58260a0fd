"""Products with a quantized matrix that gradients go through, to what is multiplied: training above frozen weights.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): the matrix is turned into floats for the product, and once more for
its gradient. No float copy of it is kept in between.

Shapes: O outputs, I inputs.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class DenseMatrix(Protocol):
    """A matrix [O, I] that is kept in fewer bits, and can be had as floats."""

    def dense(self) -> Tensor:
        """What is kept, as float32 [O, I]."""


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, matrix: DenseMatrix) -> Tensor:
        return F.linear(x, matrix.dense().to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, DenseMatrix], output: Tensor) -> None:
        del output
        ctx.matrix = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.matrix.dense().to(gradient.dtype), None


def frozen_product(x: Tensor, matrix: DenseMatrix) -> Tensor:
    """x matrix^T: [..., O] from [..., I] in the numbers of `x`, with a gradient for `x` and none for the matrix."""
    product: Tensor = _FrozenProduct.apply(x, matrix)  # type: ignore[no-untyped-call]  # torch gives it no types
    return product
