"""Which matrices of a Hugging Face model are which of ours, for adapters: by the family's weight map.

Shapes: O outputs of their matrix.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.family import family_of
from yunque.model.language_model import LanguageModel
from yunque.model.lora import ends_with, matrices
from yunque.model.weight_map import StackedTransposed, links

# A pattern without brackets and with few repeats cannot keep a regular expression busy for ever.
_LARGEST_PATTERN = 200
_MOST_REPEATS = 3


@dataclass(frozen=True, eq=False)
class Place:
    """A matrix of theirs, and the matrices of ours that are in it: `rows` says which of its outputs each has.

    `transposed`: it lies on its side in their model (GPT-2's Conv1D).
    """

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[Tensor, ...]
    inputs: int
    outputs: int
    transposed: bool


def places(model: LanguageModel) -> dict[str, Place]:
    """Every matrix of the model that an adapter could be for, by the name of its module in Hugging Face's."""
    shapes = {name: layer.weight.shape for name, layer in matrices(model).items()}
    # Names are all that is linked: the tensors themselves may be quantized, or elsewhere.
    tensors = {f"{name}.weight": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found: dict[str, Place] = {}
    for link in links(family_of(model.config).weight_map, tensors, model.config):
        theirs, ours = _module(link.theirs), tuple(_module(name) for name in link.ours)
        sizes = [shapes[name][0] for name in ours]
        # Where the numbers of rows go tells where the rows go: biases are split as matrices are.
        rows = link.layout.split(torch.arange(sum(sizes)), [torch.Size([size]) for size in sizes])
        transposed = isinstance(link.layout, StackedTransposed)
        found[theirs] = Place(theirs, ours, tuple(rows), shapes[ours[0]][1], sum(sizes), transposed)
    return found


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def find_place(found: Mapping[str, Place], name: str, prefix: str) -> Place | None:
    """The place called `name`, with the family's prefix or without."""
    for candidate in (name, name.removeprefix(prefix), prefix + name):
        if candidate in found:
            return found[candidate]
    return None


def short_names(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """The fewest last parts of dotted names that say all of `chosen` and none of `others`."""
    avoided = list(others)
    endings: list[str] = []
    for name in chosen:
        if any(ends_with(name, ending) for ending in endings):
            continue
        parts = name.split(".")
        candidates = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        clear = (one for one in candidates if not any(ends_with(other, one) for other in avoided))
        endings.append(next(clear, name))
    return sorted(endings)


def matching(patterns: Mapping[str, float], name: str, where: str) -> float | None:
    """What the first pattern says that fits the last parts of a module's name; None where none does.

    A pattern is a regular expression, as in PEFT. Raises UserError for one that is none, or could take for ever.
    """
    for pattern, value in patterns.items():
        repeats = sum(pattern.count(sign) for sign in "*+?")
        if len(pattern) > _LARGEST_PATTERN or repeats > _MOST_REPEATS or set(pattern) & set("(){}|"):
            raise UserError(f"{where}: the pattern {pattern[:80]!r} is too involved: write the module's name")
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error:
            raise UserError(f"{where}: {pattern[:80]!r} is no pattern of module names") from None
    return None
