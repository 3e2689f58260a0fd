"""Falcon: attention and feed-forward side by side on one normed copy, or each on its own; one or few key-value heads.

The 7B has one key-value head for all queries, the 40B and 11B ("new decoder") a group for each; the smaller RW models
are sequential. Positions are rotary, or ALiBi. Almazrouei et al. 2023 (arXiv:2311.16867).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from yunque.model.attention import Attention, Pass
from yunque.model.blocks import FeedForward, initialize_weights
from yunque.model.configuration import Activation, DecoderConfig, Flag, Positive, Size, head_size
from yunque.model.decoder import Decoder, DecoderLayer
from yunque.model.family import Family
from yunque.model.positions import Rope, alibi, rotary_angles
from yunque.model.weight_map import Entry


class FalconConfig(DecoderConfig):
    """Shape of a Falcon. `new_decoder_architecture` has `num_kv_heads` groups, and a norm for each part of a layer
    unless `num_ln_in_parallel_attn` is 1; else `multi_query` is one key-value head, and its absence one for each
    query head."""

    model_type: Literal["falcon"] = "falcon"
    max_position_embeddings: Size = 2048
    intermediate_size: Size | None = Field(default=None, alias="ffn_hidden_size")
    num_kv_heads: Size | None = None
    new_decoder_architecture: Flag = False
    multi_query: Flag = True
    parallel_attn: Flag = True
    num_ln_in_parallel_attn: Literal[1, 2] | None = None
    alibi: Flag = False
    bias: Flag = False
    activation: Activation = "gelu"
    layer_norm_epsilon: Positive = 1e-5

    @model_validator(mode="after")
    def _check(self) -> Self:
        heads, shared, size = self.heads
        if heads % shared:
            raise ValueError("num_attention_heads must be a multiple of num_kv_heads")
        if self.new_decoder_architecture and not self.parallel_attn:
            raise ValueError("new_decoder_architecture means parallel_attn, which is false")
        if not (self.new_decoder_architecture or self.multi_query) and self.num_kv_heads not in (None, heads):
            raise ValueError(
                "num_kv_heads is for multi_query or new_decoder_architecture, which are both false"
            )
        if not self.new_decoder_architecture and self.parallel_attn and self.num_ln_in_parallel_attn == 2:
            raise ValueError("num_ln_in_parallel_attn is 2, which only new_decoder_architecture has")
        if not self.alibi:
            if size % 2:
                raise ValueError("heads must have an even size: rotary positions turn pairs of numbers")
            self.rope.check(size, self.max_position_embeddings)
        return self

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, and the size of one."""
        heads = self.num_attention_heads
        size = head_size(self.hidden_size, heads)
        if self.new_decoder_architecture:
            return heads, self.num_kv_heads or heads, size
        return heads, 1 if self.multi_query else heads, size

    @property
    def rope(self) -> Rope:
        """How rotary positions turn."""
        return Rope.of(self.model_dump(), self.max_position_embeddings)

    @property
    def norms(self) -> tuple[str, ...]:
        """What the norms of a parallel layer are for."""
        two = self.new_decoder_architecture and self.num_ln_in_parallel_attn != 1
        return ("attention", "feed_forward") if two else ("both",)


class ParallelLayer(nn.Module):
    """Attention and feed-forward, both from the same vectors, and both added back (Wang and Komatsuzaki 2021, GPT-J).

    `norms` are called "attention" and "feed_forward", or there is one for "both".
    """

    def __init__(self, norms: nn.ModuleDict, attention: Attention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.norms = norms
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        first, *others = [norm(x_BTD) for norm in self.norms.values()]
        second = others[0] if others else first
        changed: Tensor = x_BTD + (self.feed_forward(second) + self.attention(first, shared))
        return changed


class Falcon(Decoder):
    """A Falcon. Weights are drawn from `generator`: the same one gives the same model."""

    config: FalconConfig

    def __init__(self, config: FalconConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        self.rope = config.rope
        self.layers = nn.ModuleList(self.make_layer(number) for number in range(config.num_hidden_layers))
        self.norm = self.make_norm()
        self.add_head()
        initialize_weights(self, config.initializer_range, config.num_hidden_layers, generator)

    def make_norm(self) -> nn.LayerNorm:
        """A norm with fresh weights."""
        return nn.LayerNorm(self.config.hidden_size, self.config.layer_norm_epsilon)

    def make_layer(self, layer: int) -> nn.Module:
        """A layer with fresh weights."""
        config, size, bias = self.config, self.config.hidden_size, self.config.bias
        attention = Attention(size, config.heads, layer, bias, bias)
        feed_forward = FeedForward(size, config.intermediate_size or 4 * size, config.activation, bias)
        if config.parallel_attn:
            norms = nn.ModuleDict({name: self.make_norm() for name in config.norms})
            return ParallelLayer(norms, attention, feed_forward)
        return DecoderLayer(self.make_norm(), attention, self.make_norm(), feed_forward)

    def prepare(self, shared: Pass) -> None:
        """Work out the angles of this pass, or its ALiBi."""
        num_heads, _, head_dim = self.config.heads
        if self.config.alibi:
            # Falcon adds it before the scores are scaled down.
            shared.bias = alibi(shared.key_positions(), num_heads) * head_dim**-0.5
        else:
            context = self.config.max_position_embeddings
            shared.angles = rotary_angles(shared.positions_BT, self.rope, head_dim, context, shared.lengths)


@dataclass(frozen=True)
class Grouped:
    """Queries of a group, its key and its value, then the next group: rows of one matrix, or of one bias."""

    groups: int
    head_dim: int

    @classmethod
    def of(cls, config: FalconConfig) -> "Grouped":
        """As the heads of this model are grouped."""
        _, groups, head_dim = config.heads
        return cls(groups, head_dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """[rows of all three, ...]."""
        split = [part.reshape(self.groups, -1, self.head_dim, *part.shape[1:]) for part in parts]
        return torch.cat(split, 1).flatten(0, 2)

    def split(self, tensor: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """Query, key and value."""
        split = tensor.reshape(self.groups, -1, self.head_dim, *tensor.shape[1:])
        sizes = [shape[0] // (self.groups * self.head_dim) for shape in shapes]
        return [part.flatten(0, 2) for part in torch.split(split, sizes, 1)]


WEIGHT_MAP = (
    Entry("embedding", "transformer.word_embeddings"),
    Entry(
        (
            "layers.{layer}.attention.query",
            "layers.{layer}.attention.key",
            "layers.{layer}.attention.value",
        ),
        "transformer.h.{layer}.self_attention.query_key_value",
        Grouped.of,
    ),
    Entry("layers.{layer}.attention.output", "transformer.h.{layer}.self_attention.dense"),
    Entry("layers.{layer}.feed_forward.up", "transformer.h.{layer}.mlp.dense_h_to_4h"),
    Entry("layers.{layer}.feed_forward.down", "transformer.h.{layer}.mlp.dense_4h_to_h"),
    # A layer has one norm for both parts, or one for each: beside one another, or one after the other.
    Entry("layers.{layer}.norms.both", "transformer.h.{layer}.input_layernorm"),
    Entry("layers.{layer}.norms.attention", "transformer.h.{layer}.ln_attn"),
    Entry("layers.{layer}.norms.feed_forward", "transformer.h.{layer}.ln_mlp"),
    Entry("layers.{layer}.attention_norm", "transformer.h.{layer}.input_layernorm"),
    Entry("layers.{layer}.feed_forward_norm", "transformer.h.{layer}.post_attention_layernorm"),
    Entry("norm", "transformer.ln_f"),
    Entry("head", "lm_head"),
)

FALCON_FAMILY = Family(
    architecture="FalconForCausalLM",
    config=FalconConfig,
    model=Falcon,
    weight_map=WEIGHT_MAP,
    prefix="transformer.",
    ignored=(r".*\.rotary_emb\.inv_freq", r".*\.self_attention\.maybe_rotary\.inv_freq"),
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
)
