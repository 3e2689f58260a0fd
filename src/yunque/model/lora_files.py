"""The tensors of a LoRA under PEFT's names, both ways.

Where a matrix of theirs holds several of ours (query, key and value in one), an adapter of it is an adapter of each,
with A in common. The other way about, different A of ours are stacked, and each B meets its own.

Shapes: I inputs, O outputs, R rank.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.model.adapter_places import Place, find_place, matching, places, short_names
from yunque.model.configuration import Positive
from yunque.model.family import Family, family_of
from yunque.model.formats.files import TensorEntry
from yunque.model.language_model import LanguageModel
from yunque.model.lora import LoraAdapter, ends_with
from yunque.model.sources import TensorSource

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
# What a file with tensors so called is told as: a kind of adapter that is not read.
_FOREIGN = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA on an embedding",
    "lora_bias": "LoRA with a bias",
    "lora_B.bias": "LoRA with a bias",
    "modules_to_save": "a module trained whole",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# An alpha that was multiplied by a root and divided by it again is the whole number that it was.
_ROUNDING = 1e-9

_Rank = Annotated[int, Field(ge=1, le=2**16)]


class PeftConfig(Settings):
    """A configuration of PEFT's. What is there beyond the fields that a kind knows is looked at one by one."""

    model_config = ConfigDict(extra="allow", frozen=True)


class LoraConfig(PeftConfig):
    """The fields of a LoRA that change its numbers."""

    peft_type: Literal["LORA"]
    r: _Rank = 8
    lora_alpha: Positive = 8
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    bias: Literal["none"] = "none"
    target_modules: str | tuple[str, ...] | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, Positive] | None = None
    # The other ways to begin change the matrices of the base as well.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True


def read_lora(
    model: LanguageModel, config: LoraConfig, source: TensorSource, where: str, trainable: bool
) -> dict[str, LoraAdapter]:
    """The parts of an adapter, by the names of our matrices.

    `where` is the configuration's file. Raises UserError, before any tensor is read, where the two files do not fit
    each other or the model.
    """
    family, found = family_of(model.config), places(model)
    pairs: dict[str, Place] = {}
    for module in _modules(source):
        place = find_place(found, module, family.prefix)
        if place is None and _is_ignored(family, module):
            continue
        if place is None:
            raise UserError(f"{source.where}: no matrix of this model is called {module[:200]}")
        if place in pairs.values():
            raise UserError(f"{source.where}: there are two adapters for {place.theirs}")
        _check_shapes(source, module, place, config, where)
        pairs[module] = place
    _check_complete(config, found, pairs, source.where)
    adapters: dict[str, LoraAdapter] = {}
    for module, place in pairs.items():
        a_RI, b_OR = source.read(f"{_PREFIX}{module}{_A}"), source.read(f"{_PREFIX}{module}{_B}")
        alpha = matching(config.alpha_pattern or {}, module, where) or config.lora_alpha
        stored = a_RI.dtype if a_RI.dtype == b_OR.dtype and not trainable else torch.float32
        for ours, a, b in _split(a_RI, b_OR, place):
            own = alpha * _share(len(a) / len(a_RI), config.use_rslora)
            adapters[ours] = LoraAdapter(a, b, own, config.use_rslora, config.lora_dropout, stored)
    return adapters


def _modules(source: TensorSource) -> list[str]:
    """The names of the modules that a file has an A and a B for."""
    modules: list[str] = []
    for name in source.entries:
        module = name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B)
        if name not in (f"{_PREFIX}{module}{_A}", f"{_PREFIX}{module}{_B}"):
            foreign = next((kind for part, kind in _FOREIGN.items() if part in name), None)
            told = (
                f"is {foreign}, which is not read" if foreign else "is none of a LoRA's, as PEFT names them"
            )
            raise UserError(f"{source.where}: the tensor {name[:200]} {told}")
        modules.append(module)
    single = [module for module, count in Counter(modules).items() if count != 2]
    if single or not modules:
        raise UserError(
            f"{source.where}: {f'{single[0][:200]} has only one of A and B' if single else 'holds no adapter'}"
        )
    return list(dict.fromkeys(modules))


def _is_ignored(family: Family, module: str) -> bool:
    """Whether a module is one that the family's models have, and ours has no use for."""
    names = (f"{module}.weight", f"{module.removeprefix(family.prefix)}.weight")
    return any(re.fullmatch(pattern, name) for pattern in family.ignored for name in names)


def _check_shapes(source: TensorSource, module: str, place: Place, config: LoraConfig, where: str) -> None:
    rank = int(matching(config.rank_pattern or {}, module, where) or config.r)
    for end, wanted in ((_A, (rank, place.inputs)), (_B, (place.outputs, rank))):
        name = f"{_PREFIX}{module}{end}"
        entry = source.entries[name]
        if entry.shape != wanted:
            raise UserError(
                f"{source.where}: the tensor {name[:200]} is {list(entry.shape)}, and for this model and {where} it "
                f"is {list(wanted)}"
            )
        check_floats(entry, name, source.where)


def check_floats(entry: TensorEntry, name: str, where: str) -> None:
    """Raise UserError for a tensor of whole numbers, or of floats that an adapter does not have."""
    if entry.dtype not in _FLOATS:
        kind = str(entry.dtype).removeprefix("torch.")
        raise UserError(f"{where}: the tensor {name[:200]} holds {kind} numbers")


def _check_complete(
    config: LoraConfig, found: Mapping[str, Place], pairs: Mapping[str, Place], where: str
) -> None:
    """Raise UserError where the configuration names a matrix that the file has nothing for."""
    targets = config.target_modules
    if not isinstance(targets, tuple) or config.layers_to_transform is not None or config.exclude_modules:
        return
    for place in found.values():
        if any(ends_with(place.theirs, target) for target in targets) and place not in pairs.values():
            raise UserError(f"{where}: has nothing for {place.theirs}, which target_modules names")


def _share(ratio: float, use_rslora: bool) -> float:
    """What alpha becomes, for the same scale, with so many times the rank."""
    return math.sqrt(ratio) if use_rslora else ratio


def _split(a_RI: Tensor, b_OR: Tensor, place: Place) -> list[tuple[str, Tensor, Tensor]]:
    """Name, A and B for each of ours in a matrix of theirs.

    Where each row of A meets the B of one of ours only, one block after the other, it was put together by `_join`:
    each gets its own rows back. Otherwise all of A is everyone's.
    """
    parts = [b_OR[rows] for rows in place.rows]
    used_NR = torch.stack([part.ne(0).any(0) for part in parts])
    if len(parts) > 1 and bool((used_NR.sum(0) == 1).all()):
        owner_R = used_NR.int().argmax(0)
        if bool((owner_R.diff() >= 0).all()):
            own = [(name, owner_R == number, parts[number]) for number, name in enumerate(place.ours)]
            return [(name, a_RI[kept], part[:, kept]) for name, kept, part in own if bool(kept.any())]
    return [(name, a_RI, part) for name, part in zip(place.ours, parts, strict=True)]


def lora_files(
    model: LanguageModel, adapters: Mapping[str, LoraAdapter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an adapter, and the fields of its configuration."""
    found = places(model)
    chosen = {
        place: [adapters.get(name) for name in place.ours]
        for place in found.values()
        if any(name in adapters for name in place.ours)
    }
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}
    for place, parts in chosen.items():
        a_RI, b_OR, alpha = _join(parts, place)
        stored = next(part.stored for part in parts if part is not None)
        tensors[f"{_PREFIX}{place.theirs}{_A}"] = a_RI.to("cpu", stored).contiguous()
        tensors[f"{_PREFIX}{place.theirs}{_B}"] = b_OR.to("cpu", stored).contiguous()
        sizes[place.theirs] = (len(a_RI), alpha)
    first = next(iter(adapters.values()))
    ranks, alphas = ({name: size[kind] for name, size in sizes.items()} for kind in (0, 1))
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    fields = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": first.dropout,
        "use_rslora": first.use_rslora,
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": any(place.transposed for place in chosen),
        "target_modules": short_names(sizes, set(found) - set(sizes)),
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
    }
    return dict(sorted(tensors.items())), fields


def _pattern(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """What differs from the usual value, by endings of modules' names."""
    pattern: dict[str, float] = {}
    for value in sorted(set(values.values()) - {usual}):
        others = [name for name, other in values.items() if other != value]
        pattern |= dict.fromkeys(short_names(set(values) - set(others), others), value)
    return pattern


def _join(parts: Sequence[LoraAdapter | None], place: Place) -> tuple[Tensor, Tensor, float]:
    """A, B and alpha of a matrix of theirs from those of ours in it; the product is the same, number by number."""
    present = [(part, rows) for part, rows in zip(parts, place.rows, strict=True) if part is not None]
    first = present[0][0]
    alike = all(torch.equal(part.a_RI, first.a_RI) and part.scale == first.scale for part, _ in present)
    if alike and len(present) == len(parts):
        b_OR = torch.zeros(place.outputs, first.rank)
        for part, rows in present:
            b_OR[rows] = part.b_OR.detach().cpu()
        return first.a_RI.detach(), b_OR, _whole(first.alpha)
    a_RI = torch.cat([part.a_RI.detach().cpu() for part, _ in present])
    b_OR = torch.zeros(place.outputs, len(a_RI))
    start = 0
    for part, rows in present:
        b_OR[rows, start : start + part.rank] = part.b_OR.detach().cpu() * (part.scale / first.scale)
        start += part.rank
    return a_RI, b_OR, _whole(first.alpha * _share(len(a_RI) / first.rank, first.use_rslora))


def _whole(alpha: float) -> float:
    return round(alpha) if abs(alpha - round(alpha)) <= _ROUNDING * alpha else alpha
