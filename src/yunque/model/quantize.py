"""Int8 weights: each output row of a matrix is kept as whole numbers from -127 to 127 and one float scale.

Weight-only and symmetric, as in LLM.int8() without its outlier path (Dettmers et al. 2022, arXiv:2208.07339).
Only the matrix in use is turned back into floats, so memory stays near a quarter of the float32 model's.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model.configuration import Quantization
from yunque.model.llama import Llama, TiedEmbedding


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values [O, I] and float scales [O]: row o is about values[o] * scales[o], off by half a scale at most."""
    scale_O = weight_OI.abs().amax(dim=1) / 127
    # A row of zeros has no scale; any will do.
    safe_O = torch.where(scale_O == 0, torch.ones_like(scale_O), scale_O)
    values_OI = torch.round(weight_OI / safe_O[:, None]).clamp(-127, 127).to(torch.int8)
    return values_OI, safe_O.float()


class _Quantized(nn.Module):
    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(rows))

    def fill(self, weight_OI: Tensor) -> None:
        """Quantize these floats and keep them."""
        self.weight, self.scale = quantize_rows(weight_OI.detach())

    def _multiply(self, x: Tensor) -> Tensor:
        # The scale belongs to the output row, so it can wait until after the product: no scaled copy is made.
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


class QuantizedLinear(_Quantized):
    """A linear layer without bias whose matrix is int8."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] from [..., I]."""
        return self._multiply(x)


class QuantizedEmbedding(_Quantized):
    """`TiedEmbedding` with an int8 table."""

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]."""
        return self.weight[input_ids_BT] * self.scale[input_ids_BT][..., None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return self._multiply(hidden)


def replace_by_quantized(model: nn.Module, fill: bool = False) -> None:
    """Put a quantized module in the place of every matrix of `model`; `fill` carries the weights over."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.Linear | TiedEmbedding):
                continue
            kind = QuantizedLinear if isinstance(child, nn.Linear) else QuantizedEmbedding
            quantized = kind(*child.weight.shape)
            if fill:
                quantized.fill(child.weight)
            setattr(module, name, quantized)


def quantize_model(model: Llama) -> Llama:
    """An int8 copy of a float model; its `config` says so. Raises UserError for one that is int8 already."""
    if model.config.quantization_config:
        raise UserError("the model is quantized already")
    quantized = copy.deepcopy(model)
    replace_by_quantized(quantized, fill=True)
    quantized.config = model.config.model_copy(update={"quantization_config": Quantization()})
    return quantized.eval().requires_grad_(False)
