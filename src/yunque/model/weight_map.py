"""The weight map of a family: which tensors of a checkpoint are which of ours, as data that is read both ways.

A map is a tuple of `Entry`. Names are those of modules; each entry holds for all that the module has (weight, bias),
and `{layer}` stands for every layer's number. A layout says how the checkpoint's tensor lies: as ours, transposed, or
several of ours in one. An entry for a module that a model does not have (an untied head, say) is passed over.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from yunque.model.configuration import ModelConfig

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Layout(Protocol):
    """How tensors of ours lie in one tensor of a checkpoint. `join` and `split` undo each other, bit for bit."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The checkpoint's tensor."""
        ...

    def split(self, tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """Ours, of these shapes."""
        ...


class Plain:
    """One tensor, as it is."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The same tensor."""
        return parts[0]

    def split(self, tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """The same tensor."""
        del shapes
        return (tensor,)


class Stacked:
    """Several tensors one below the other: query, key and value in one matrix, for example."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[sum of rows, ...]."""
        return torch.cat(tuple(parts))

    def split(self, tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """One tensor for each shape."""
        return torch.split(tensor, [shape[0] for shape in shapes])


class StackedTransposed(Stacked):
    """`Stacked`, and the matrix lies on its side: [inputs, outputs] instead of [outputs, inputs] (GPT-2's Conv1D)."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[..., sum of rows]."""
        return super().join(parts).t()  # of a bias, .t() is the bias itself

    def split(self, tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """One tensor for each shape."""
        return super().split(tensor.t(), shapes)


PLAIN = Plain()


@dataclass(frozen=True)
class Entry:
    """Modules of ours (one, or several that share a tensor) and the checkpoint's name for them.

    Where the layout is not the same for every model of the family, it is a function of the configuration.
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: Layout | Callable[[Any], Layout] = PLAIN

    @property
    def names(self) -> tuple[str, ...]:
        """Ours, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Link:
    """Tensors of ours that are together one tensor of a checkpoint."""

    ours: tuple[str, ...]
    theirs: str
    layout: Layout


def links(weight_map: Sequence[Entry], tensors: Mapping[str, Tensor], config: ModelConfig) -> list[Link]:
    """The map, spelled out for a model of this configuration that has these tensors.

    Every one of them must be in the map: a hole in it is a mistake of ours.
    """
    by_first = {entry.names[0]: entry for entry in weight_map}
    found: list[Link] = []
    linked: set[str] = set()
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        numbers = _NUMBER.findall(f".{module}.")
        template = _NUMBER.sub("{layer}", f".{module}.")[1:-1]
        entry = by_first.get(template)
        if entry is None:
            continue
        assert len(numbers) <= 1, f"{name}: a name has one layer number at most"
        layer = numbers[0] if numbers else ""
        layout = entry.layout(config) if callable(entry.layout) else entry.layout
        ours = tuple(f"{part.replace('{layer}', layer)}.{leaf}" for part in entry.names)
        found.append(Link(ours, f"{entry.theirs.replace('{layer}', layer)}.{leaf}", layout))
        linked.update(ours)
    assert linked == set(tensors), f"not in the weight map: {sorted(linked ^ set(tensors))}"
    return found
