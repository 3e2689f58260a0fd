"""The Transformer as it was first described: an encoder-decoder to train translation with.

Sinusoidal positions added to the embeddings, a norm after each part and its residual (post-norm), ReLU feed-forward
layers, one embedding for source, target and scores.

Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762).
"""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from yunque.model.attention import Attention, CrossAttention, Pass
from yunque.model.blocks import FeedForward
from yunque.model.configuration import Activation, EncoderDecoderConfig, Layers, Positive, Size, head_size
from yunque.model.encoder_decoder import Stack, TransformerEncoderDecoder
from yunque.model.family import Family
from yunque.model.positions import sinusoids_at
from yunque.model.weight_map import Entry


class TransformerConfig(EncoderDecoderConfig):
    """Shape of a Transformer; the defaults are the base model of the paper.

    `dropout` is the share of numbers that training sets to 0, in the embeddings and in what each part adds.
    `max_position_embeddings` is how long the texts are that it is trained on: sinusoids have no end.
    """

    model_type: Literal["transformer"] = "transformer"
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_encoder_layers: Layers = 6
    num_decoder_layers: Layers = 6
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 512
    hidden_act: Activation = "relu"
    layer_norm_eps: Positive = 1e-5
    dropout: float = Field(default=0.1, ge=0, lt=1)
    tie_word_embeddings: Literal[True] = True
    is_encoder_decoder: Literal[True] = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.heads
        return self

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, as many key-value heads, and the size of one."""
        heads = self.num_attention_heads
        return heads, heads, head_size(self.hidden_size, heads)

    @property
    def context(self) -> int | None:
        """The most positions of a source, and of a target."""
        return self.max_position_embeddings

    @property
    def num_layers(self) -> int:
        """How many layers both stacks have together."""
        return self.num_encoder_layers + self.num_decoder_layers


class TransformerLayer(nn.Module):
    """Attention to its own stack, in a decoder attention to the source, then feed-forward: each added back to what it
    read, and the sum normed."""

    def __init__(self, config: TransformerConfig, layer: int, decodes: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(size, config.heads, layer, bias=True, output_bias=True)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.cross_attention: nn.Module | None = None
        self.cross_attention_norm: nn.Module | None = None
        if decodes:
            self.cross_attention = CrossAttention(size, config.heads, layer, bias=True, output_bias=True)
            self.cross_attention_norm = nn.LayerNorm(size, eps)
        self.feed_forward = FeedForward(size, config.intermediate_size, config.hidden_act, bias=True)
        self.feed_forward_norm = nn.LayerNorm(size, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, shared)))
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            x_BTD = self.cross_attention_norm(x_BTD + self.dropout(self.cross_attention(x_BTD, shared)))
        normed: Tensor = self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
        return normed


class Transformer(TransformerEncoderDecoder):
    """A Transformer. Weights are drawn from `generator`: the same one gives the same model."""

    config: TransformerConfig

    def __init__(self, config: TransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, config.hidden_size, config.heads)
        numbers, targets = range(config.num_encoder_layers), range(config.num_decoder_layers)
        self.encoder = Stack(TransformerLayer(config, number, decodes=False) for number in numbers)
        self.decoder = Stack(TransformerLayer(config, number, decodes=True) for number in targets)
        self.dropout = nn.Dropout(config.dropout)
        self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        """Glorot's deviation for matrices; embeddings are of size 1 once they are multiplied (see `embed`)."""
        for name, weight in self.named_parameters():
            if name == "embedding.weight":
                weight.normal_(0.0, self.config.hidden_size**-0.5, generator=generator)
            elif weight.dim() == 2:
                weight.normal_(0.0, math.sqrt(2 / sum(weight.shape)), generator=generator)
            elif name.endswith("bias"):
                weight.zero_()

    def embed(self, input_ids_BT: Tensor, shared: Pass) -> Tensor:
        """Embeddings, and a wave for their positions added: [B, T, D]."""
        vectors_BTD = self.embedding(input_ids_BT) * math.sqrt(self.config.hidden_size)
        waves_BTD = sinusoids_at(shared.positions_BT, self.config.hidden_size).to(vectors_BTD.dtype)
        summed: Tensor = self.dropout(vectors_BTD + waves_BTD)
        return summed


def _same_names(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, name) for name in names)


def _attention_names(attention: str) -> tuple[str, ...]:
    parts = ("query", "key", "value", "output")
    return (f"{attention}_norm", *(f"{attention}.{part}" for part in parts))


def _layer_names(layer: str) -> tuple[str, ...]:
    feed_forward = (f"{layer}.feed_forward{part}" for part in ("_norm", ".up", ".down"))
    return (*_attention_names(f"{layer}.attention"), *feed_forward)


# Nobody else's checkpoints have this shape exactly, so the names in ours are those of the modules.
WEIGHT_MAP = _same_names(
    "embedding",
    *_layer_names("encoder.layers.{layer}"),
    *_layer_names("decoder.layers.{layer}"),
    *_attention_names("decoder.layers.{layer}.cross_attention"),
)

TRANSFORMER_FAMILY = Family(
    architecture="YunqueTransformer",
    config=TransformerConfig,
    model=Transformer,
    weight_map=WEIGHT_MAP,
)
