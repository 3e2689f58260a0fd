"""The header of a GGUF file: named values, then name, shape, type and place of every tensor.

Everything that it counts is held against the size of the file before it is read. Format, versions 2 and 3:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yunque.errors import UserError
from yunque.model.formats.files import ordinary_file

MAGIC = b"GGUF"
# The vocabulary of the largest models takes some 20 MB.
_LARGEST_HEADER = 128 << 20
_MOST_STRINGS = 4 << 20
_MOST_TENSORS = 1 << 20
_MOST_DIMENSIONS = 4
# What numpy calls each type of a number.
_NUMBERS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Name, numbers in a block and bytes of a block of each type that we read, and of those that we can name.
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 8: ("Q8_0", 32, 34), 30: ("BF16", 1, 2),
}  # fmt: skip
_OTHER_TYPES: Mapping[int, str] = {
    3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file: `start` counts bytes from the file's beginning."""

    shape: tuple[int, ...]
    type: int
    start: int
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    values: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


class _Damaged(Exception):
    """What the header says does not fit in the file."""


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file; raises UserError where it cannot be true, or is of a kind that is not known."""
    ordinary_file(path)
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise UserError(f"{path}: is no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(path, content).header()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except _Damaged as error:
        raise UserError(f"{path}: is damaged ({error})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is damaged (a name in it is not UTF-8)") from None


class _Reader:
    """Takes values from the front of the header."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content = path, content
        self._position = 4
        self._end = min(len(content), _LARGEST_HEADER)

    def header(self) -> GgufHeader:
        version = self._number("<u4")
        if version not in (2, 3):
            kind = "big-endian" if version > 0xFFFF else f"GGUF version {version}"
            raise UserError(f"{self._path}: is {kind}; versions 2 and 3, little-endian, can be read")
        num_tensors, num_values = self._number("<u8"), self._number("<u8")
        # Each takes some bytes of the header at least.
        if num_tensors > _MOST_TENSORS or max(num_tensors, num_values) * 13 > self._end:
            raise _Damaged(f"it claims {num_tensors:,} tensors and {num_values:,} values")
        values: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            if key in values:
                raise _Damaged(f"the value {key[:80]!r} is given twice")
            values[key] = self._value(self._number("<u4"))
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = values.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Damaged("general.alignment is no power of two")
        start = -(-self._position // alignment) * alignment
        return GgufHeader(values, self._placed(found, start, alignment))

    def _placed(
        self, found: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, StoredTensor]:
        """The tensors with their places, if they lie inside of the file and none over another."""
        tensors: dict[str, StoredTensor] = {}
        for name, shape, type, offset in found:
            _, block, block_bytes = TENSOR_TYPES[type]
            count = math.prod(shape)
            if name in tensors:
                raise _Damaged(f"the tensor {name[:80]!r} is there twice")
            size = count // block * block_bytes
            if shape[-1] % block or offset % alignment or start + offset + size > len(self._content):
                raise _Damaged(f"the tensor {name[:80]!r} {list(shape)} does not fit in the file: cut off?")
            tensors[name] = StoredTensor(shape, type, start + offset, size)
        reached = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
            if tensor.start < reached:
                raise _Damaged(f"the tensor {name[:80]!r} lies over another")
            reached = tensor.start + tensor.bytes
        return tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (rows first), type and offset."""
        name, num_dimensions = self._string(), self._number("<u4")
        if not 1 <= num_dimensions <= _MOST_DIMENSIONS:
            raise _Damaged(f"the tensor {name[:80]!r} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._number("<u8") for _ in range(num_dimensions)]))
        type, offset = self._number("<u4"), self._number("<u8")
        if type not in TENSOR_TYPES:
            known = ", ".join(known for known, _, _ in TENSOR_TYPES.values())
            raise UserError(
                f"{self._path}: the tensor {name[:80]!r} is of type {_OTHER_TYPES.get(type, type)}; those that "
                f"can be read are {known}: get the model in one of these"
            )
        if min(shape) < 1 or math.prod(shape) >= 1 << 62:
            raise _Damaged(f"the tensor {name[:80]!r} has a shape that cannot be")
        return name, shape, type, offset

    def _take(self, count: int) -> bytes:
        if count > self._end - self._position:
            raise _Damaged("its header is longer than the file, or than a header can be: cut off?")
        taken = self._content[self._position : self._position + count]
        self._position += count
        return taken

    def _number(self, kind: str) -> int:
        return int.from_bytes(self._take(int(kind[2])), "little")

    def _string(self) -> str:
        return self._take(self._number("<u8")).decode("utf-8")

    def _value(self, type: int) -> Any:
        """A number, truth value or text; an array is an array of numpy, or a list of texts."""
        if type == _STRING:
            # Tokens need not be UTF-8 in files of old writers.
            return self._take(self._number("<u8")).decode("utf-8", errors="replace")
        if type == _BOOL:
            return self._take(1) != b"\0"
        if type == _ARRAY:
            return self._array(self._number("<u4"), self._number("<u8"))
        if type not in _NUMBERS:
            raise _Damaged(f"a value has type {type}")
        kind = np.dtype(_NUMBERS[type])
        return np.frombuffer(self._take(kind.itemsize), kind)[0].item()

    def _array(self, type: int, count: int) -> Any:
        if type == _STRING:
            if count > _MOST_STRINGS or count * 8 > self._end - self._position:
                raise _Damaged(f"it claims a list of {count:,} texts")
            return [self._value(_STRING) for _ in range(count)]
        kind = np.dtype(_NUMBERS.get(type, "<u1"))
        if type not in _NUMBERS and type != _BOOL:
            raise _Damaged(f"a list has values of type {type}")
        return np.frombuffer(self._take(count * kind.itemsize), kind)
