"""Llama, the decoder-only family: its layers, and the names its weights have in a Hugging Face checkpoint.

Shapes: B batch, T positions of this call, S positions seen so far, D hidden_size, V vocab_size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.model.blocks import Attention, FeedForward, KeyValueCache, RMSNorm, rotary_angles
from yunque.model.configuration import LlamaConfig

# Our name and the checkpoint's, used in both directions; {layer} stands for every layer's number.
WEIGHT_MAP: tuple[tuple[str, str], ...] = (
    ("embedding", "model.embed_tokens"),
    ("layers.{layer}.attention_norm", "model.layers.{layer}.input_layernorm"),
    ("layers.{layer}.attention.query", "model.layers.{layer}.self_attn.q_proj"),
    ("layers.{layer}.attention.key", "model.layers.{layer}.self_attn.k_proj"),
    ("layers.{layer}.attention.value", "model.layers.{layer}.self_attn.v_proj"),
    ("layers.{layer}.attention.output", "model.layers.{layer}.self_attn.o_proj"),
    ("layers.{layer}.feed_forward_norm", "model.layers.{layer}.post_attention_layernorm"),
    ("layers.{layer}.feed_forward.gate", "model.layers.{layer}.mlp.gate_proj"),
    ("layers.{layer}.feed_forward.up", "model.layers.{layer}.mlp.up_proj"),
    ("layers.{layer}.feed_forward.down", "model.layers.{layer}.mlp.down_proj"),
    ("norm", "model.norm"),
)


class TiedEmbedding(nn.Module):
    """The table of token vectors: it reads tokens at the bottom and scores them at the top."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]."""
        return F.embedding(input_ids_BT, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return F.linear(hidden, self.weight)


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, mask, cache)
        changed: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return changed


class Llama(nn.Module):
    """A decoder-only Transformer with tied embeddings (Touvron et al. 2023, arXiv:2302.13971).

    Weights are drawn from `generator`: the same one gives the same model.
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.embedding = TiedEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator | None) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Layers that write into the residual stream start smaller, so that its size does not grow
                # with depth (GPT-2).
                last = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                scale = math.sqrt(2 * self.config.num_hidden_layers) if last else 1.0
                weight.normal_(0.0, self.config.initializer_range / scale, generator=generator)

    def hidden(
        self,
        input_ids_BT: Tensor,
        cache: KeyValueCache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D], from which `embedding.logits` makes scores.

        With a `cache` these tokens follow the ones it holds. With `segment_ids_BT` several documents share a
        window: a position sees only earlier positions of its own segment.
        """
        start, T = (cache.length if cache else 0), input_ids_BT.shape[1]
        positions_T = torch.arange(start, start + T, device=input_ids_BT.device)
        angles = rotary_angles(positions_T, self.config.head_dim, self.config.rope_theta)
        mask = _attention_mask(positions_T, segment_ids_BT, start)
        x_BTD = self.embedding(input_ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, angles, mask, cache)
        if cache is not None:
            cache.advance(T)
        normed: Tensor = self.norm(x_BTD)
        return normed

    def forward(
        self,
        input_ids_BT: Tensor,
        cache: KeyValueCache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Scores [B, T, V] of the token that follows each position; the arguments are those of `hidden`."""
        logits: Tensor = self.embedding.logits(self.hidden(input_ids_BT, cache, segment_ids_BT))
        return logits


def _attention_mask(positions_T: Tensor, segment_ids_BT: Tensor | None, start: int) -> Tensor | None:
    """True where a query may look, [B, 1, T, T] or [T, S]; None where the plain causal rule will do."""
    if segment_ids_BT is not None:
        assert start == 0, "packed documents are not read through a cache"
        same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        return (same_BTT & (positions_T[:, None] >= positions_T[None, :]))[:, None]
    if start and len(positions_T) > 1:
        return positions_T[:, None] >= torch.arange(start + len(positions_T), device=positions_T.device)
    return None
