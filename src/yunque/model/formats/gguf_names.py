"""What GGUF and Hugging Face call the same things in Llama-shaped models."""

import re
from collections.abc import Mapping

# The architecture in a GGUF file: model_type and class of Hugging Face.
ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
# Query and key rows of these are kept as pairs in GGUF; the others as Hugging Face does.
PAIRED = frozenset({"llama"})
ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BACK = {theirs: ours for ours, theirs in (_OUTSIDE | _IN_LAYER).items()}


def hugging_face_name(name: str) -> str | None:
    """The name in a Hugging Face checkpoint of GGUF's `blk.0.attn_q.weight`; None where there is none."""
    found = re.fullmatch(r"(?:blk\.(\d{1,6})\.)?([a-z_]+)\.(weight|bias)", name)
    layer, module, leaf = found.groups() if found else (None, "", "")
    theirs = (_OUTSIDE if layer is None else _IN_LAYER).get(module)
    if theirs is None:
        return None
    return f"{theirs}.{leaf}" if layer is None else f"model.layers.{int(layer)}.{theirs}.{leaf}"


def gguf_name(name: str) -> str | None:
    """The name in GGUF of a Hugging Face checkpoint's tensor; None where there is none."""
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    layer, module, leaf = found.groups() if found else (None, "", "")
    if module not in _BACK or (layer is None) != (module in _OUTSIDE.values()):
        return None
    return f"{_BACK[module]}.{leaf}" if layer is None else f"blk.{layer}.{_BACK[module]}.{leaf}"
