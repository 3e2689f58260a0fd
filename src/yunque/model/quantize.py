"""Quantization, applied to a model of any family from outside: its matrices are found by what they are, and replaced.

FP16 and BF16 are other numbers in the same layers, and stay checkpoints of Hugging Face. INT8 and INT4 put layers of
`yunque.model.quantized_layers` in the place of every `nn.Linear`, `Embedding`, `nn.LSTM` and `nn.GRU`; norms and
biases stay floats.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model.blocks import Embedding, replace_layers
from yunque.model.compensation import Run, input_moments
from yunque.model.configuration import ModelConfig, Quantization
from yunque.model.language_model import LanguageModel
from yunque.model.quantized_layers import (
    Int4Matrix,
    Int8Matrix,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
    QuantizedRecurrence,
)

KINDS = ("int8", "int4", "float16", "bfloat16")
GROUP_SIZES = (32, 64, 128)

_FLOATS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A table with fewer columns is no token's vector (the biases of T5's distances have one for each head): as a part of
# the model it weighs nothing, and what it holds is added to scores that a softmax sharpens.
_NARROW = 32
# Memory for the moments of layers' inputs that are gathered in one run.
_MOMENTS_AT_ONCE = 1 << 29
_MOMENT_BYTES = 4

Model = TypeVar("Model", bound=LanguageModel)
Config = TypeVar("Config", bound=ModelConfig)
Layer = nn.Linear | Embedding | nn.LSTM | nn.GRU


def quantize_model(
    model: Model, kind: str = "int8", group_size: int = 64, calibrate: Run | None = None
) -> Model:
    """A copy of a float model in fewer bits, of one of the `KINDS`; its `config` says so. `group_size` is int4's.

    `calibrate` runs a model on text like that which it will read; int4 is rounded so that little changes there (see
    `yunque.model.compensation`). Raises UserError for a model that is quantized already, weights that are not
    numbers, and a kind or a group size that there is not.
    """
    quantization = _checked(model, kind, group_size)
    quantized = copy.deepcopy(model).requires_grad_(False).eval()
    if quantization is None:
        quantized.to(_FLOATS[kind]).config = _with_dtype(model.config, kind)
        return quantized
    # Half precision would lose more in what stays a float than it saves.
    quantized.float()
    if kind == "int4" and calibrate is not None:
        for part in _parts(quantized):
            moments = input_moments(quantized, part, calibrate)
            _quantize_layers(quantized, quantization, {layer: moments.get(layer) for layer in part})
    _quantize_layers(quantized, quantization, dict.fromkeys(_quantizable(quantized)))
    config = model.config.model_copy(update={"quantization_config": quantization})
    quantized.config = _with_dtype(config, "float32")
    return quantized.eval()


def _checked(model: LanguageModel, kind: str, group_size: int) -> Quantization | None:
    """How the matrices will be kept, None where the model only changes its floats."""
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of quantization (there are {', '.join(KINDS)})")
    if model.config.quantization_config:
        raise UserError("the model is quantized already: start from the one that it was made of")
    for name, weight in model.named_parameters():
        largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
        if not largest < float("inf"):
            raise UserError(f"the weights of {name} are not all numbers (NaN or infinite)")
        if kind == "float16" and largest > torch.finfo(torch.float16).max:
            raise UserError(f"{name} has the weight {largest:.3g}, too large for float16: take bfloat16")
    if kind in _FLOATS:
        return None
    if kind == "int8":
        return Quantization(kind="int8")
    if group_size not in GROUP_SIZES:
        raise UserError(
            f"a group of {group_size} weights: int4 has groups of {', '.join(map(str, GROUP_SIZES))}"
        )
    return Quantization.model_validate({"kind": "int4", "group_size": group_size})


def _with_dtype(config: Config, dtype: str) -> Config:
    return config.model_copy(
        update={"dtype" if "dtype" in (config.model_extra or {}) else "torch_dtype": dtype}
    )


def replace_by_quantized(model: nn.Module, quantization: Quantization) -> None:
    """Put an empty quantized layer in the place of every matrix of `model`, to read a checkpoint into."""
    replace_layers(model, {layer: _empty(layer, quantization) for layer in _quantizable(model)})


def _quantizable(model: nn.Module) -> list[Layer]:
    """The layers whose matrices get fewer bits."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.LSTM | nn.GRU)
        or (isinstance(layer, Embedding) and layer.weight.shape[1] >= _NARROW)
    ]


def _parts(model: nn.Module) -> Iterator[list[nn.Linear]]:
    """The linear layers in runs whose moments fit in memory together; later runs see earlier ones quantized."""
    part: list[nn.Linear] = []
    for layer in _quantizable(model):
        if isinstance(layer, nn.Linear):
            part.append(layer)
            if sum(one.in_features**2 for one in part) * _MOMENT_BYTES > _MOMENTS_AT_ONCE:
                yield part
                part = []
    yield part


def _quantize_layers(
    model: nn.Module, quantization: Quantization, moments: Mapping[Layer, Tensor | None]
) -> None:
    """Put quantized layers with the same weights in the place of these, rounded for their moments if given."""
    made: dict[nn.Module, nn.Module] = {}
    for layer, of_inputs in moments.items():
        quantized = _empty(layer, quantization)
        for name, matrix in quantized.parts().items():
            weight_OI = layer.get_parameter(name)
            if of_inputs is not None and isinstance(matrix, Int4Matrix):
                matrix.fill(weight_OI, of_inputs)
            else:
                matrix.fill(weight_OI)
        made[layer] = quantized
    replace_layers(model, made)


def _empty(layer: Layer, quantization: Quantization) -> QuantizedLayer:
    def matrix(weight_OI: Tensor) -> Int8Matrix | Int4Matrix:
        grouped, (rows, columns) = quantization.group_size, weight_OI.shape
        return Int8Matrix(rows, columns) if grouped is None else Int4Matrix(rows, columns, grouped)

    if isinstance(layer, Embedding):
        # Tables stay int8 beside int4 matrices: a token's vector is read by all layers, and scores tokens where it is
        # tied. Four bits in it cost as much as in many layers (docs/notebook.md).
        return QuantizedEmbedding(Int8Matrix(*layer.weight.shape))
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(matrix(layer.weight), layer.bias)
    weights = {name: weight for name, weight in layer.named_parameters() if weight.dim() == 2}
    return QuantizedRecurrence(layer, {name: matrix(weight) for name, weight in weights.items()})


def check_quantized(model: LanguageModel, where: str) -> None:
    """Raise UserError where a scale of a quantized model that was just read is NaN or infinite."""
    for name, tensor in model.named_buffers():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{where}: the tensor {name} is damaged: not all of its scales are numbers")
