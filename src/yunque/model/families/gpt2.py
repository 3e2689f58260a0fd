"""GPT-2: learned positions, layer norm before each part, GELU, and matrices that lie on their side in checkpoints.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from yunque.model.attention import Attention, Pass
from yunque.model.blocks import Embedding, FeedForward, initialize_weights
from yunque.model.configuration import Activation, DecoderConfig, Flag, Layers, Positive, Size, head_size
from yunque.model.decoder import Decoder, DecoderLayer
from yunque.model.family import Family
from yunque.model.weight_map import Entry, StackedTransposed


class GPT2Config(DecoderConfig):
    """Shape of a GPT-2; without `n_inner` the feed-forward layers are four times as wide as the model."""

    model_type: Literal["gpt2"] = "gpt2"
    hidden_size: Size = Field(alias="n_embd")
    num_hidden_layers: Layers = Field(alias="n_layer")
    num_attention_heads: Size = Field(alias="n_head")
    max_position_embeddings: Size = Field(default=1024, alias="n_positions")
    intermediate_size: Size | None = Field(default=None, alias="n_inner")
    activation_function: Activation = "gelu_new"
    layer_norm_epsilon: Positive = 1e-5
    scale_attn_weights: Flag = True
    scale_attn_by_inverse_layer_idx: Flag = False
    add_cross_attention: Literal[False] = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.heads
        return self

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, as many key-value heads, and the size of one."""
        heads = self.num_attention_heads
        return heads, heads, head_size(self.hidden_size, heads)

    def attention_scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied by."""
        scale = self.heads[2] ** -0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale


class GPT2(Decoder):
    """A GPT-2. Weights are drawn from `generator`: the same one gives the same model."""

    config: GPT2Config

    def __init__(self, config: GPT2Config, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(self.make_layer(number) for number in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.add_head()
        initialize_weights(self, config.initializer_range, config.num_hidden_layers, generator)

    def make_layer(self, layer: int) -> DecoderLayer:
        """A layer with fresh weights."""
        config, size = self.config, self.config.hidden_size
        return DecoderLayer(
            nn.LayerNorm(size, config.layer_norm_epsilon),
            Attention(
                size, config.heads, layer, bias=True, output_bias=True, scale=config.attention_scale(layer)
            ),
            nn.LayerNorm(size, config.layer_norm_epsilon),
            FeedForward(size, config.intermediate_size or 4 * size, config.activation_function, bias=True),
        )

    def embed(self, input_ids_BT: Tensor, shared: Pass) -> Tensor:
        """A vector for the token and one for its position, added: [B, T, D]."""
        vectors: Tensor = self.embedding(input_ids_BT) + self.positions(shared.positions_BT)
        return vectors


WEIGHT_MAP = (
    Entry("embedding", "transformer.wte"),
    Entry("positions", "transformer.wpe"),
    Entry("layers.{layer}.attention_norm", "transformer.h.{layer}.ln_1"),
    Entry(
        (
            "layers.{layer}.attention.query",
            "layers.{layer}.attention.key",
            "layers.{layer}.attention.value",
        ),
        "transformer.h.{layer}.attn.c_attn",
        StackedTransposed(),
    ),
    Entry("layers.{layer}.attention.output", "transformer.h.{layer}.attn.c_proj", StackedTransposed()),
    Entry("layers.{layer}.feed_forward_norm", "transformer.h.{layer}.ln_2"),
    Entry("layers.{layer}.feed_forward.up", "transformer.h.{layer}.mlp.c_fc", StackedTransposed()),
    Entry("layers.{layer}.feed_forward.down", "transformer.h.{layer}.mlp.c_proj", StackedTransposed()),
    Entry("norm", "transformer.ln_f"),
    Entry("head", "lm_head"),
)

GPT2_FAMILY = Family(
    architecture="GPT2LMHeadModel",
    config=GPT2Config,
    model=GPT2,
    weight_map=WEIGHT_MAP,
    prefix="transformer.",
    ignored=(r".*\.attn\.(bias|masked_bias)",),
    copies={"lm_head.weight": "transformer.wte.weight"},
)
