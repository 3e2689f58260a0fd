"""LoRA and QLoRA: small trained matrices beside frozen ones, put on a model of any family from outside.

A matrix W becomes W + scale * B A, with A [rank, inputs] and B [outputs, rank] (Hu et al. 2021, arXiv:2106.09685).
The scale is alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). W may be quantized
(Dettmers et al. 2023, arXiv:2305.14314). A model can hold several adapters by name, and the rows of one batch can go
through different ones.

Shapes: B batch, I inputs, O outputs, R rank.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.model.attention import AttentionBlock
from yunque.model.blocks import Embedding, replace_layers
from yunque.model.configuration import Positive, Size
from yunque.model.language_model import LanguageModel
from yunque.model.quantized_layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedRecurrence,
)

DEFAULT = "default"
# Adapted only where they are named: the matrix of an untied head, and one that BERT keeps and does not use.
_NOT_LINEAR = ("head", "pooler")
_ENDINGS_TOLD = 12
_LAYER = re.compile(r"(?P<stack>(?:.*\.)?layers)\.(?P<number>\d+)\.")


class LoraSettings(Settings):
    """What an adapter is. `targets` are the matrices it is for: those of attention, all but the head's
    ("all-linear"), or those whose names in the model end so ("query", "feed_forward.down"). With `last_layers` only
    so many layers of each stack are adapted, the last ones: no gradient goes through those before them."""

    rank: int = Field(default=8, ge=1, le=2**16)
    alpha: Positive = 16.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["attention", "all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "attention"
    )
    use_rslora: bool = False
    last_layers: Size | None = None


class LoraAdapter(nn.Module):
    """What one adapter adds to one matrix. `stored` is the type its numbers have in files."""

    def __init__(
        self,
        a_RI: Tensor,
        b_OR: Tensor,
        alpha: float,
        use_rslora: bool = False,
        dropout: float = 0.0,
        stored: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        # In float32 whatever the model is: steps of training are smaller than what half precision can add.
        self.a_RI = nn.Parameter(a_RI.float())
        self.b_OR = nn.Parameter(b_OR.float())
        self.alpha = alpha
        self.use_rslora = use_rslora
        self.dropout = dropout
        self.stored = stored

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a_RI)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def forward(self, product: Tensor, x: Tensor) -> Tensor:
        """`product` [..., O], the frozen matrix times `x` [..., I], with what the adapter adds; perhaps in place."""
        low = F.linear(F.dropout(x.to(self.a_RI.dtype), self.dropout, self.training), self.a_RI)
        if product.dtype == low.dtype == self.b_OR.dtype:
            # In place, and scaled on the way: half the memory traffic of a product and a sum.
            rows = product.flatten(0, -2)
            return rows.addmm_(low.flatten(0, -2), self.b_OR.t(), alpha=self.scale).view_as(product)
        return (product + F.linear(low * self.scale, self.b_OR)).to(product.dtype)

    def change(self) -> Tensor:
        """What is added to the matrix itself, float32 [O, I]."""
        return self.scale * (self.b_OR @ self.a_RI)


# Products of fewer rows are computed otherwise, and round otherwise: a row should not tell how many others there are.
_LEAST_ROWS = 16


@dataclass(frozen=True)
class Group:
    """The `rows` of a batch that go through the adapter called `name`; `filled` are the same, then some again, so
    that they are not few."""

    name: str
    rows: Tensor
    filled: Tensor


@dataclass
class Selection:
    """Which adapter works, for all layers of a model: one for the whole batch (None is the base alone), or those of
    the rows in `groups`."""

    whole: str | None = None
    groups: tuple[Group, ...] | None = None
    batch: int = 0

    def choose(self, names: str | Sequence[str | None] | None, device: torch.device | None = None) -> None:
        """One name, None, or a name or None for each row of a batch on `device`."""
        if names is None or isinstance(names, str):
            self.whole, self.groups = names, None
            return
        self.whole, self.batch = None, len(names)
        groups: list[Group] = []
        for name in dict.fromkeys(name for name in names if name is not None):
            rows = [row for row, one in enumerate(names) if one == name]
            filled = rows + rows[:1] * (_LEAST_ROWS - len(rows))
            groups.append(Group(name, torch.tensor(rows, device=device), torch.tensor(filled, device=device)))
        self.groups = tuple(groups)


class LoraLinear(nn.Module):
    """A frozen matrix, with adapters beside it. While it is merged, the sum of both is kept as well."""

    def __init__(self, base: nn.Linear | QuantizedLinear, selection: Selection) -> None:
        super().__init__()
        self.base = base
        self.merged: nn.Linear | None = None
        self.selection = selection
        self._adapters = nn.ModuleDict()

    @property
    def adapters(self) -> dict[str, LoraAdapter]:
        """The adapters by name."""
        return {
            _name(key): adapter for key, adapter in self._adapters.items() if isinstance(adapter, LoraAdapter)
        }

    def put(self, name: str, adapter: LoraAdapter) -> None:
        """Keep an adapter under this name."""
        self._adapters[_key(name)] = adapter

    def drop(self, name: str) -> None:
        """Forget the adapter of this name, if it is here."""
        if _key(name) in self._adapters:
            del self._adapters[_key(name)]

    def find(self, name: str | None) -> LoraAdapter | None:
        """The adapter of this name, if it is here."""
        if name is None or _key(name) not in self._adapters:
            return None
        adapter = self._adapters[_key(name)]
        assert isinstance(adapter, LoraAdapter)
        return adapter

    def forward(self, x: Tensor) -> Tensor:
        """[..., O] from [..., I]; the first dimension is that of the batch's rows."""
        product: Tensor = (self.base if self.merged is None else self.merged)(x)
        if self.merged is not None:
            return product
        if self.selection.groups is not None:
            return self._add_by_row(product, x)
        adapter = self.find(self.selection.whole)
        return product if adapter is None else adapter(product, x)

    def _add_by_row(self, product: Tensor, x: Tensor) -> Tensor:
        groups, batch = self.selection.groups, self.selection.batch
        assert groups is not None
        if len(x) != batch:
            raise ValueError(f"adapters were chosen for {batch} rows, and the batch has {len(x)}")
        for group in groups:
            adapter = self.find(group.name)
            if adapter is not None:
                changed = adapter(product.index_select(0, group.filled), x.index_select(0, group.filled))
                product = product.index_copy(0, group.rows, changed[: len(group.rows)])
        return product

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter that works to a copy of the matrix. A quantized one becomes floats."""
        adapter = self.find(self.selection.whole)
        if adapter is not None:
            self.merged = dense_linear(self.base, adapter.change())


def _key(name: str) -> str:
    """A name as a key of nn.ModuleDict, which takes no dots and no names of its own methods."""
    return "+" + name.replace("%", "%25").replace(".", "%2E")


def _name(key: str) -> str:
    return key[1:].replace("%2E", ".").replace("%25", "%")


def dense_linear(layer: nn.Linear | QuantizedLinear, change_OI: Tensor | None = None) -> nn.Linear:
    """A frozen copy of a layer in floats, its matrix with `change_OI` added."""
    weight_OI, bias = layer.weight.detach(), layer.bias
    if change_OI is not None:
        weight_OI = (weight_OI.float() + change_OI).to(weight_OI.dtype)
    outputs, inputs = weight_OI.shape
    copy = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    copy.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias is not None:
        copy.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return copy.train(layer.training)


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            yield name, layer


def matrices(model: nn.Module) -> dict[str, nn.Linear | QuantizedLinear]:
    """Every matrix of the base that an adapter could be for, by its name in the model; embeddings are none."""
    found: dict[str, nn.Linear | QuantizedLinear] = {}
    inside: set[str] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLinear):
            found[name] = layer.base
            inside |= {f"{name}.base", f"{name}.merged"}
        elif isinstance(layer, nn.Linear | QuantizedLinear) and name not in inside:
            found[name] = layer
    return found


def ends_with(name: str, ending: str) -> bool:
    """Whether the last parts of a dotted name are those of `ending`."""
    return name == ending or name.endswith(f".{ending}")


def _targets(model: nn.Module, targets: Literal["attention", "all-linear"] | tuple[str, ...]) -> list[str]:
    names = list(matrices(model))
    if targets == "attention":
        blocks = {name for name, part in model.named_modules() if isinstance(part, AttentionBlock)}
        chosen = [name for name in names if name.rpartition(".")[0] in blocks]
    elif targets == "all-linear":
        chosen = [name for name in names if name.rpartition(".")[2] not in _NOT_LINEAR]
    else:
        for ending in targets:
            if not any(ends_with(name, ending) for name in names):
                raise UserError(f"targets: no matrix of the model is called {ending!r} ({_told(names)})")
        return [name for name in names if any(ends_with(name, ending) for ending in targets)]
    if not chosen:
        wanted = "matrices of attention" if targets == "attention" else "matrices"
        raise UserError(f"targets: the model has no {wanted} to adapt ({_told(names)})")
    return chosen


def _in_last_layers(names: Sequence[str], count: int | None) -> list[str]:
    """The names that are in the last `count` layers of their stack, or in no layer at all."""
    layers = {name: _LAYER.match(name) for name in names}
    depths = Counter[str]()
    for found in filter(None, layers.values()):
        depths[found["stack"]] = max(depths[found["stack"]], int(found["number"]) + 1)
    return [
        name
        for name, found in layers.items()
        if count is None or found is None or int(found["number"]) >= depths[found["stack"]] - count
    ]


def _told(names: Sequence[str]) -> str:
    endings = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return f"there are {', '.join(endings[:_ENDINGS_TOLD]) or 'none'}"


def add_lora(
    model: LanguageModel,
    settings: LoraSettings,
    generator: torch.Generator | None = None,
    name: str = DEFAULT,
) -> None:
    """Put a fresh adapter on `model`, in place, and select it: it is to be trained, everything else is frozen.

    B is zero, so that the model gives what it gave before; A is drawn from `generator` (on the CPU), the same one
    gives the same adapter. Raises UserError where a name of `targets` is not in the model, or the model has an
    adapter of this name already.
    """
    adapters = {}
    for target in _in_last_layers(_targets(model, settings.targets), settings.last_layers):
        outputs, inputs = matrices(model)[target].weight.shape
        reach = 1 / math.sqrt(inputs)
        a_RI = torch.empty(settings.rank, inputs).uniform_(-reach, reach, generator=generator)
        b_OR = torch.zeros(outputs, settings.rank)
        adapters[target] = LoraAdapter(a_RI, b_OR, settings.alpha, settings.use_rslora, settings.dropout)
    attach_lora(model, name, adapters, trainable=True)


def attach_lora(
    model: LanguageModel, name: str, adapters: Mapping[str, LoraAdapter], trainable: bool = False
) -> None:
    """Put an adapter, which has these parts for the matrices so called, on `model`, and select it.

    The base is frozen. Raises UserError where the model has an adapter of this name already.
    """
    if name in lora_names(model):
        raise UserError(
            f"the model has an adapter {name!r} already: remove it, or give this one another name"
        )
    assert not _is_merged(model), "adapters are not added to a merged model"
    found, device = matrices(model), next(model.parameters()).device
    selection = next((layer.selection for _, layer in _layers(model)), Selection())
    for matrix in model.parameters():
        matrix.requires_grad_(False)
    wrapped: dict[nn.Module, nn.Module] = {}
    for target, adapter in adapters.items():
        base = model.get_submodule(target)
        if isinstance(base, LoraLinear):
            layer = base
        else:
            layer = wrapped[base] = LoraLinear(found[target], selection).train(base.training)
        layer.put(name, adapter.to(device).requires_grad_(trainable).train(base.training))
    replace_layers(model, wrapped)
    selection.choose(name)


def lora_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that a model has."""
    return tuple(dict.fromkeys(name for _, layer in _layers(model) for name in layer.adapters))


def lora_adapters(model: nn.Module, name: str = DEFAULT) -> dict[str, LoraAdapter]:
    """The parts of one adapter, by the names of the matrices they are for."""
    found = ((matrix, layer.find(name)) for matrix, layer in _layers(model))
    return {matrix: adapter for matrix, adapter in found if adapter is not None}


def lora_parameters(model: nn.Module, name: str = DEFAULT) -> dict[str, nn.Parameter]:
    """The trained matrices of one adapter: `a_RI` and `b_OR` behind the name of each matrix they are for."""
    return {
        f"{matrix}.{part}": weight
        for matrix, adapter in lora_adapters(model, name).items()
        for part, weight in adapter.named_parameters()
    }


def select_adapter(model: nn.Module, names: str | Sequence[str | None] | None) -> None:
    """Say which adapter works from now on: a name, None for the base alone, or a name or None for each row of the
    batches to come. Raises UserError for a name that the model does not have."""
    known = lora_names(model)
    for name in {names} if names is None or isinstance(names, str) else set(names):
        if name is not None and name not in known:
            raise UserError(f"the model has no adapter {name!r} (there are {', '.join(known) or 'none'})")
    assert not _is_merged(model), "in a merged model no adapter is chosen"
    selection = selection_of(model)
    if selection is not None:
        selection.choose(names, next(model.parameters()).device)


def selection_of(model: nn.Module) -> Selection | None:
    """What all layers look at to know which adapter works; None where the model has no adapter."""
    return next((layer.selection for _, layer in _layers(model)), None)


def selected_adapter(model: nn.Module) -> str | None:
    """The adapter that works for whole batches; None where none does, or rows have their own."""
    return next((layer.selection.whole for _, layer in _layers(model)), None)


def _is_merged(model: nn.Module) -> bool:
    return any(layer.merged is not None for _, layer in _layers(model))


def merge_lora(model: nn.Module) -> None:
    """Add the selected adapter to the matrices: the same scores without the adapter's work.

    The matrices as they were are kept, for `unmerge_lora`; `remove_lora` gives them up. Raises UserError where no
    adapter is selected for whole batches.
    """
    if selected_adapter(model) is None:
        raise UserError("no adapter works on this model: select the one that is to be merged")
    for _, layer in _layers(model):
        layer.merge()


def unmerge_lora(model: nn.Module) -> None:
    """Undo `merge_lora`: the matrices are what they were, bit for bit."""
    for _, layer in _layers(model):
        layer.merged = None


def remove_lora(model: LanguageModel, name: str | None = None) -> None:
    """Take one adapter, or all of them, off the model. Taken off a merged model all of them leave their sum behind:
    a plain model, and one in floats if it was quantized."""
    merged = _is_merged(model)
    if name is not None:
        assert not merged, "a single adapter is not taken off a merged model"
        if name not in lora_names(model):
            raise UserError(f"the model has no adapter {name!r}")
    plain: dict[nn.Module, nn.Module] = {}
    for _, layer in _layers(model):
        for one in (name,) if name is not None else tuple(layer.adapters):
            layer.drop(one)
        if layer.selection.whole == name:
            layer.selection.choose(None)
        if not layer.adapters:
            plain[layer] = layer.base if layer.merged is None else layer.merged
    replace_layers(model, plain)
    if merged:
        _make_dense(model)


def _make_dense(model: LanguageModel) -> None:
    """Turn what is still quantized into floats."""
    if model.config.quantization_config is None:
        return
    dense: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            dense[layer] = dense_linear(layer)
        elif isinstance(layer, QuantizedRecurrence):
            dense[layer] = layer.dense()
        elif isinstance(layer, QuantizedEmbedding):
            table = Embedding(*layer.weight.shape)
            table.weight = nn.Parameter(layer.weight, requires_grad=False)
            dense[layer] = table.train(layer.training)
    replace_layers(model, dense)
    model.config = model.config.model_copy(update={"quantization_config": None})
