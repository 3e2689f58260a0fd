"""Qwen 2, 2.5 and 3: Llama's shape, with biases on query, key and value (2) or norms on each query and key head (3).

Upper layers may have a window. Yang et al. 2024 (arXiv:2407.10671) and 2025 (arXiv:2505.09388).
"""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Strict

from yunque.model.attention import Attention
from yunque.model.blocks import RMSNorm
from yunque.model.configuration import Flag, Size
from yunque.model.families import llama
from yunque.model.families.llama import Llama, LlamaConfig
from yunque.model.weight_map import Entry


class Qwen2Config(LlamaConfig):
    """Shape of a Qwen 2; `layer_types` says which layers have the window, else those from `max_window_layers` on."""

    model_type: Literal["qwen2", "qwen3"] = "qwen2"
    max_position_embeddings: Size = 32768
    num_key_value_heads: Size | None = 32
    mlp_bias: Literal[False] = False
    use_sliding_window: Flag = False
    sliding_window: Size | None = 4096
    max_window_layers: Annotated[int, Strict()] = 28
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer, how far back a position looks; None is all."""
        window = self.sliding_window if self.use_sliding_window else None
        layers = range(self.num_hidden_layers)
        if self.layer_types is None:
            return tuple(window if layer >= self.max_window_layers else None for layer in layers)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name a type for each layer")
        return tuple(window if kind == "sliding_attention" else None for kind in self.layer_types)


class Qwen3Config(Qwen2Config):
    """Shape of a Qwen 3."""

    model_type: Literal["qwen3"] = "qwen3"
    head_dim: Size | None = 128


class Qwen2(Llama):
    """A Qwen 2."""

    def make_attention(self, layer: int) -> Attention:
        """Attention with biases where it reads."""
        config: LlamaConfig = self.config
        return Attention(config.hidden_size, config.heads, layer, bias=True, window=config.windows[layer])


class Qwen3(Llama):
    """A Qwen 3."""

    def make_attention(self, layer: int) -> Attention:
        """Attention that normalizes every query and key head."""
        attention = super().make_attention(layer)
        head_dim, eps = self.config.heads[2], self.config.rms_norm_eps
        attention.query_norm, attention.key_norm = RMSNorm(head_dim, eps), RMSNorm(head_dim, eps)
        return attention


QWEN2_FAMILY = replace(llama.LLAMA_FAMILY, architecture="Qwen2ForCausalLM", config=Qwen2Config, model=Qwen2)
QWEN3_FAMILY = replace(
    llama.LLAMA_FAMILY,
    architecture="Qwen3ForCausalLM",
    config=Qwen3Config,
    model=Qwen3,
    weight_map=(
        *llama.WEIGHT_MAP,
        Entry("layers.{layer}.attention.query_norm", "model.layers.{layer}.self_attn.q_norm"),
        Entry("layers.{layer}.attention.key_norm", "model.layers.{layer}.self_attn.k_norm"),
    ),
)
