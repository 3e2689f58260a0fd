"""What quantization did to each layer of a model: its bytes, and how far its weights and its outputs moved."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from yunque.model.blocks import Embedding
from yunque.model.language_model import LanguageModel
from yunque.model.quantized_layers import QuantizedLayer

_FP32 = 4


@dataclass(frozen=True)
class LayerError:
    """One layer before and after.

    Relative errors are the length of the difference over that of what was; `largest_*` are of single numbers. Those
    of outputs are None for a layer that the sample did not go through. `bytes_before` counts 4 for each number.
    """

    name: str
    rows: int
    columns: int
    is_linear: bool
    bytes_before: int
    bytes_after: int
    weight_error: float
    largest_weight_error: float
    output_error: float | None = None
    largest_output_error: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass
class Difference:
    """How two tensors differ, gathered over several."""

    changed: float = 0.0
    whole: float = 0.0
    largest: float = 0.0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count this pair too."""
        moved = after.float() - before.float()
        self.changed += float(moved.square().sum(dtype=torch.float64))
        self.whole += float(before.float().square().sum(dtype=torch.float64))
        self.largest = max(self.largest, float(moved.abs().max()) if moved.numel() else 0.0)

    @property
    def relative(self) -> float:
        """The length of the difference over that of what was."""
        if not self.changed:
            return 0.0
        return math.sqrt(self.changed / self.whole) if self.whole else math.inf


@torch.no_grad()
def layer_errors(
    before: LanguageModel, after: LanguageModel, run: Callable[[LanguageModel], object]
) -> list[LayerError]:
    """The layers that were quantized, in the order of the model; `run` takes a float model through a sample.

    Each quantized layer is given what the float one was given, so errors do not add up from layer to layer.
    """
    layers = _changed_layers(before, after)
    outputs: dict[str, Difference] = {}
    handles = [
        layer.register_forward_hook(_comparison(outputs, name, _in_float32(changed)))
        for name, (layer, changed) in layers.items()
    ]
    try:
        run(before)
    finally:
        for handle in handles:
            handle.remove()
    return [
        _layer_error(name, part, *pair, outputs.get(name))
        for name, pair in layers.items()
        for part in _matrices(pair[0])
    ]


def _matrices(layer: nn.Module) -> dict[str, Tensor]:
    """The matrices of a layer as floats, by name: one, or the many of a recurrent layer."""
    if isinstance(layer, QuantizedLayer):
        return {name: matrix.dense() for name, matrix in layer.parts().items()}
    return {name: weight for name, weight in layer.named_parameters(recurse=False) if weight.dim() == 2}


def _changed_layers(before: nn.Module, after: nn.Module) -> Mapping[str, tuple[nn.Module, nn.Module]]:
    """Layers with matrices whose class, or whose type of number, is another now."""
    others = dict(after.named_modules())
    found = {}
    for name, layer in before.named_modules():
        if _matrices(layer) and _kind(layer) != _kind(others[name]):
            found[name] = layer, others[name]
    return found


def _kind(layer: nn.Module) -> tuple[type, set[torch.dtype]]:
    return type(layer), {weight.dtype for weight in layer.parameters(recurse=False)}


def _in_float32(layer: nn.Module) -> nn.Module:
    """The layer as it is computed with: half precision is widened (see `yunque.generate.engine`)."""
    halves = any(weight.dtype in (torch.float16, torch.bfloat16) for weight in layer.parameters())
    return copy.deepcopy(layer).float() if halves else layer


def _comparison(
    outputs: dict[str, Difference], name: str, changed: nn.Module
) -> Callable[[nn.Module, Any, Any], None]:
    def compare(layer: nn.Module, inputs: Any, output: Any) -> None:
        del layer
        outputs.setdefault(name, Difference()).add(_vectors(output), _vectors(changed(*inputs)))

    return compare


def _vectors(output: Any) -> Tensor:
    """The vectors that a layer gives; a recurrent one gives its state too, and may give them packed."""
    if isinstance(output, PackedSequence):
        return output.data
    vectors: Tensor = output if isinstance(output, Tensor) else _vectors(output[0])
    return vectors


def _layer_error(
    name: str, part: str, before: nn.Module, after: nn.Module, outputs: Difference | None
) -> LayerError:
    weight_OI, changed_OI, weights = _matrices(before)[part], _matrices(after)[part], Difference()
    weights.add(weight_OI, changed_OI)
    kept = after.parts()[part].state_dict() if isinstance(after, QuantizedLayer) else {part: changed_OI}
    return LayerError(
        name=name if part == "weight" else f"{name}.{part}",
        rows=weight_OI.shape[0],
        columns=weight_OI.shape[1],
        is_linear=not isinstance(before, Embedding),
        bytes_before=_FP32 * weight_OI.numel(),
        bytes_after=sum(tensor.nbytes for tensor in kept.values()),
        weight_error=weights.relative,
        largest_weight_error=weights.largest,
        output_error=outputs.relative if outputs else None,
        largest_output_error=outputs.largest if outputs else None,
    )


def linear_ratio(errors: Sequence[LayerError]) -> float | None:
    """The bytes of all linear layers' matrices over those of FP32; None where there is none."""
    before = sum(error.bytes_before for error in errors if error.is_linear)
    after = sum(error.bytes_after for error in errors if error.is_linear)
    return after / before if before else None
