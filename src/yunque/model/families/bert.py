"""BERT, and MiniLM which has its shape: an encoder that gives vectors for tokens and for whole texts.

Learned positions, norms after each part (post-norm), GELU. The vector of a text is the mean of its tokens' vectors,
or what sentence-transformers' files beside the model say, with length 1.

Devlin et al. 2018 (arXiv:1810.04805); Wang et al. 2020 (arXiv:2002.10957); Reimers and Gurevych 2019
(arXiv:1908.10084).
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from yunque.model.attention import Attention, Pass, plan_pass
from yunque.model.blocks import Embedding, FeedForward, initialize_weights
from yunque.model.configuration import Activation, Layers, ModelConfig, Positive, Size, head_size
from yunque.model.family import Family
from yunque.model.formats.pooling import pooling_fields
from yunque.model.language_model import Encoder
from yunque.model.weight_map import Entry


class BertConfig(ModelConfig):
    """Shape of a BERT; `pooling` is ours: how the vectors of tokens become one for the text."""

    model_type: Literal["bert"] = "bert"
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    hidden_act: Activation = "gelu"
    layer_norm_eps: Positive = 1e-12
    initializer_range: Positive = 0.02
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False
    pooling: Literal["mean", "cls", "max"] = "mean"

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
        """The most positions the model can read."""
        return self.max_position_embeddings

    @property
    def num_layers(self) -> int:
        """How many layers it has."""
        return self.num_hidden_layers


class BertLayer(nn.Module):
    """Attention, then feed-forward; each is added to what it read, and the sum is normed (post-norm)."""

    def __init__(self, config: BertConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(size, config.heads, layer, bias=True, output_bias=True)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.feed_forward = FeedForward(size, config.intermediate_size, config.hidden_act, bias=True)
        self.feed_forward_norm = nn.LayerNorm(size, eps)

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, shared))
        changed: Tensor = self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD))
        return changed


class Bert(Encoder):
    """A BERT. Weights are drawn from `generator`: the same one gives the same model.

    The `pooler` (a matrix for the first token, which other tasks train) is kept for the round trip alone; heads of
    other tasks are not kept.
    """

    config: BertConfig

    def __init__(self, config: BertConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.embedding = Embedding(config.vocab_size, size)
        self.positions = Embedding(config.max_position_embeddings, size)
        self.types = Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.pooler = nn.Linear(size, size)
        initialize_weights(self, config.initializer_range, config.num_hidden_layers, generator)

    def hidden(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """A vector for each token, [B, T, D]; the mask is 0 for padding. All tokens are of the first type."""
        shared = plan_pass(input_ids_BT, attention_mask_BT, None, None, None, causal=False)
        first_type = self.types(torch.zeros_like(input_ids_BT))
        x_BTD = self.embedding(input_ids_BT) + first_type + self.positions(shared.positions_BT)
        normed_BTD: Tensor = self.norm(x_BTD)
        for layer in self.layers:
            normed_BTD = layer(normed_BTD, shared)
        return normed_BTD

    def embed(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """A vector of length 1 for each text, [B, D]."""
        x_BTD = self.hidden(input_ids_BT, attention_mask_BT)
        mask_BT = torch.ones_like(input_ids_BT) if attention_mask_BT is None else attention_mask_BT
        return F.normalize(self.pool(x_BTD, mask_BT.bool()), dim=-1)

    def pool(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """One vector [B, D] of each row's tokens, as the configuration says; `mask_BT` is False for padding."""
        mask_BT1 = mask_BT[..., None]
        if self.config.pooling == "max":
            largest_BD: Tensor = x_BTD.masked_fill(~mask_BT1, torch.finfo(x_BTD.dtype).min).amax(1)
            return largest_BD
        if self.config.pooling == "cls":
            first_B = mask_BT.long().argmax(1)
            first_BD: Tensor = x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), first_B]
            return first_BD
        mean_BD: Tensor = (x_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return mean_BD


WEIGHT_MAP = (
    Entry("embedding", "embeddings.word_embeddings"),
    Entry("positions", "embeddings.position_embeddings"),
    Entry("types", "embeddings.token_type_embeddings"),
    Entry("norm", "embeddings.LayerNorm"),
    Entry("layers.{layer}.attention.query", "encoder.layer.{layer}.attention.self.query"),
    Entry("layers.{layer}.attention.key", "encoder.layer.{layer}.attention.self.key"),
    Entry("layers.{layer}.attention.value", "encoder.layer.{layer}.attention.self.value"),
    Entry("layers.{layer}.attention.output", "encoder.layer.{layer}.attention.output.dense"),
    Entry("layers.{layer}.attention_norm", "encoder.layer.{layer}.attention.output.LayerNorm"),
    Entry("layers.{layer}.feed_forward.up", "encoder.layer.{layer}.intermediate.dense"),
    Entry("layers.{layer}.feed_forward.down", "encoder.layer.{layer}.output.dense"),
    Entry("layers.{layer}.feed_forward_norm", "encoder.layer.{layer}.output.LayerNorm"),
    Entry("pooler", "pooler.dense"),
)

BERT_FAMILY = Family(
    architecture="BertModel",
    config=BertConfig,
    model=Bert,
    weight_map=WEIGHT_MAP,
    prefix="bert.",
    ignored=(r".*embeddings\.position_ids", r"(cls|classifier|qa_outputs)\..*"),
    optional=("pooler",),
    old_endings={"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"},
    beside=pooling_fields,
)
