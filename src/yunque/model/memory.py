"""The memory that a model takes, to hold and to train, told before any of it is taken.

Weights, gradients and the optimizer's state are counted exactly; activations and the peak of a step are those that
torch would have (see `yunque.model.simulation`). What Python, torch and the system take comes on top.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yunque.errors import UserError
from yunque.model.configuration import ModelConfig, Quantization
from yunque.model.family import new_model
from yunque.model.language_model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.quantize import replace_by_quantized
from yunque.model.simulation import (
    Outline,
    check_layers,
    on_meta,
    play_step,
    replace_tensors,
    stacks_of,
    tensor_bytes,
    training_loss,
    without_numbers,
)

Method = Literal["full", "lora", "qlora"]
Number = Literal["float32", "bfloat16", "float16", "int8", "int4"]
OptimizerName = Literal["adamw", "momentum", "adafactor", "sgd"]

CLASSROOM_BYTES = 24
"""Bytes a parameter by the rule of thumb: 4 weights, 8 Adam, 4 gradients, 8 activations and passing numbers."""

_QUANTIZED: dict[str, Quantization] = {
    "int8": Quantization(kind="int8"),
    "int4": Quantization(kind="int4", group_size=64),
}
_STEP = 4  # An optimizer that counts its steps does so in a float for each tensor.


@dataclass(frozen=True)
class Training:
    """How a model is trained. `dtype` is the type of products (torch.autocast); what is trained stays float32.

    `lora` trains `rank` columns and rows beside each matrix of the layers (Hu et al. 2021, arXiv:2106.09685) and
    holds the rest in `dtype`; `qlora` holds the layers' matrices in 4 bits (Dettmers et al. 2023,
    arXiv:2305.14314). `masked` rows hold several documents, or padding. With `recompute` a layer keeps only its
    input (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174).
    """

    batch_size: int
    length: int
    method: Method = "full"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    optimizer: OptimizerName = "adamw"
    rank: int = 8
    masked: bool = True
    recompute: bool = False


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step. `peak_bytes` is less than the sum: gradients come while activations go."""

    training: Training
    parameters: int
    trained_parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    peak_bytes: int

    @property
    def classroom_bytes(self) -> int:
        """What the rule of thumb says, which knows neither batch nor length."""
        return CLASSROOM_BYTES * self.parameters

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "classroom_bytes": self.classroom_bytes}


@dataclass(frozen=True)
class CacheMemory:
    """Bytes of a cache for one row: at the start, for each token, and for each token of a source that is read."""

    fixed_bytes: int
    token_bytes: int
    source_token_bytes: int

    def total(self, rows: int, length: int) -> int:
        """Bytes for `rows` rows of `length` tokens, and as many of a source where there is one."""
        return rows * (self.fixed_bytes + length * (self.token_bytes + self.source_token_bytes))


@dataclass(frozen=True)
class HoldingMemory:
    """Bytes of a model that is used, with its weights kept as `number`; no `cache` for an encoder."""

    number: Number
    parameters: int
    weight_bytes: int
    cache: CacheMemory | None

    def total(self, rows: int, length: int) -> int:
        """Bytes of the weights and of the cache of `rows` rows of `length` tokens."""
        return self.weight_bytes + (self.cache.total(rows, length) if self.cache else 0)


def plan_training(config: ModelConfig, training: Training) -> TrainingMemory:
    """What a training step takes. Raises UserError for a model too large to be one."""
    return _plan_training(*outline_of(config), training)


def _plan_training(outline: Outline, parameters: int, training: Training) -> TrainingMemory:
    with on_meta():
        _make_trainable(outline.model, training)

    def loss(model: LanguageModel) -> Tensor:
        return training_loss(model, training.batch_size, training.length, training.masked)

    return _plan_step(outline, parameters, training, loss)


def plan_training_of(
    model: LanguageModel,
    training: Training,
    loss: Callable[[LanguageModel], Tensor],
    accumulated: bool = False,
) -> TrainingMemory:
    """What a training step takes of `model` as it is: with its adapter, its quantized layers, what is frozen.

    The `loss` is its own, and is played. Of `training` the type of products and the optimizer are used; with
    `accumulated` gradients of another part of the batch are there already.
    """
    parameters = sum(weight.numel() for weight in model.parameters())
    return _plan_step(Outline(without_numbers(model)), parameters, training, loss, accumulated)


def _plan_step(
    outline: Outline,
    parameters: int,
    training: Training,
    loss: Callable[[LanguageModel], Tensor],
    accumulated: bool = False,
) -> TrainingMemory:
    state_bytes = outline.total(lambda part: sum(map(_STATE_BYTES[training.optimizer], _trained(part))))
    memory = TrainingMemory(
        training=training,
        parameters=parameters,
        trained_parameters=outline.total(lambda part: sum(weight.numel() for weight in _trained(part))),
        weight_bytes=outline.total(_weight_bytes),
        gradient_bytes=outline.total(lambda part: sum(weight.nbytes for weight in _trained(part))),
        optimizer_bytes=state_bytes,
        activation_bytes=0,
        peak_bytes=0,
    )
    step = play_step(
        outline,
        lambda: loss(outline.model),
        None if training.dtype == "float32" else getattr(torch, training.dtype),
        training.recompute,
        accumulated,
    )
    return replace(memory, activation_bytes=step.activation_bytes, peak_bytes=step.peak_bytes + state_bytes)


def plan_holding(config: ModelConfig, number: Number | None = None) -> HoldingMemory:
    """What a model takes whose weights are kept as `number`, by default as its configuration says (float32, or
    quantized). Raises UserError for a model too large to be one."""
    check_layers(config.num_layers)
    kept = config.quantization_config
    if number is None:
        number = kept.kind if kept else "float32"
    quantization = kept if kept and kept.kind == number else _QUANTIZED.get(number)
    with on_meta():
        model = new_model(config)
        parameters = sum(weight.numel() for weight in model.parameters())
        if quantization:
            replace_by_quantized(model, quantization)
        else:
            _cast(model, getattr(torch, number))
        return HoldingMemory(number, parameters, _weight_bytes(model), cache_memory(model))


def outline_of(config: ModelConfig) -> tuple[Outline, int]:
    """The outline of a model in floats, whatever they are kept as, and how many numbers its weights are.

    Raises UserError for a model too large to be one.
    """
    check_layers(config.num_layers)
    with on_meta():
        model = new_model(config)
    parameters = sum(weight.numel() for weight in model.parameters())
    return Outline(model), parameters


def _weight_bytes(model: nn.Module) -> int:
    return tensor_bytes([*model.parameters(), *model.buffers()])


def _trained(model: nn.Module) -> list[Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _factored_bytes(weight: Tensor) -> int:
    """Adafactor's state: a row and a column of averages in the place of a matrix (Shazeer and Stern 2018,
    arXiv:1804.04235)."""
    if weight.dim() < 2:
        return weight.nbytes + _STEP
    rows, columns = weight.shape[-2:]
    return weight.nbytes // columns + weight.nbytes // rows + _STEP


# For each optimizer what it keeps of a tensor that it trains.
_STATE_BYTES: dict[OptimizerName, Callable[[Tensor], int]] = {
    "adamw": lambda weight: 2 * weight.nbytes + _STEP,
    "momentum": lambda weight: weight.nbytes,
    "adafactor": _factored_bytes,
    "sgd": lambda weight: 0,  # noqa: ARG005
}
OPTIMIZERS = get_args(OptimizerName)


def _make_trainable(model: LanguageModel, training: Training) -> None:
    model.train()
    if training.method == "full":
        return
    matrices = _matrices_of_layers(model)
    if not matrices:
        raise UserError(f"{training.method}: {model.config.model_type} has no matrices of layers to adapt")
    _cast(model.requires_grad_(False), getattr(torch, training.dtype))
    if training.method == "qlora":
        for stack in stacks_of(model):
            replace_by_quantized(stack, _QUANTIZED["int4"])
    for name, inputs, outputs in matrices:
        parent, _, child = name.rpartition(".")
        adapted = _Adapted(model.get_submodule(name), inputs, outputs, training.rank)
        setattr(model.get_submodule(parent), child, adapted)


def _matrices_of_layers(model: nn.Module) -> list[tuple[str, int, int]]:
    """The name, inputs and outputs of each matrix that is in a list of layers."""
    in_layers = {id(part) for stack in stacks_of(model) for part in stack.modules()}
    return [
        (name, part.in_features, part.out_features)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and id(part) in in_layers
    ]


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    replace_tensors(model, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


class _Adapted(nn.Module):
    """A matrix that stays as it is, and two thin ones that learn beside it."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., outputs] from [..., inputs]."""
        if isinstance(self.base, nn.Linear):
            same: Tensor = self.base(x)
        else:
            # Kept in 4 bits, it is made into floats for the backward pass again: to keep them would be no saving.
            same = checkpoint(self.base, x, use_reentrant=False, preserve_rng_state=False)
        changed: Tensor = same + self.up(self.down(x))
        return changed


def cache_memory(model: LanguageModel) -> CacheMemory | None:
    """What the cache of a model that is there takes; None for one that has none."""
    if not isinstance(model, CausalModel | EncoderDecoder):
        return None
    # With the first token comes what a cache does not take at once: a state, the source's keys and values.
    start, longer = (_after_a_token(model, capacity, 1) for capacity in (1, 2))
    more_source = _after_a_token(model, 1, 2) if isinstance(model, EncoderDecoder) else start
    token, source = longer - start, more_source - start
    return CacheMemory(start - token - source, token, source)


@torch.no_grad()
def _after_a_token(model: CausalModel | EncoderDecoder, capacity: int, source: int) -> int:
    cache = model.new_cache(1, capacity)
    id_11 = torch.zeros(1, 1, dtype=torch.int64)
    if isinstance(model, CausalModel):
        model.hidden(id_11, cache=cache)
    else:
        memory_1SD = model.encode(torch.zeros(1, source, dtype=torch.int64))
        model.decode(id_11, memory_1SD, None, cache)
    return _bytes_in(cache)


def _bytes_in(kept: object) -> int:
    return tensor_bytes(list(_tensors_in(kept)))


def _tensors_in(kept: object) -> Iterator[Tensor]:
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, dict):
        for part in kept.values():
            yield from _tensors_in(part)
    elif isinstance(kept, list | tuple):
        for part in kept:
            yield from _tensors_in(part)
    elif hasattr(kept, "__dict__"):
        yield from _tensors_in(vars(kept))


@dataclass(frozen=True)
class Change:
    """Something to do about a step that does not fit, and what it then takes."""

    what: str
    memory: TrainingMemory


def changes_that_help(config: ModelConfig, training: Training, available: int) -> list[Change]:
    """What to change so that a step takes less, one thing at a time; the last is all together.

    Of batches and lengths the largest that fits in `available` bytes is told, or the smallest there is.
    """

    outline, parameters = outline_of(config)

    adaptable = bool(_matrices_of_layers(outline.model))

    def plan(**fields: Any) -> TrainingMemory:
        return _plan_training(copy.deepcopy(outline), parameters, replace(training, **fields))

    def fitting(field: str, least: int) -> TrainingMemory:
        """The largest value of `field` below its present one that fits, by halves and then between them."""
        low, high = least, getattr(training, field)
        best = plan(**{field: least})
        while best.peak_bytes <= available and high - low > max(1, low // 16):
            middle = (low + high) // 2
            tried = plan(**{field: middle})
            if tried.peak_bytes <= available:
                low, best = middle, tried
            else:
                high = middle
        return best

    changes: list[Change] = []
    if training.batch_size > 1:
        memory = fitting("batch_size", 1)
        changes.append(Change(f"batch {memory.training.batch_size}", memory))
    if training.length > 1:
        memory = fitting("length", min(16, training.length // 2))
        changes.append(Change(f"length {memory.training.length}", memory))
    for what, fields in _SINGLE_CHANGES.items():
        new = any(getattr(training, field) != value for field, value in fields.items())
        if new and (adaptable or "method" not in fields):
            changes.append(Change(what, plan(**fields)))
    if adaptable:
        together = plan(batch_size=1, method="qlora", dtype="bfloat16", recompute=True)
        changes.append(Change("QLoRA, bfloat16, recompute, batch 1", together))
    asked = plan()
    return [change for change in changes if change.memory.peak_bytes < asked.peak_bytes]


_SINGLE_CHANGES: dict[str, dict[str, Any]] = {
    "products in bfloat16": {"dtype": "bfloat16"},
    "recompute activations": {"recompute": True},
    "optimizer adafactor": {"optimizer": "adafactor"},
    "LoRA": {"method": "lora"},
    "QLoRA": {"method": "qlora"},
}
