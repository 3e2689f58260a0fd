"""T5 v1.0, T5 v1.1, FLAN-T5 and mT5: an encoder-decoder that knows relative positions only.

A learned bias for each distance and head is added to the attention scores of every layer of a stack; the scores are
not scaled. RMS norm before each part, no bias in any matrix. v1.0 has a ReLU feed-forward layer, and scales what its
embedding scores; v1.1 and FLAN-T5 have a gated GELU, and a matrix of their own for the scores.

Raffel et al. 2019 (arXiv:1910.10683); Shazeer 2020 (arXiv:2002.05202); Chung et al. 2022 (arXiv:2210.11416); Xue et
al. 2020 (arXiv:2010.11934).
"""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, Strict, model_validator
from torch import Tensor, nn

from yunque.model.attention import Attention, CrossAttention, Pass
from yunque.model.blocks import Embedding, FeedForward, GatedFeedForward, RMSNorm
from yunque.model.configuration import (
    Activation,
    EncoderDecoderConfig,
    Flag,
    Layers,
    Positive,
    Size,
    TokenId,
)
from yunque.model.encoder_decoder import Stack, TransformerEncoderDecoder
from yunque.model.family import Family
from yunque.model.positions import distance_buckets
from yunque.model.weight_map import Entry


class T5Shape(EncoderDecoderConfig):
    """What T5 and mT5 share; without `num_decoder_layers` the decoder is as deep as the encoder.

    `feed_forward_proj` is an activation, or `gated-` and one; `dense_act_fn` and `is_gated_act` repeat it, and win.
    """

    model_type: Literal["t5", "mt5"]
    hidden_size: Size = Field(default=512, alias="d_model")
    head_dim: Size = Field(default=64, alias="d_kv")
    intermediate_size: Size = Field(alias="d_ff")
    num_encoder_layers: Layers = Field(alias="num_layers")
    num_decoder_layers: Layers | None = None
    num_attention_heads: Size = Field(alias="num_heads")
    # Fewer buckets could not be parted into left and right, near and far.
    relative_attention_num_buckets: Annotated[int, Strict()] = Field(default=32, ge=4, le=2**16)
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: Positive = 1e-6
    initializer_factor: Positive = 1.0
    feed_forward_proj: str
    dense_act_fn: Activation
    is_gated_act: Flag
    is_encoder_decoder: Literal[True] = True
    is_decoder: Literal[False] = False
    pad_token_id: TokenId | None = 0
    eos_token_id: TokenId | tuple[TokenId, ...] | None = 1

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, fields: dict[str, Any]) -> dict[str, Any]:
        form = fields.get("feed_forward_proj", cls.model_fields["feed_forward_proj"].default)
        gated, _, activation = str(form).rpartition("-")
        if gated not in ("", "gated"):
            raise ValueError("feed_forward_proj is an activation, or 'gated-' and one")
        # GELU behind a gate is, to T5's authors, its approximation by tanh.
        activation = "gelu_new" if form == "gated-gelu" else activation
        derived = {
            "dense_act_fn": activation,
            "is_gated_act": bool(gated),
            "decoder_start_token_id": fields.get("pad_token_id") or 0,
        }
        return fields | {name: value for name, value in derived.items() if fields.get(name) is None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ValueError(
                "relative_attention_max_distance must be more than half of relative_attention_num_buckets"
            )
        return self

    @property
    def context(self) -> int | None:
        """None: far distances are all alike, and nothing else limits the positions."""
        return None

    @property
    def num_layers(self) -> int:
        """How many layers both stacks have together."""
        return self.num_encoder_layers + (self.num_decoder_layers or self.num_encoder_layers)

    @property
    def output_scale(self) -> float:
        """What the final vectors are multiplied by before they are scored."""
        return 1.0


class MT5Config(T5Shape):
    """Shape of an mT5."""

    model_type: Literal["mt5"] = "mt5"
    vocab_size: Size = 250112
    intermediate_size: Size = Field(default=1024, alias="d_ff")
    num_encoder_layers: Layers = Field(default=8, alias="num_layers")
    num_attention_heads: Size = Field(default=6, alias="num_heads")
    feed_forward_proj: str = "gated-gelu"


class T5Config(T5Shape):
    """Shape of a T5; scores are scaled (v1.0) unless `tie_word_embeddings` was false in its first `config.json`."""

    model_type: Literal["t5"] = "t5"
    vocab_size: Size = 32128
    intermediate_size: Size = Field(default=2048, alias="d_ff")
    num_encoder_layers: Layers = Field(default=6, alias="num_layers")
    num_attention_heads: Size = Field(default=8, alias="num_heads")
    feed_forward_proj: str = "relu"
    scale_decoder_outputs: Flag

    @model_validator(mode="before")
    @classmethod
    def _fill_scale(cls, fields: dict[str, Any]) -> dict[str, Any]:
        # A field of its own: whether embeddings are tied is in the end decided by the tensors (`Family.own_head`).
        return {"scale_decoder_outputs": fields.get("tie_word_embeddings") is not False} | fields

    @property
    def output_scale(self) -> float:
        """What the final vectors are multiplied by before they are scored."""
        return self.hidden_size**-0.5 if self.scale_decoder_outputs else 1.0


class T5Layer(nn.Module):
    """Attention to its own stack, in a decoder attention to the source, then feed-forward: each on a normed copy and
    added back."""

    def __init__(self, config: T5Shape, layer: int, decodes: bool) -> None:
        super().__init__()
        size, eps, activation = config.hidden_size, config.layer_norm_epsilon, config.dense_act_fn
        heads = (config.num_attention_heads, config.num_attention_heads, config.head_dim)
        self.attention_norm = RMSNorm(size, eps)
        self.attention = Attention(size, heads, layer, scale=1.0)
        self.cross_attention_norm = RMSNorm(size, eps) if decodes else None
        self.cross_attention = CrossAttention(size, heads, layer, scale=1.0) if decodes else None
        self.feed_forward_norm = RMSNorm(size, eps)
        # Two names for one place: in checkpoints too the matrices of the two kinds are named otherwise.
        self.gated_feed_forward: nn.Module | None = None
        self.feed_forward: nn.Module | None = None
        if config.is_gated_act:
            self.gated_feed_forward = GatedFeedForward(size, config.intermediate_size, activation, bias=False)
        else:
            self.feed_forward = FeedForward(size, config.intermediate_size, activation, bias=False)

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x_BTD = _bounded(x_BTD + self.attention(self.attention_norm(x_BTD), shared))
        if self.cross_attention_norm is not None and self.cross_attention is not None:
            x_BTD = _bounded(x_BTD + self.cross_attention(self.cross_attention_norm(x_BTD), shared))
        feed_forward = self.gated_feed_forward or self.feed_forward
        assert feed_forward is not None
        return _bounded(x_BTD + feed_forward(self.feed_forward_norm(x_BTD)))


def _bounded(x_BTD: Tensor) -> Tensor:
    # T5 was trained in bfloat16, and some of its numbers are beyond what float16 can hold.
    return x_BTD.clamp(-65504, 65504) if x_BTD.dtype == torch.float16 else x_BTD


class T5Stack(Stack):
    """An encoder or a decoder, and the biases for relative positions that all of its layers share."""

    def __init__(self, config: T5Shape, num_layers: int, decodes: bool) -> None:
        layers = (T5Layer(config, number, decodes) for number in range(num_layers))
        super().__init__(layers, RMSNorm(config.hidden_size, config.layer_norm_epsilon))
        self.both_ways = not decodes
        self.max_distance = config.relative_attention_max_distance
        self.positions = Embedding(config.relative_attention_num_buckets, config.num_attention_heads)

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        shared.bias = self.bias(shared.places(), shared.seen)
        return super().forward(x_BTD, shared)

    def bias(self, places_BT: Tensor, seen: int) -> Tensor:
        """[B, N, T, S]: what the distance from each of these positions to each of the `seen` ones adds."""
        keys_11S = torch.arange(seen, device=places_BT.device)[None, None]
        buckets_BTS = distance_buckets(
            keys_11S - places_BT[:, :, None], len(self.positions.weight), self.max_distance, self.both_ways
        )
        bias_BTSN: Tensor = self.positions(buckets_BTS)
        return bias_BTSN.permute(0, 3, 1, 2)


class T5(TransformerEncoderDecoder):
    """A T5. Weights are drawn from `generator`: the same one gives the same model."""

    config: T5Shape

    def __init__(self, config: T5Shape, generator: torch.Generator | None = None) -> None:
        heads = (config.num_attention_heads, config.num_attention_heads, config.head_dim)
        super().__init__(config, config.hidden_size, heads)
        self.encoder = T5Stack(config, config.num_encoder_layers, decodes=False)
        self.decoder = T5Stack(config, config.num_decoder_layers or config.num_encoder_layers, decodes=True)
        self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() != 2:
                continue
            deviation = weight.shape[1] ** -0.5
            if name.endswith("query.weight"):
                # In place of the scale that attention does without.
                deviation = (self.config.hidden_size * self.config.head_dim) ** -0.5
            elif name.endswith("positions.weight"):
                deviation = self.config.hidden_size**-0.5
            elif name == "embedding.weight":
                deviation = 1.0
            weight.normal_(0.0, self.config.initializer_factor * deviation, generator=generator)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return super().logits(hidden * self.config.output_scale)


def _stack_map(stack: str, feed_forward: int) -> tuple[Entry, ...]:
    """The map of one stack, where `feed_forward` is the number of that part in a layer of a checkpoint."""
    ours, theirs = f"{stack}.layers.{{layer}}", f"{stack}.block.{{layer}}.layer"
    return (
        Entry(f"{stack}.positions", f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"),
        Entry(f"{ours}.attention_norm", f"{theirs}.0.layer_norm"),
        Entry(f"{ours}.attention.query", f"{theirs}.0.SelfAttention.q"),
        Entry(f"{ours}.attention.key", f"{theirs}.0.SelfAttention.k"),
        Entry(f"{ours}.attention.value", f"{theirs}.0.SelfAttention.v"),
        Entry(f"{ours}.attention.output", f"{theirs}.0.SelfAttention.o"),
        Entry(f"{ours}.feed_forward_norm", f"{theirs}.{feed_forward}.layer_norm"),
        Entry(f"{ours}.feed_forward.up", f"{theirs}.{feed_forward}.DenseReluDense.wi"),
        Entry(f"{ours}.feed_forward.down", f"{theirs}.{feed_forward}.DenseReluDense.wo"),
        Entry(f"{ours}.gated_feed_forward.gate", f"{theirs}.{feed_forward}.DenseReluDense.wi_0"),
        Entry(f"{ours}.gated_feed_forward.up", f"{theirs}.{feed_forward}.DenseReluDense.wi_1"),
        Entry(f"{ours}.gated_feed_forward.down", f"{theirs}.{feed_forward}.DenseReluDense.wo"),
        Entry(f"{stack}.norm", f"{stack}.final_layer_norm"),
    )


WEIGHT_MAP = (
    Entry("embedding", "shared"),
    *_stack_map("encoder", feed_forward=1),
    *_stack_map("decoder", feed_forward=2),
    Entry("decoder.layers.{layer}.cross_attention_norm", "decoder.block.{layer}.layer.1.layer_norm"),
    Entry("decoder.layers.{layer}.cross_attention.query", "decoder.block.{layer}.layer.1.EncDecAttention.q"),
    Entry("decoder.layers.{layer}.cross_attention.key", "decoder.block.{layer}.layer.1.EncDecAttention.k"),
    Entry("decoder.layers.{layer}.cross_attention.value", "decoder.block.{layer}.layer.1.EncDecAttention.v"),
    Entry("decoder.layers.{layer}.cross_attention.output", "decoder.block.{layer}.layer.1.EncDecAttention.o"),
    Entry("head", "lm_head"),
)

T5_FAMILY = Family(
    architecture="T5ForConditionalGeneration",
    config=T5Config,
    model=T5,
    weight_map=WEIGHT_MAP,
    # The first checkpoints had a table for distances from target to source, which was never used.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    copies={
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    },
    own_head="lm_head.weight",
)
MT5_FAMILY = replace(T5_FAMILY, architecture="MT5ForConditionalGeneration", config=MT5Config)
