"""Llama 1 to 3.x and what has its shape: SmolLM2, TinyLlama, Mistral.

RMS norm before each part, rotary positions with their scalings, key-value heads shared by groups of query heads,
SwiGLU. Mistral adds a window that limits how far back a position looks.

Touvron et al. 2023 (arXiv:2302.13971 and arXiv:2307.09288); Grattafiori et al. 2024 (arXiv:2407.21783); Jiang et al.
2023 (arXiv:2310.06825).
"""

from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn

from yunque.model.attention import Attention, Pass
from yunque.model.blocks import GatedFeedForward, RMSNorm, initialize_weights
from yunque.model.configuration import Activation, DecoderConfig, Flag, Positive, Size, head_size
from yunque.model.decoder import Decoder, DecoderLayer
from yunque.model.family import Family
from yunque.model.positions import Rope, rotary_angles
from yunque.model.weight_map import Entry


class LlamaConfig(DecoderConfig):
    """Shape of a Llama; `rope_theta` and `rope_scaling` are read as well as the newer `rope_parameters`.

    Without `num_key_value_heads` each query head has its own; without `head_dim` the heads share `hidden_size`.
    """

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    intermediate_size: Size
    max_position_embeddings: Size = 2048
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Positive = 1e-6
    hidden_act: Activation = "silu"
    attention_bias: Flag = False
    mlp_bias: Flag = False
    tie_word_embeddings: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.rope.check(self.heads[2], self.max_position_embeddings)
        _ = self.windows
        return self

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one."""
        shared = self.num_key_value_heads or self.num_attention_heads
        size = self.head_dim or head_size(self.hidden_size, self.num_attention_heads)
        if self.num_attention_heads % shared:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if size % 2:
            raise ValueError("head_dim must be even: rotary positions turn pairs of numbers")
        return self.num_attention_heads, shared, size

    @property
    def rope(self) -> Rope:
        """How rotary positions turn."""
        return Rope.of(self.model_dump(), self.max_position_embeddings)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """For each layer, how far back a position looks: itself and so many others less one; None is all."""
        return (None,) * self.num_hidden_layers


class MistralConfig(LlamaConfig):
    """A Llama with a window."""

    model_type: Literal["mistral"] = "mistral"
    num_key_value_heads: Size | None = 8
    max_position_embeddings: Size = 131072
    sliding_window: Size | None = 4096
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The same for every layer."""
        return (self.sliding_window,) * self.num_hidden_layers


class Llama(Decoder):
    """A Llama. Weights are drawn from `generator`: the same one gives the same model."""

    config: LlamaConfig

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.rope = config.rope
        self.layers = nn.ModuleList(self.make_layer(number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.add_head()
        initialize_weights(self, config.initializer_range, config.num_hidden_layers, generator)

    def make_layer(self, layer: int) -> DecoderLayer:
        """A layer with fresh weights."""
        config = self.config
        return DecoderLayer(
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            self.make_attention(layer),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
            GatedFeedForward(
                config.hidden_size, config.intermediate_size, config.hidden_act, config.mlp_bias
            ),
        )

    def make_attention(self, layer: int) -> Attention:
        """A layer's attention."""
        config, bias = self.config, self.config.attention_bias
        return Attention(config.hidden_size, config.heads, layer, bias, bias, config.windows[layer])

    def prepare(self, shared: Pass) -> None:
        """Work out the angles of this pass."""
        head_dim, context = self.config.heads[2], self.config.max_position_embeddings
        shared.angles = rotary_angles(shared.positions_BT, self.rope, head_dim, context, shared.lengths)


WEIGHT_MAP = (
    Entry("embedding", "model.embed_tokens"),
    Entry("layers.{layer}.attention_norm", "model.layers.{layer}.input_layernorm"),
    Entry("layers.{layer}.attention.query", "model.layers.{layer}.self_attn.q_proj"),
    Entry("layers.{layer}.attention.key", "model.layers.{layer}.self_attn.k_proj"),
    Entry("layers.{layer}.attention.value", "model.layers.{layer}.self_attn.v_proj"),
    Entry("layers.{layer}.attention.output", "model.layers.{layer}.self_attn.o_proj"),
    Entry("layers.{layer}.feed_forward_norm", "model.layers.{layer}.post_attention_layernorm"),
    Entry("layers.{layer}.feed_forward.gate", "model.layers.{layer}.mlp.gate_proj"),
    Entry("layers.{layer}.feed_forward.up", "model.layers.{layer}.mlp.up_proj"),
    Entry("layers.{layer}.feed_forward.down", "model.layers.{layer}.mlp.down_proj"),
    Entry("norm", "model.norm"),
    Entry("head", "lm_head"),
)

LLAMA_FAMILY = Family(
    architecture="LlamaForCausalLM",
    config=LlamaConfig,
    model=Llama,
    weight_map=WEIGHT_MAP,
    prefix="model.",
    ignored=(r".*\.rotary_emb\.inv_freq",),
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)
MISTRAL_FAMILY = replace(LLAMA_FAMILY, architecture="MistralForCausalLM", config=MistralConfig)
