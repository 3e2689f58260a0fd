"""safetensors: a length, a JSON header, then the numbers. The header is checked whole before any tensor is read.

Format: https://github.com/huggingface/safetensors#format
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yunque.errors import UserError
from yunque.model.formats.files import TensorEntry, ordinary_file, parse_json

# The format's own limit.
_LARGEST_HEADER = 100_000_000
_MOST_DIMENSIONS = 64

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class SafetensorsFile:
    """The tensors of one file, mapped into memory and not copied."""

    def __init__(self, path: Path, name: str) -> None:
        self.where = str(path)
        self.entries = read_entries(path, name)
        self._path = path
        self._opened: Any = None

    def read(self, name: str) -> Tensor:
        """The tensor called `name`; its memory is the file's."""
        try:
            if self._opened is None:
                self._opened = safe_open(self._path, framework="pt")
            tensor: Tensor = self._opened.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise UserError(f"{self.where}: cannot be read ({_short(error)})") from None
        return tensor


def read_entries(path: Path, name: str) -> dict[str, TensorEntry]:
    """The tensors that a file says it holds; raises UserError unless they fill it exactly, none over another."""
    ordinary_file(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length > min(size - 8, _LARGEST_HEADER):
                raise UserError(
                    f"{path}: is damaged (its header does not fit in the file: cut off, or no safetensors)"
                )
            header = parse_json(file.read(length), f"{path}, header")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    header.pop("__metadata__", None)
    entries: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int, str]] = []
    for tensor, fields in header.items():
        entry, begin, end = _checked(fields, f"{path}: the tensor {tensor[:200]!r}", name)
        entries[tensor] = entry
        spans.append((begin, end, tensor))
    reached = 0
    for begin, end, tensor in sorted(spans):
        if begin != reached:
            raise UserError(
                f"{path}: is damaged (the bytes of {tensor[:200]!r} lie over others, or leave a gap)"
            )
        reached = end
    if reached != size - 8 - length:
        raise UserError(
            f"{path}: is damaged (its tensors take {reached:,} bytes, the file has {size - 8 - length:,}): "
            "copy it again"
        )
    return entries


def _checked(fields: Any, where: str, file: str) -> tuple[TensorEntry, int, int]:
    """Shape, type and bytes of one tensor, as its line in the header says."""
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where} is not described by dtype, shape and data_offsets")
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not _sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise UserError(f"{where} has a shape that cannot be")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where} has data_offsets that cannot be")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields["dtype"], str) else None
    if dtype is None:
        raise UserError(
            f"{where} has the dtype {str(fields['dtype'])[:40]!r}, which this version cannot read"
        )
    entry = TensorEntry(tuple(shape), dtype, file)
    if entry.bytes != offsets[1] - offsets[0]:
        raise UserError(
            f"{where} has {entry.bytes:,} bytes by its shape, but {offsets[1] - offsets[0]:,} in the file"
        )
    return entry, offsets[0], offsets[1]


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
