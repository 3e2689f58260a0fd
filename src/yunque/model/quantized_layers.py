"""Matrices kept as int8 or int4, and the layers that compute with them.

INT8: a row of a matrix is whole numbers from -127 to 127 and one scale; what is multiplied by it is rounded to int8
as well, each token with a scale of its own, and the product is exact whole numbers (Dettmers et al. 2022,
arXiv:2208.07339, without its outlier path). INT4: a row is divided into groups, each 16 even steps between two ends
(Frantar et al. 2022, arXiv:2210.17323); what is multiplied by it is rounded to int8 too, so that the native step
(`yunque.native`) can compute the same in whole numbers.

Shapes: T tokens (all leading dimensions as one), O outputs (rows), I inputs (columns), G groups of a row, W numbers
of a group.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.model.compensation import compensated
from yunque.model.frozen_product import frozen_product

# Ends of an int4 group are tried this much nearer to each other: numbers beyond are cut off, all others get closer.
_SHRINKAGE = tuple(1 - step / 20 for step in range(8))
# So many products of two int8 numbers add up to a whole number that float32 still holds exactly (2**24).
_EXACT_INPUTS = 2**24 // 127**2
# Two numbers share a byte.
_LOW, _HIGH = 0x0F, 0xF0


def integer_product(x_TI: Tensor, values_OI: Tensor) -> Tensor:
    """x values^T of int8 numbers between -127 and 127, exactly: int32 [T, O]."""
    if x_TI.device.type == "cpu" and _fast_product_is_right():
        return torch._int_mm(x_TI, values_OI.t())
    return plain_integer_product(x_TI, values_OI)


def rounded_rows(x: Tensor) -> Tensor:
    """x [..., I] with each token rounded to int8, as floats again."""
    x_TI, scales_T1 = quantize_rows(x.reshape(-1, x.shape[-1]))
    return (x_TI * scales_T1).view(x.shape).to(x.dtype)


def plain_integer_product(x_TI: Tensor, values_OI: Tensor) -> Tensor:
    """`integer_product` for any device: float32 sums that are short enough to be whole numbers, added as int32."""
    parts = zip(torch.split(x_TI, _EXACT_INPUTS, 1), torch.split(values_OI, _EXACT_INPUTS, 1), strict=True)
    products = [F.linear(x.float(), values.float()).to(torch.int32) for x, values in parts]
    return functools.reduce(torch.add, products)


@functools.cache
def _fast_product_is_right() -> bool:
    # Processors without an int8 instruction add pairs of products in 16 bits, which can overflow.
    values = torch.tensor([127, -127], dtype=torch.int8).repeat_interleave(16)[:, None].expand(-1, 256)
    x = values.contiguous()
    try:
        return torch.equal(torch._int_mm(x, x.t()), plain_integer_product(x, x))
    except (RuntimeError, AttributeError):
        return False


class Int8Matrix(nn.Module):
    """A matrix as int8 `values` and a float32 scale for each row."""

    values: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.empty(rows, columns, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(rows, dtype=torch.float32))

    def fill(self, weight_OI: Tensor) -> None:
        """Quantize these floats: no number is off by more than half its row's scale."""
        self.values, scales_O1 = quantize_rows(weight_OI)
        self.scales = scales_O1[:, 0]

    def dense(self) -> Tensor:
        """What is kept, as float32 [O, I]."""
        return self.values * self.scales[:, None]

    def rows(self, index: Tensor) -> Tensor:
        """Some of the rows, as float32 [..., I]."""
        return self.values[index] * self.scales[index][..., None]

    def multiply(self, x: Tensor) -> Tensor:
        """x matrix^T: [..., O] from [..., I]; each token is rounded to int8 first."""
        x_TI, scales_T1 = quantize_rows(x.reshape(-1, x.shape[-1]))
        # In place: the whole numbers of a large vocabulary are not kept three times.
        product_TO = integer_product(x_TI, self.values).float().mul_(scales_T1).mul_(self.scales)
        return product_TO.view(*x.shape[:-1], len(self.values)).to(x.dtype)


def quantize_rows(x_TI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers [T, I] and float32 scales [T, 1]: a row is about its numbers times its scale."""
    x_TI = x_TI.detach().float()
    scales_T1 = x_TI.abs().amax(1, keepdim=True) / 127
    # A row of zeros has no scale; any will do. A row with NaN keeps it in its scale.
    scales_T1 = scales_T1.masked_fill_(scales_T1 == 0, 1.0)
    return (x_TI / scales_T1).round_().to(torch.int8), scales_T1


class Int4Matrix(nn.Module):
    """A matrix as groups of `group_size` neighbours in a row, two numbers in a byte.

    A group has a bfloat16 scale and center: number q of -8 to 7 stands for center + q * scale. The groups of a row
    that `group_size` does not divide are equally wide, as narrow as their number allows.
    """

    packed: Tensor
    scales: Tensor
    centers: Tensor

    def __init__(self, rows: int, columns: int, group_size: int) -> None:
        super().__init__()
        self.columns = columns
        groups = -(-columns // group_size)
        # Even, for two numbers in a byte.
        self.width = 2 * -(-columns // (2 * groups))
        self.register_buffer("packed", torch.empty(rows, groups * self.width // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.empty(rows, groups, dtype=torch.bfloat16))
        self.register_buffer("centers", torch.empty(rows, groups, dtype=torch.bfloat16))

    def fill(self, weight_OI: Tensor, moments_II: Tensor | None = None) -> None:
        """Quantize these floats: each group between the ends that give the smallest squared error.

        With the moments of its inputs (`yunque.model.compensation`) what the matrix computes is kept, rather than
        each number.
        """
        missing = self.packed.shape[1] * 2 - self.columns
        made = None
        if moments_II is not None:
            made = compensated(weight_OI, moments_II, self.width, quantize_groups)
        if made is None:
            weight_OI = weight_OI.detach().float()
            # The last number again widens no group.
            filled_OI = torch.cat((weight_OI, weight_OI[:, -1:].expand(-1, missing)), 1)
            steps_OGW, scales, centers = quantize_groups(filled_OI.view(len(filled_OI), -1, self.width))
            made = steps_OGW.flatten(1)[:, : self.columns], scales, centers
        steps_OI, self.scales, self.centers = made
        low, high = F.pad(steps_OI, (0, missing)).view(torch.uint8).chunk(2, dim=1)
        self.packed = (low & _LOW) | (high << 4)

    def _steps(self, dtype: torch.dtype) -> Tensor:
        """All numbers q, times 16: [O, G, W].

        A half byte at the upper end of an int8 is 16 times its own value, sign and all.
        """
        low_OI, high_OI = (self.packed << 4).view(torch.int8), (self.packed & _HIGH).view(torch.int8)
        return torch.stack((low_OI, high_OI), 1).to(dtype).view(len(low_OI), -1, self.width)

    def dense(self) -> Tensor:
        """What is kept, as float32 [O, I]."""
        scales_OG1, centers_OG1 = self.scales.float()[..., None] / 16, self.centers.float()[..., None]
        dense_OGW = self._steps(torch.float32) * scales_OG1 + centers_OG1
        return dense_OGW.flatten(1)[:, : self.columns]

    def multiply(self, x: Tensor) -> Tensor:
        """x matrix^T: [..., O] from [..., I], in the numbers of `x`; each token is rounded to int8 first."""
        x = rounded_rows(x)
        steps_OGW = self._steps(x.dtype).mul_(self.scales.to(x.dtype)[..., None] / 16)
        _, groups, width = steps_OGW.shape
        x = F.pad(x, (0, groups * width - self.columns))
        # A center is the same for its whole group, so it is multiplied by the group's sum: less to add.
        sums = x.view(*x.shape[:-1], groups, width).sum(-1)
        return F.linear(x, steps_OGW.flatten(1)) + F.linear(sums, self.centers.to(x.dtype))


def quantize_groups(weight_OGW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers from -8 to 7 [O, G, W] (int8), and scales and centers [O, G] (bfloat16), of float32 groups."""
    least_OG1, most_OG1 = weight_OGW.amin(-1, keepdim=True), weight_OGW.amax(-1, keepdim=True)
    middle_OG1, reach_OG1 = (least_OG1 + most_OG1) / 2, (most_OG1 - least_OG1) / 2
    best: tuple[Tensor, Tensor, Tensor] | None = None
    best_error = torch.empty(0)
    for shrinkage in _SHRINKAGE:
        # Rounded as they will be kept, so that the numbers are right for what is kept.
        scale = (reach_OG1 * (shrinkage / 7.5)).bfloat16().float()
        center = (middle_OG1 + scale / 2).bfloat16().float()
        # A group of one number, many times, is its center.
        scale = scale.masked_fill_(scale == 0, 1.0)
        steps = ((weight_OGW - center) / scale).round_().clamp_(-8, 7)
        error = (steps * scale + center - weight_OGW).square_().sum(-1, keepdim=True)
        if best is None:
            best, best_error = (steps, scale, center), error
        else:
            better = error < best_error
            best = (
                torch.where(better, steps, best[0]),
                torch.where(better, scale, best[1]),
                torch.where(better, center, best[2]),
            )
            best_error = torch.minimum(error, best_error)
    assert best is not None
    steps, scale, center = best
    return steps.to(torch.int8), scale[..., 0].bfloat16(), center[..., 0].bfloat16()


def _product(layer: nn.Module, matrix: Int8Matrix | Int4Matrix, x: Tensor) -> Tensor:
    """x matrix^T; in floats where a gradient goes through it, because rounded numbers have none."""
    if torch.is_grad_enabled() and (layer.training or x.requires_grad):
        return frozen_product(x, matrix)
    return matrix.multiply(x)


class QuantizedLinear(nn.Module):
    """A linear layer with a quantized matrix; its bias, if any, stays a float."""

    def __init__(self, matrix: Int8Matrix | Int4Matrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def parts(self) -> Mapping[str, Int8Matrix | Int4Matrix]:
        """Its matrix, under the name of the weight that it stands for."""
        return {"weight": self.matrix}

    @property
    def weight(self) -> Tensor:
        """The matrix as floats [O, I], worked out anew each time."""
        return self.matrix.dense()

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] from [..., I]."""
        product = _product(self, self.matrix, x)
        return product if self.bias is None else product + self.bias


class QuantizedEmbedding(nn.Module):
    """A table of token vectors as int8."""

    def __init__(self, matrix: Int8Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def parts(self) -> Mapping[str, Int8Matrix | Int4Matrix]:
        """Its matrix, under the name of the weight that it stands for."""
        return {"weight": self.matrix}

    @property
    def weight(self) -> Tensor:
        """The table as floats [V, D], worked out anew each time."""
        return self.matrix.dense()

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]."""
        return self.matrix.rows(input_ids_BT)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return _product(self, self.matrix, hidden)


class QuantizedRecurrence(nn.Module):
    """An `nn.LSTM` or `nn.GRU` whose matrices are quantized, weights only: they are floats while it runs.

    It is called as the original is, and has its sizes. Biases stay floats.
    """

    def __init__(self, cells: nn.LSTM | nn.GRU, matrices: Mapping[str, Int8Matrix | Int4Matrix]) -> None:
        super().__init__()
        self.num_layers, self.hidden_size = cells.num_layers, cells.hidden_size
        self.matrices = nn.ModuleDict(matrices)
        self.biases = nn.ParameterDict(
            {
                name: nn.Parameter(bias.detach(), requires_grad=False)
                for name, bias in cells.named_parameters()
                if bias.dim() == 1
            }
        )
        # In a tuple it is no part of this module: it has the shape of the original, and no numbers.
        self._shape = (copy.deepcopy(cells).to("meta").requires_grad_(False),)

    def parts(self) -> Mapping[str, Int8Matrix | Int4Matrix]:
        """Its matrices, under the names of the weights that they stand for."""
        matrices = self.matrices.items()
        return {name: matrix for name, matrix in matrices if isinstance(matrix, Int8Matrix | Int4Matrix)}

    def weights(self) -> dict[str, Tensor]:
        """All numbers under the names of the original, the matrices as floats worked out anew."""
        return {name: matrix.dense() for name, matrix in self.parts().items()} | dict(self.biases.items())

    def dense(self) -> nn.LSTM | nn.GRU:
        """A frozen copy in floats."""
        cells = copy.deepcopy(self._shape[0])
        cells.load_state_dict(self.weights(), assign=True)
        return cells.requires_grad_(False).train(self.training)

    def forward(self, *inputs: Any) -> Any:
        """What the original gives for these inputs."""
        return torch.func.functional_call(self._shape[0].train(self.training), self.weights(), inputs)


QuantizedLayer = QuantizedLinear | QuantizedEmbedding | QuantizedRecurrence
