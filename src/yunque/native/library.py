"""The compiled library's functions, as Python calls them; the structures are those of library.cpp and decoder.h.

What is given is memory of tensors, by address: whoever makes a `NativeDecoder` keeps those tensors. Shapes: M rows
(tokens of any texts), P texts, W rows whose scores are wanted, V vocab_size, O outputs, I inputs.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOAT32, INT8, INT4 = range(3)
EMBEDDING, HEAD, QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(9)
LAST_NORM, ATTENTION_NORM, FEED_FORWARD_NORM, QUERY_NORM, KEY_NORM = range(5)
SILU, GELU, TANH_GELU, RELU = range(4)

_I32, _POINTER = ctypes.c_int32, ctypes.c_void_p


class Shape(ctypes.Structure):
    """What a decoder's layers are like; `scale` is that of attention's scores."""

    _fields_ = (
        ("layers", _I32),
        ("hidden", _I32),
        ("heads", _I32),
        ("key_value_heads", _I32),
        ("head_dim", _I32),
        ("intermediate", _I32),
        ("vocabulary", _I32),
        ("gate", _I32),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


class _Source(ctypes.Structure):
    _fields_ = (
        ("kind", _I32),
        ("rows", _I32),
        ("columns", _I32),
        ("width", _I32),
        ("values", _POINTER),
        ("scales", _POINTER),
        ("centers", _POINTER),
        ("bias", _POINTER),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("rows", _I32),
        ("texts", _I32),
        ("wanted", _I32),
        ("tokens", _POINTER),
        ("positions", _POINTER),
        ("rows_of", _POINTER),
        ("blocks_of", _POINTER),
        ("blocks", _POINTER),
        ("wanted_rows", _POINTER),
        ("scores", _POINTER),
    )


@dataclass(frozen=True)
class Weights:
    """A matrix [O, I] of one of the three kinds; `width` is that of INT4's groups."""

    kind: int
    shape: tuple[int, int]
    values: Tensor
    scales: Tensor | None = None
    centers: Tensor | None = None
    width: int = 0
    bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [one for one in (self.values, self.scales, self.centers, self.bias) if one is not None]

    def source(self) -> _Source:
        """Its addresses. Its tensors must lie in memory without gaps."""
        assert all(one.is_contiguous() and one.device.type == "cpu" for one in self.tensors())
        rows, columns = self.shape
        parts = (self.values, self.scales, self.centers, self.bias)
        return _Source(
            self.kind, rows, columns, self.width, *(None if one is None else one.data_ptr() for one in parts)
        )


@dataclass(frozen=True)
class Rows:
    """Tokens to read: those of a text stand together.

    `rows_of` and `blocks_of` [P + 1] say where each text's begin in the rows and in `blocks`, and where all end.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    rows_of: Sequence[int]
    blocks_of: Sequence[int]
    blocks: Sequence[int]
    wanted: Sequence[int]


def _bind(library: ctypes.CDLL) -> ctypes.CDLL:
    library.yunque_instructions.restype = ctypes.c_char_p
    library.yunque_decoder.restype = _POINTER
    library.yunque_decoder.argtypes = (ctypes.POINTER(Shape), _I32)
    library.yunque_free.restype = None
    library.yunque_free.argtypes = (_POINTER,)
    library.yunque_matrix.argtypes = (_POINTER, _I32, _I32, ctypes.POINTER(_Source))
    library.yunque_gain.restype = None
    library.yunque_gain.argtypes = (_POINTER, _I32, _I32, _POINTER)
    library.yunque_cache.restype = None
    library.yunque_cache.argtypes = (_POINTER, _I32, _POINTER, _POINTER, _I32)
    library.yunque_angles.restype = None
    library.yunque_angles.argtypes = (_POINTER, _POINTER, _POINTER)
    library.yunque_step.argtypes = (_POINTER, ctypes.POINTER(_Batch))
    library.yunque_bandwidth.restype = library.yunque_integer_speed.restype = ctypes.c_double
    library.yunque_bandwidth.argtypes = (_I32, ctypes.c_int64, _I32)
    library.yunque_integer_speed.argtypes = (_I32, _I32)
    library.yunque_multiply.argtypes = (ctypes.POINTER(_Source), _POINTER, _I32, _POINTER)
    return library


def instructions(library: ctypes.CDLL) -> str:
    """What the library was compiled for: "AVX-512 VNNI", "AVX-VNNI", "AVX2" or "plain C++"."""
    told: bytes = _bind(library).yunque_instructions()
    return told.decode()


def bandwidth(library: ctypes.CDLL, threads: int, size: int = 1 << 28, rounds: int = 8) -> float:
    """Bytes a second that the threads read from `size` bytes of memory together, in the best of some rounds."""
    return float(_bind(library).yunque_bandwidth(threads, size, rounds))


def integer_speed(library: ctypes.CDLL, threads: int, rounds: int = 8) -> float:
    """Products of INT8 numbers that the threads add up in a second, in the best of some rounds."""
    return float(_bind(library).yunque_integer_speed(threads, rounds))


def multiply(library: ctypes.CDLL, weights: Weights, x_TI: Tensor) -> Tensor:
    """x weights^T without bias, [T, O]: a product on its own."""
    x_TI = x_TI.float().contiguous()
    product_TO = torch.empty(len(x_TI), weights.shape[0])
    failed = _bind(library).yunque_multiply(
        ctypes.byref(weights.source()), x_TI.data_ptr(), len(x_TI), product_TO.data_ptr()
    )
    if failed:
        raise MemoryError("there is not enough memory for this product")
    return product_TO


class NativeDecoder:
    """A decoder in the library. Called from one thread at a time; it has `threads` of its own."""

    def __init__(self, library: ctypes.CDLL, shape: Shape, threads: int) -> None:
        self._library = _bind(library)
        self._vocab_size = int(shape.vocabulary)
        self._decoder = library.yunque_decoder(ctypes.byref(shape), threads)
        if not self._decoder:
            raise MemoryError("the native step could not be set up")
        self._kept = dict[Any, tuple[Tensor, ...]]()

    def __del__(self) -> None:
        if getattr(self, "_decoder", None):
            self._library.yunque_free(self._decoder)
            self._decoder = None

    def set_matrix(self, place: int, layer: int, weights: Weights) -> None:
        """Put a matrix in its place. Whole numbers are copied, float32 is used where it lies."""
        if self._library.yunque_matrix(self._decoder, place, layer, ctypes.byref(weights.source())):
            raise MemoryError("there is not enough memory for the model's weights")
        if weights.kind == FLOAT32:
            self._kept["matrix", place, layer] = (weights.values,)

    def set_gain(self, place: int, layer: int, gain: Tensor) -> None:
        """Put a norm's gain in its place."""
        kept = gain.detach().float().contiguous()
        self._kept["gain", place, layer] = (kept,)
        self._library.yunque_gain(self._decoder, place, layer, kept.data_ptr())

    def set_cache(self, layer: int, keys: Tensor, values: Tensor, window: int | None) -> None:
        """Where a layer keeps its keys and values, [blocks, K, 16, H] each, and how far back it looks."""
        self._kept["cache", layer] = (keys, values)
        self._library.yunque_cache(self._decoder, layer, keys.data_ptr(), values.data_ptr(), window or 0)

    def set_angles(self, cosines: Tensor, sines: Tensor) -> None:
        """Cosines and sines [positions, H / 2] of all positions that will be read."""
        kept = cosines.float().contiguous(), sines.float().contiguous()
        self._kept["angles"] = kept
        self._library.yunque_angles(self._decoder, kept[0].data_ptr(), kept[1].data_ptr())

    def step(self, rows: Rows) -> Tensor:
        """Read the rows and give the scores after those that are wanted, [W, V]."""
        scores_WV = torch.empty(len(rows.wanted), self._vocab_size)
        arrays = [
            (_I32 * len(part))(*part)
            for part in (rows.tokens, rows.positions, rows.rows_of, rows.blocks_of, rows.blocks, rows.wanted)
        ]
        batch = _Batch(
            len(rows.tokens),
            len(rows.rows_of) - 1,
            len(rows.wanted),
            *(ctypes.cast(array, _POINTER) for array in arrays),
            scores_WV.data_ptr(),
        )
        if self._library.yunque_step(self._decoder, ctypes.byref(batch)):
            raise MemoryError("there is not enough memory for this step")
        return scores_WV
