"""The tensors of a checkpoint, known by name, shape and type before any of them is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from yunque.errors import UserError
from yunque.model.formats.files import (
    Files,
    TensorEntry,
    checkpoint_file,
    has_file,
    place,
    read_json,
)
from yunque.model.formats.pickled import PickledFile
from yunque.model.formats.safetensors import SafetensorsFile

# The first that is there is read, as transformers does.
_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class TensorSource(Protocol):
    """Tensors by name. `entries` takes memory for names only; `read` takes it for one tensor, or maps it."""

    @property
    def where(self) -> str:
        """The folder or file, for messages."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor that there is."""

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, contiguous, in its stored type, on the CPU."""


class ShardedSource:
    """Several files as one, with the index that says which tensor is in which.

    Raises UserError where the index names what is not there, or a tensor is in two files.
    """

    def __init__(self, files: Files, index: str) -> None:
        self.where = place(files)
        self._shards: dict[str, TensorSource] = {}
        weight_map = _weight_map(files, index)
        for shard in sorted(set(weight_map.values())):
            self._shards[shard] = _open_file(files, shard)
        entries: dict[str, TensorEntry] = {}
        for shard, source in self._shards.items():
            for tensor, entry in source.entries.items():
                if tensor in entries:
                    raise UserError(
                        f"{self.where}: the tensor {tensor!r} is in {entries[tensor].file} and in {shard} too"
                    )
                entries[tensor] = entry
        for tensor, shard in weight_map.items():
            if tensor not in self._shards[shard].entries:
                raise UserError(
                    f"{index}: the tensor {tensor[:200]!r} is not in {shard}, where the index puts it"
                )
        self.entries: Mapping[str, TensorEntry] = entries

    @property
    def resident_bytes(self) -> int:
        """What stays in memory once every tensor was read."""
        return sum(map(resident_bytes, self._shards.values()))

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, from the file that holds it."""
        return self._shards[self.entries[name].file].read(name)


def _weight_map(files: Files, index: str) -> dict[str, str]:
    """The index's table of tensor and file; a file's name is checked before the file is looked for."""
    path = checkpoint_file(files, index)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no weight_map that says which file holds which tensor")
    ending = "." + index.removesuffix(".index.json").rpartition(".")[2]
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(ending):
            raise UserError(
                f"{path}: weight_map gives {str(shard)[:200]!r} for {tensor[:200]!r}: no {ending} file"
            )
        checkpoint_file(files, shard)
    return weight_map


def _open_file(files: Files, name: str) -> TensorSource:
    path = checkpoint_file(files, name)
    return SafetensorsFile(path, name) if name.endswith(".safetensors") else PickledFile(path, name)


def _weights_name(files: Files) -> str:
    for name in _KNOWN:
        if has_file(files, name):
            return name
    raise UserError(f"{place(files)}: no weights here: a model has one of {', '.join(_KNOWN)}")


def open_source(files: Files) -> TensorSource:
    """The tensors of a folder, or of files given by name: safetensors or PyTorch's .bin, whole or in shards.

    Raises UserError for weights that are absent, damaged, or more than numbers.
    """
    if isinstance(files, Path) and not files.is_dir():
        raise UserError(f"{files}: no such folder")
    name = _weights_name(files)
    return ShardedSource(files, name) if name.endswith(".index.json") else _open_file(files, name)


def resident_bytes(source: TensorSource) -> int:
    """What reading every tensor leaves in memory: nothing, but for files of the old kind of `.bin`."""
    return source.resident_bytes if isinstance(source, PickledFile | ShardedSource) else 0


def weight_files(files: Files) -> list[str]:
    """The names of the files that `open_source` reads, the index first where there is one."""
    name = _weights_name(files)
    if not name.endswith(".index.json"):
        return [name]
    return [name, *sorted(set(_weight_map(files, name).values()))]
