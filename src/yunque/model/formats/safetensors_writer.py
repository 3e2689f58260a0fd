"""Writing safetensors one tensor at a time, in one file or in shards with an index: no second model in memory."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yunque.model.formats.files import TensorEntry
from yunque.model.formats.safetensors import DTYPES
from yunque.progress import Progress, silent

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 64 << 20


def write_safetensors(
    folder: Path,
    entries: Mapping[str, TensorEntry],
    read: Callable[[str], Tensor],
    max_shard_bytes: int | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Write the tensors that `read` gives into `folder`, and return the names of the files made.

    `entries` says what each will be. With `max_shard_bytes` a file holds no more than so many bytes of numbers
    (but one tensor at least), and an index says which holds what.
    """
    shards = _shards(entries, max_shard_bytes)
    names = [WHOLE]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    total = sum(entry.bytes for entry in entries.values())
    with progress("Writing the weights", total=total) as task:
        for file, tensors in zip(names, shards, strict=True):
            write_file(
                folder / file,
                {name: entries[name] for name in tensors},
                read,
                partial(task.advance, note=file),
            )
    if len(shards) == 1:
        return names
    weight_map = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]


def _shards(entries: Mapping[str, TensorEntry], max_bytes: int | None) -> list[list[str]]:
    """The names for each file, in the order that the model has them."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, entry in entries.items():
        if max_bytes is not None and shards[-1] and held + entry.bytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += entry.bytes
    return shards


def file_order(entries: Mapping[str, TensorEntry]) -> Sequence[str]:
    """The order of tensors in a file: wide numbers first, so that each begins where its type wants it."""
    return sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))


def write_file(
    path: Path,
    entries: Mapping[str, TensorEntry],
    read: Callable[[str], Tensor],
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the tensors that `read` gives into one file; each is asked for once, in `file_order`."""
    order = file_order(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        entry = entries[name]
        span = [position, position + entry.bytes]
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        position += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            entry, tensor = entries[name], read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), name
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(raw), _PIECE):
                piece = raw[start : start + _PIECE]
                file.write(piece.data)
                advance(len(piece))
