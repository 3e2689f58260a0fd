"""What decoder-only families have in common: tokens in, layers, a score for every next token out.

Shapes: B batch, T positions of this call, S positions seen so far, D hidden_size, V vocab_size.
"""

from torch import Tensor, nn

from yunque.model.attention import Pass, plan_pass
from yunque.model.blocks import Embedding
from yunque.model.cache import Cache, KeyValueCache, RaggedCache
from yunque.model.configuration import DecoderConfig
from yunque.model.language_model import CausalModel


class Decoder(CausalModel):
    """A decoder-only Transformer; a family gives it `layers` and `norm`, and says how positions enter.

    A layer is called with (x_BTD, pass) and returns [B, T, D].
    """

    config: DecoderConfig
    layers: nn.ModuleList
    norm: nn.Module

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config.vocab_size, config.hidden_size)

    def add_head(self) -> None:
        """A matrix of its own for the scores, where the embedding does not serve for them."""
        config = self.config
        self.head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def embed(self, input_ids_BT: Tensor, shared: Pass) -> Tensor:
        """Vectors [B, T, D] that go into the first layer."""
        del shared
        vectors: Tensor = self.embedding(input_ids_BT)
        return vectors

    def prepare(self, shared: Pass) -> None:
        """Put what the layers need of positions (angles, biases) into the pass."""

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        cache: Cache | RaggedCache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D], from which `logits` makes scores.

        The arguments are those of `CausalModel.hidden`. A ragged cache says by itself where tokens stand.
        """
        assert cache is None or isinstance(cache, KeyValueCache | RaggedCache), (
            "a cache comes from the model's new_cache"
        )
        shared = plan_pass(input_ids_BT, attention_mask_BS, position_ids_BT, segment_ids_BT, cache)
        self.prepare(shared)
        x_BTD = self.embed(input_ids_BT, shared)
        for layer in self.layers:
            x_BTD = layer(x_BTD, shared)
        if isinstance(cache, KeyValueCache):
            cache.advance(shared.length)
        normed: Tensor = self.norm(x_BTD)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        scores: Tensor = self.embedding.logits(hidden) if self.head is None else self.head(hidden)
        return scores

    def new_cache(self, batch_size: int, capacity: int) -> KeyValueCache:
        """An empty cache for `capacity` positions, on the device and in the numbers of the model."""
        _, heads, head_dim = self.config.heads
        # A norm's gain stays a float where matrices are quantized.
        weight = next(self.norm.parameters())
        shape = (batch_size, heads, head_dim)
        return KeyValueCache(self.config.num_hidden_layers, shape, capacity, weight.dtype, weight.device)


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back (pre-norm)."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: nn.Module,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), shared)
        changed: Tensor = x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))
        return changed
