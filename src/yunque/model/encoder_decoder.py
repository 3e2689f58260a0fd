"""What encoder-decoder Transformers have in common: a source read as a whole, a target written after it.

Shapes: B batch, T positions of this call, S positions of the source, D hidden_size, V vocab_size.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from yunque.model.attention import Memory, Pass, padding_mask, plan_pass
from yunque.model.blocks import Embedding
from yunque.model.cache import Cache, EncoderDecoderCache, RaggedCache
from yunque.model.configuration import EncoderDecoderConfig
from yunque.model.language_model import EncoderDecoder


class Stack(nn.Module):
    """The layers of an encoder or of a decoder, one above the other, and the norm of what comes out.

    A layer is called with (x_BTD, pass) and returns [B, T, D].
    """

    def __init__(self, layers: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        for layer in self.layers:
            x_BTD = layer(x_BTD, shared)
        return x_BTD if self.norm is None else self.norm(x_BTD)


class TransformerEncoderDecoder(EncoderDecoder):
    """A Transformer of two stacks over one embedding; a family gives it `encoder` and `decoder`."""

    encoder: Stack
    decoder: Stack
    # A matrix of its own for the scores, where the embedding does not serve for them.
    head: nn.Linear | None

    def __init__(self, config: EncoderDecoderConfig, hidden_size: int, heads: tuple[int, int, int]) -> None:
        """`heads` are (query heads, key-value heads, head_dim)."""
        super().__init__(config)
        self.heads = heads
        self.embedding = Embedding(config.vocab_size, hidden_size)
        self.head = (
            None if config.tie_word_embeddings else nn.Linear(hidden_size, config.vocab_size, bias=False)
        )

    def embed(self, input_ids_BT: Tensor, shared: Pass) -> Tensor:
        """Vectors [B, T, D] that go into the first layer of either stack."""
        del shared
        vectors: Tensor = self.embedding(input_ids_BT)
        return vectors

    def encode(self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None = None) -> Tensor:
        """The memory of a source: a vector for each of its tokens, [B, S, D]. The mask is 0 for padding."""
        shared = plan_pass(input_ids_BS, attention_mask_BS, None, None, None, causal=False)
        memory_BSD: Tensor = self.encoder(self.embed(input_ids_BS, shared), shared)
        return memory_BSD

    def decode(
        self,
        decoder_input_ids_BT: Tensor,
        memory_BSD: Tensor | None,
        attention_mask_BS: Tensor | None = None,
        cache: Cache | RaggedCache | None = None,
        decoder_attention_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D] of the target so far.

        The arguments are those of `EncoderDecoder.decode`. A ragged cache has what is looked at of the memory, and
        takes its place.
        """
        assert cache is None or isinstance(cache, EncoderDecoderCache | RaggedCache), (
            "a cache comes from the model's new_cache"
        )
        shared = plan_pass(decoder_input_ids_BT, decoder_attention_mask_BT, None, None, cache)
        if memory_BSD is not None:
            shared.memory = Memory(memory_BSD, padding_mask(attention_mask_BS))
        hidden_BTD: Tensor = self.decoder(self.embed(decoder_input_ids_BT, shared), shared)
        if isinstance(cache, EncoderDecoderCache):
            cache.advance(shared.length)
        return hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        scores: Tensor = self.embedding.logits(hidden) if self.head is None else self.head(hidden)
        return scores

    def new_cache(self, batch_size: int, capacity: int) -> EncoderDecoderCache:
        """An empty cache for a target of `capacity` positions, on the device and in the numbers of the model."""
        # A norm's gain stays a float where matrices are quantized.
        gain = next(
            weight for name, weight in self.decoder.named_parameters() if name.endswith("norm.weight")
        )
        shape = (batch_size, self.heads[1], self.heads[2])
        return EncoderDecoderCache(len(self.decoder.layers), shape, capacity, gain.dtype, gain.device)
