"""GGUF files of Llama-shaped models, read as a Hugging Face configuration and tensors under Hugging Face names.

Needs the package `gguf` (the extra [gguf]). Shapes: rows first, as in PyTorch.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.formats.files import TensorEntry
from yunque.model.formats.gguf_header import TENSOR_TYPES, GgufHeader, StoredTensor, read_header
from yunque.model.formats.gguf_names import (
    ARCHITECTURES,
    PAIRED,
    ROPE_FACTORS,
    hugging_face_name,
)
from yunque.model.formats.gguf_rope import scaling_of_factors
from yunque.model.formats.rotary_rows import halves_from_pairs

# Types whose numbers torch can hold as they are; float32 holds those of the others exactly.
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def gguf_package() -> ModuleType:
    """The package `gguf`; raises UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "GGUF files need the package gguf, which is not installed: pip install 'yunque[gguf]'"
        ) from None
    return gguf


class GgufFile:
    """A GGUF file: `config` as `config.json` would say it, `values` as the file does, and the tensors."""

    def __init__(self, path: Path) -> None:
        self._package = gguf_package()
        self.where = str(path)
        self._path = path
        header = read_header(path)
        self.values = header.values
        self._architecture = str(self.values.get("general.architecture", ""))
        if self._architecture not in ARCHITECTURES:
            raise UserError(
                f"{path}: holds a model of the architecture {self._architecture[:40]!r}; those that can be read are "
                f"{', '.join(ARCHITECTURES)}"
            )
        self._stored = self._renamed(header)
        self._dtype = self._common_dtype()
        self.config = self._configuration(header)
        self.entries: Mapping[str, TensorEntry] = {
            name: TensorEntry(tensor.shape, self._dtype, path.name, _packed(tensor))
            for name, tensor in self._stored.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, in the type that all of them have."""
        tensor = self._unpacked(self._stored[name]).to(self._dtype)
        heads = self._heads_of(name)
        return halves_from_pairs(tensor, heads).contiguous() if heads else tensor

    def _unpacked(self, stored: StoredTensor) -> Tensor:
        """A tensor as it is stored; int8 and int4 blocks as float32."""
        raw = np.memmap(self._path, np.uint8, "c", stored.start, (stored.bytes,))
        kind = TENSOR_TYPES[stored.type][0]
        if kind in _DTYPES:
            return torch.from_numpy(raw).view(_DTYPES[kind]).reshape(stored.shape)
        blocks = raw.reshape(-1, TENSOR_TYPES[stored.type][2])
        # A scale that is no number makes numbers that are none; that is the file's affair.
        with np.errstate(all="ignore"):
            numbers = self._package.quants.dequantize(blocks, self._package.GGMLQuantizationType(stored.type))
        return torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).reshape(stored.shape)

    def _heads_of(self, name: str) -> int:
        """How many heads' rows must be put in another order; 0 where none."""
        if self._architecture in PAIRED and ".self_attn." in name:
            for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                if f".{part}." in name:
                    return int(self.config[heads])
        return 0

    def _renamed(self, header: GgufHeader) -> dict[str, StoredTensor]:
        renamed: dict[str, StoredTensor] = {}
        for name, tensor in header.tensors.items():
            theirs = hugging_face_name(name)
            if name == ROPE_FACTORS:
                continue
            if theirs is None or theirs in renamed:
                raise UserError(
                    f"{self.where}: the tensor {name[:80]!r} is none of a {self._architecture} model"
                )
            renamed[theirs] = tensor
        if "model.embed_tokens.weight" not in renamed:
            raise UserError(f"{self.where}: lacks the tensor token_embd.weight")
        return renamed

    def _common_dtype(self) -> torch.dtype:
        """The type that holds every number exactly: float32, or that of the matrices where it holds the norms too.

        Writers keep norms as float32 beside matrices of 16 bits; a model computes with one type.
        """
        kinds = {TENSOR_TYPES[tensor.type][0] for tensor in self._stored.values() if len(tensor.shape) > 1}
        dtype = _DTYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
        for tensor in self._stored.values():
            if len(tensor.shape) == 1 and dtype != torch.float32:
                numbers = self._unpacked(tensor).float()
                if not torch.equal(numbers.to(dtype).float(), numbers):
                    return torch.float32
        return dtype

    def _configuration(self, header: GgufHeader) -> dict[str, Any]:
        """The header's sizes under the names of `config.json`."""
        model_type, architecture = ARCHITECTURES[self._architecture]
        heads = self._whole("attention.head_count")
        hidden = self._whole("embedding_length")
        head_dim = self._whole("attention.key_length", hidden // heads)
        if self._whole("expert_count", 0) or self._whole("rope.dimension_count", head_dim) != head_dim:
            raise UserError(
                f"{self.where}: has experts, or turns only part of a head: such models cannot be read"
            )
        ids = {
            f"{name}_token_id": self.values.get(f"tokenizer.ggml.{theirs}_token_id")
            for name, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        }
        embedding = self._stored["model.embed_tokens.weight"]
        key_heads = self._whole("attention.head_count_kv", heads)
        rows = {"q_proj": heads * head_dim, "k_proj": key_heads * head_dim}
        for name, tensor in self._stored.items():
            part = name.rpartition(".")[0].rpartition(".")[2]
            if part in rows and tensor.shape[0] != rows[part]:
                raise UserError(
                    f"{self.where}: the tensor {name!r} has {tensor.shape[0]:,} rows, not {rows[part]:,}"
                )
        bias = any(name.endswith("q_proj.bias") for name in self._stored)
        return {
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": embedding.shape[0],
            "hidden_size": hidden,
            "intermediate_size": self._whole("feed_forward_length"),
            "num_hidden_layers": self._whole("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": key_heads,
            "head_dim": head_dim,
            "max_position_embeddings": self._whole("context_length"),
            "hidden_act": "silu",
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._real("rope.freq_base", 10000.0),
            "rope_scaling": self._scaling(header),
            "tie_word_embeddings": "lm_head.weight" not in self._stored,
            **({"attention_bias": bias, "mlp_bias": False} if model_type == "llama" else {}),
            "torch_dtype": str(self._dtype).removeprefix("torch."),
            **{name: value for name, value in ids.items() if type(value) is int},
        }

    def _scaling(self, header: GgufHeader) -> dict[str, Any] | None:
        """`rope_scaling`, from the values (linear, YaRN) or from the table of factors (Llama 3.1)."""
        if ROPE_FACTORS in header.tensors:
            stored = header.tensors[ROPE_FACTORS]
            if TENSOR_TYPES[stored.type][0] != "F32" or len(stored.shape) != 1:
                raise UserError(f"{self.where}: {ROPE_FACTORS} is not a list of float32 numbers")
            factors = np.fromfile(self._path, "<f4", stored.shape[0], offset=stored.start)
            found = scaling_of_factors(factors, self._real("rope.freq_base", 10000.0))
            if found is None:
                raise UserError(
                    f"{self.where}: {ROPE_FACTORS} scales positions in a way that is not Llama 3.1's"
                )
            return found
        kind = self.values.get(f"{self._architecture}.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind not in ("linear", "yarn"):
            raise UserError(f"{self.where}: rotary positions of type {str(kind)[:40]!r} are not known")
        scaling = {"rope_type": kind, "factor": self._real("rope.scaling.factor")}
        if kind == "yarn":
            scaling["original_max_position_embeddings"] = self._whole("rope.scaling.original_context_length")
        return scaling

    def _whole(self, key: str, default: int | None = None) -> int:
        value = self.values.get(f"{self._architecture}.{key}", default)
        if type(value) is not int or not 0 <= value < 1 << 31 or (value == 0 and default is None):
            raise UserError(
                f"{self.where}: {self._architecture}.{key} must be a whole number, not {str(value)[:40]}"
            )
        return value

    def _real(self, key: str, default: float | None = None) -> float:
        value = self.values.get(f"{self._architecture}.{key}", default)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(
                f"{self.where}: {self._architecture}.{key} must be a positive number, not {str(value)[:40]}"
            )
        # It is kept as float32: the shortest number that it stands for is the one that was meant.
        return float(np.format_float_positional(np.float32(value), trim="0"))


def _packed(tensor: StoredTensor) -> tuple[str, int] | None:
    name = TENSOR_TYPES[tensor.type][0]
    return None if name in _DTYPES else (name, tensor.bytes)
