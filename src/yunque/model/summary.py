"""A model's tensors as a person reads them: parts, with layers that are alike told once. Nothing is loaded."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from yunque.model.formats.files import TensorEntry

_NUMBER = re.compile(r"\.(\d+)(?=\.)")
# What a tensor outside of the layers is, by a word in its name; the first that is found.
_ROLES = (
    ("head", re.compile(r"(^|\.)(lm_head|head|score|cls)\b")),
    ("norm", re.compile(r"(^|\.|_)(norm|ln|layernorm|layer_norm)(_f)?\b", re.IGNORECASE)),
    ("embedding", re.compile(r"embed|(^|\.)(shared|wte|wpe)\b", re.IGNORECASE)),
    ("pooling", re.compile(r"(^|\.)pooler\b")),
)


@dataclass(frozen=True)
class TensorLine:
    """One tensor; in a layer, its name without the layer's."""

    name: str
    shape: tuple[int, ...]
    kind: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """Tensors that belong together: `count` layers that are alike, or what stands outside of them (count 1).

    `parameters` and `bytes` are those of all `count` together.
    """

    role: str
    name: str
    count: int
    tensors: tuple[TensorLine, ...]

    @property
    def parameters(self) -> int:
        """The numbers in it."""
        return self.count * sum(line.parameters for line in self.tensors)

    @property
    def bytes(self) -> int:
        """The bytes it takes in the file."""
        return self.count * sum(line.bytes for line in self.tensors)


def model_parts(entries: Mapping[str, TensorEntry]) -> list[Part]:
    """The parts of a model, in the order of its tensors by layer."""
    outside: dict[str, list[TensorLine]] = {}
    layers: dict[str, dict[int, list[TensorLine]]] = {}
    order: dict[tuple[str, bool], None] = {}
    for name, entry in entries.items():
        found = _NUMBER.search(name)
        if found:
            stack, number, rest = name[: found.start()], int(found[1]), name[found.end() + 1 :]
            layers.setdefault(stack, {}).setdefault(number, []).append(_line(rest, entry))
            order[stack, True] = None
        else:
            module = name.rpartition(".")[0]
            outside.setdefault(module, []).append(_line(name, entry))
            order[module, False] = None
    parts: list[Part] = []
    for name, layered in order:
        parts += _layers(name, layers[name]) if layered else [_single(name, outside[name])]
    return sorted(parts, key=_place)


def _line(name: str, entry: TensorEntry) -> TensorLine:
    kind, size = entry.packed or (str(entry.dtype).removeprefix("torch."), entry.bytes)
    return TensorLine(name, entry.shape, kind, entry.count, size)


def _single(module: str, lines: Iterable[TensorLine]) -> Part:
    role = next((role for role, words in _ROLES if words.search(module)), "")
    return Part(role, module, 1, _ordered(lines))


def _layers(stack: str, by_number: Mapping[int, Sequence[TensorLine]]) -> list[Part]:
    """Runs of neighbouring layers with the same tensors."""
    parts: list[Part] = []
    run: list[int] = []
    lines: tuple[TensorLine, ...] = ()
    for number in [*sorted(by_number), None]:
        now = () if number is None else _ordered(by_number[number])
        if run and (number != run[-1] + 1 or now != lines):
            span = str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"
            parts.append(Part("layer", f"{stack}.{span}", len(run), lines))
            run = []
        if number is not None:
            run.append(number)
        lines = now
    return parts


def _ordered(lines: Iterable[TensorLine]) -> tuple[TensorLine, ...]:
    return tuple(sorted(lines, key=lambda line: [_natural(piece) for piece in line.name.split(".")]))


def _natural(piece: str) -> tuple[int, str]:
    return (int(piece), "") if piece.isdecimal() else (-1, piece)


def _place(part: Part) -> int:
    """As the numbers flow: embeddings, encoder, decoder, head. A sort keeps the rest as it was."""
    if part.role in ("embedding", "head"):
        return 0 if part.role == "embedding" else 3
    return 2 if part.name.startswith("decoder.") else 1
