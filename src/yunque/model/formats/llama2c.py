"""Checkpoints of llama2.c: a header of whole numbers, then the tensors one after the other.

Version 0 is seven numbers and float32 tensors (a negative vocab_size: the head has a matrix of its own); versions 1
and 2 begin with the letters "ak42" in a header of 256 bytes, and 2 keeps matrices as int8 in groups with a float32
scale each. Formats: https://github.com/karpathy/llama2.c (export.py). Weights are in Meta's order.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.formats.files import TensorEntry, ordinary_file
from yunque.model.formats.rotary_rows import halves_from_pairs

_MAGIC = 0x616B3432
_HEADER = 256
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class _Shape:
    """The header: what the model measures, which version of the format, and where the tensors begin."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool
    version: int
    start: int
    group_size: int = 0

    @property
    def kv_dim(self) -> int:
        """Rows of the key and value matrices."""
        return self.dim // self.n_heads * self.n_kv_heads


@dataclass(frozen=True)
class _Part:
    """One tensor or, with `layers`, one for each layer, in the order of the file; no name: nothing we need."""

    name: str
    shape: tuple[int, ...]
    layered: bool = False


def _parts(shape: _Shape) -> tuple[_Part, ...]:
    """What the file holds, in its order, under Hugging Face names."""
    layer = "model.layers.{layer}."
    embedding = _Part("model.embed_tokens.weight", (shape.vocab_size, shape.dim))
    attention_norm = _Part(f"{layer}input_layernorm.weight", (shape.dim,), layered=True)
    feed_forward_norm = _Part(f"{layer}post_attention_layernorm.weight", (shape.dim,), layered=True)
    norm = _Part("model.norm.weight", (shape.dim,))
    attention = (
        _Part(f"{layer}self_attn.q_proj.weight", (shape.dim, shape.dim), layered=True),
        _Part(f"{layer}self_attn.k_proj.weight", (shape.kv_dim, shape.dim), layered=True),
        _Part(f"{layer}self_attn.v_proj.weight", (shape.kv_dim, shape.dim), layered=True),
        _Part(f"{layer}self_attn.o_proj.weight", (shape.dim, shape.dim), layered=True),
    )
    feed_forward = (
        _Part(f"{layer}mlp.gate_proj.weight", (shape.hidden_dim, shape.dim), layered=True),
        _Part(f"{layer}mlp.down_proj.weight", (shape.dim, shape.hidden_dim), layered=True),
        _Part(f"{layer}mlp.up_proj.weight", (shape.hidden_dim, shape.dim), layered=True),
    )
    head = () if shape.tied else (_Part("lm_head.weight", (shape.vocab_size, shape.dim)),)
    if shape.version:
        return (attention_norm, feed_forward_norm, norm, embedding, *attention, *feed_forward, *head)
    angles = _Part("", (shape.seq_len, shape.dim // shape.n_heads // 2))
    return (
        embedding,
        attention_norm,
        *attention,
        feed_forward_norm,
        *feed_forward,
        norm,
        angles,
        angles,
        *head,
    )


class Llama2cFile:
    """A llama2.c checkpoint: `config` as `config.json` would say it, and float32 tensors."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = ordinary_file(path)
        try:
            with path.open("rb") as file:
                shape = _read_shape(file.read(_HEADER), path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        size, expected = (
            path.stat().st_size,
            shape.start + sum(_total_bytes(shape, part) for part in _parts(shape)),
        )
        if size != expected:
            raise UserError(
                f"{path}: is damaged, or no llama2.c checkpoint (its header asks for {expected:,} bytes, "
                f"it has {size:,})"
            )
        self._shape = shape
        self._starts: dict[str, int] = {}
        entries: dict[str, TensorEntry] = {}
        for name, dimensions, start in _laid_out(shape):
            self._starts[name] = start
            size = _bytes(shape, dimensions)
            packed = ("int8", size) if size != 4 * math.prod(dimensions) else None
            entries[name] = TensorEntry(dimensions, torch.float32, path.name, packed)
        self.entries: Mapping[str, TensorEntry] = entries
        self.config = _configuration(shape)

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, float32."""
        entry, start = self.entries[name], self._starts[name]
        if self._shape.version == 2 and len(entry.shape) > 1:
            groups = entry.count // self._shape.group_size
            numbers = np.memmap(self._path, np.int8, "r", start, (groups, self._shape.group_size))
            scales = np.memmap(self._path, np.uint8, "r", start + entry.count, (4 * groups,)).view("<f4")
            tensor = torch.from_numpy(numbers.astype(np.float32) * scales[:, None])
        else:
            raw = np.memmap(self._path, np.uint8, "c", start, (entry.bytes,))
            tensor = torch.from_numpy(raw).view(torch.float32)
        tensor = tensor.reshape(entry.shape)
        for part, heads in (("q_proj", self._shape.n_heads), ("k_proj", self._shape.n_kv_heads)):
            if f".{part}." in name:
                return halves_from_pairs(tensor, heads).contiguous()
        return tensor


def _read_shape(header: bytes, path: Path) -> _Shape:
    """The header, if it could be one."""
    if len(header) < 28:
        raise UserError(f"{path}: is cut off, or no llama2.c checkpoint (it has {len(header)} bytes)")
    version, group = 0, 0
    if int.from_bytes(header[:4], "little") == _MAGIC:
        if len(header) < _HEADER:
            raise UserError(f"{path}: is cut off (its header has {len(header)} bytes of {_HEADER})")
        version, *numbers = struct.unpack_from("<8i", header, 4)
        tied = header[36] != 0
        group = struct.unpack_from("<i", header, 37)[0] if version == 2 else 0
        if version not in (1, 2):
            raise UserError(f"{path}: is of version {version} of llama2.c's format; 0, 1 and 2 can be read")
    else:
        numbers = list(struct.unpack_from("<7i", header))
        tied, numbers[5] = numbers[5] > 0, abs(numbers[5])
    dim, hidden, layers, heads, kv_heads, vocabulary, length = numbers
    fits = (
        min(numbers) >= 1
        and layers <= _MOST_LAYERS
        and dim % (2 * heads) == 0
        and heads % kv_heads == 0
        and (version != 2 or (group >= 1 and dim % group == 0 and hidden % group == 0))
    )
    if not fits:
        raise UserError(f"{path}: is no llama2.c checkpoint (its header says {', '.join(map(str, numbers))})")
    start = _HEADER if version else 28
    return _Shape(dim, hidden, layers, heads, kv_heads, vocabulary, length, tied, version, start, group)


def _bytes(shape: _Shape, dimensions: tuple[int, ...]) -> int:
    """The bytes of one tensor in the file."""
    count = math.prod(dimensions)
    return (
        count + 4 * (count // shape.group_size) if shape.version == 2 and len(dimensions) > 1 else 4 * count
    )


def _total_bytes(shape: _Shape, part: _Part) -> int:
    return _bytes(shape, part.shape) * (shape.n_layers if part.layered else 1)


def _laid_out(shape: _Shape) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and first byte of every tensor."""
    start = shape.start
    for part in _parts(shape):
        for layer in range(shape.n_layers if part.layered else 1):
            if part.name:
                yield part.name.format(layer=layer), part.shape, start
            start += _bytes(shape, part.shape)


def _configuration(shape: _Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.dim // shape.n_heads,
        "max_position_embeddings": shape.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
