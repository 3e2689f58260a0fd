"""Tiny checkpoints of every format, made in the test, for the tests of this folder."""

from pathlib import Path
from typing import Any

import torch

from yunque.model import LlamaConfig, new_model, save_model
from yunque.model.checkpoint import checkpoint_tensors
from yunque.model.families.llama import Llama
from yunque.model.formats.files import TensorEntry
from yunque.model.formats.gguf_writer import GgufExport
from yunque.model.formats.rotary_rows import pairs_from_halves
from yunque.model.formats.safetensors_writer import write_safetensors
from yunque.tokenizer import Tokenizer

FORMATS = ("safetensors", "sharded", "bin", "legacy", "gguf", "llama2c")
TEXTS = ["La maleta azul pesa 23 kg.", "One suitcase of 23 kg, please.", "¿Dónde está el niño?"]


def tiny_config(**changes: Any) -> LlamaConfig:
    fields = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig.model_validate({**fields, **changes})


def tiny_llama(**changes: Any) -> Llama:
    model = new_model(tiny_config(**changes), torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    assert isinstance(model, Llama)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def tensors_of(model: Llama) -> dict[str, torch.Tensor]:
    return checkpoint_tensors(model)


def entries_of(tensors: dict[str, torch.Tensor]) -> dict[str, TensorEntry]:
    return {name: TensorEntry(tuple(t.shape), t.dtype, "memory") for name, t in tensors.items()}


def write_folder(model: Llama, folder: Path, kind: str = "safetensors") -> Path:
    """A Hugging Face folder: one file, shards, or PyTorch's .bin of the new or the old kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(save_model(model)["config.json"])
    tensors = tensors_of(model)
    if kind in ("bin", "legacy"):
        new = kind == "bin"
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    else:
        most = 20_000 if kind == "sharded" else None
        write_safetensors(folder, entries_of(tensors), tensors.__getitem__, most)
    return folder


def write_gguf(model: Llama, path: Path, tokenizer: Tokenizer | None = None) -> Path:
    import json

    tensors = tensors_of(model)
    export = GgufExport(model.config, entries_of(tensors), tensors.__getitem__, "tiny")
    export.write(path, "tiny", tokenizer and (tokenizer, json.loads(tokenizer.to_json())))
    return path


def write_llama2c(model: Llama, path: Path, version: int = 0, group: int = 32) -> Path:
    """What llama2.c's export.py writes: norms, then matrices, in Meta's order of rows."""
    config, tensors = model.config, tensors_of(model)
    heads, key_heads, head_dim = config.heads
    layers = range(config.num_hidden_layers)

    def each(name: str, heads: int = 0) -> list[torch.Tensor]:
        found = [tensors[f"model.layers.{layer}.{name}.weight"] for layer in layers]
        return [pairs_from_halves(rows, heads) for rows in found] if heads else found

    embedding, norm = [tensors["model.embed_tokens.weight"]], [tensors["model.norm.weight"]]
    norms = each("input_layernorm"), each("post_attention_layernorm")
    attention = [
        *each("self_attn.q_proj", heads),
        *each("self_attn.k_proj", key_heads),
        *each("self_attn.v_proj"),
        *each("self_attn.o_proj"),
    ]
    feed_forward = [*each("mlp.gate_proj"), *each("mlp.down_proj"), *each("mlp.up_proj")]
    head = [] if config.tie_word_embeddings else [tensors["lm_head.weight"]]
    sizes = [
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        heads,
        key_heads,
        config.vocab_size,
        config.max_position_embeddings,
    ]
    if version == 0:
        if head:
            sizes[5] = -sizes[5]
        angles = [torch.zeros(config.max_position_embeddings, head_dim // 2)] * 2
        parts = [*embedding, *norms[0], *attention, *norms[1], *feed_forward, *norm, *angles, *head]
        path.write_bytes(torch.tensor(sizes, dtype=torch.int32).numpy().tobytes() + _floats(parts))
        return path
    header = torch.tensor([0x616B3432, version, *sizes], dtype=torch.int32).numpy().tobytes() + bytes(
        [not head]
    )
    if version == 2:
        header += group.to_bytes(4, "little")
    matrices = [*embedding, *attention, *feed_forward, *head]
    body = _floats([*norms[0], *norms[1], *norm])
    body += _floats(matrices) if version == 1 else b"".join(_int8(matrix, group) for matrix in matrices)
    path.write_bytes(header.ljust(256, b"\0") + body)
    return path


def _floats(parts: list[torch.Tensor]) -> bytes:
    return b"".join(part.float().contiguous().numpy().tobytes() for part in parts)


def _int8(matrix: torch.Tensor, group: int) -> bytes:
    rows = matrix.reshape(-1, group)
    scale = rows.abs().amax(1) / 127
    return (rows / scale[:, None]).round().to(torch.int8).numpy().tobytes() + scale.numpy().tobytes()


def write_checkpoint(folder: Path, kind: str, model: Llama | None = None) -> Path:
    """A checkpoint of one of FORMATS; the path to open."""
    model = model or tiny_llama()
    if kind == "gguf":
        folder.mkdir(parents=True, exist_ok=True)
        return write_gguf(model, folder / "tiny.gguf")
    if kind == "llama2c":
        folder.mkdir(parents=True, exist_ok=True)
        return write_llama2c(model, folder / "tiny.bin")
    return write_folder(model, folder, kind)
