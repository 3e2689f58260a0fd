"""The faces of models: what training, generation and measurement may ask of any family.

Shapes: B batch, T positions of this call, S positions seen so far (of the source, for an encoder), D hidden_size, V
vocab_size.
"""

from torch import Tensor, nn

from yunque.model.cache import Cache
from yunque.model.configuration import EncoderDecoderConfig, ModelConfig


class LanguageModel(nn.Module):
    """A model of any family; `config` is its shape. A family's own class also takes the `generator` that its fresh
    weights are drawn from: the same one gives the same model (see `yunque.model.family.new_model`)."""

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config


class CausalModel(LanguageModel):
    """Reads tokens and scores the next one: a decoder-only Transformer, or a recurrent network."""

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D], from which `logits` makes scores.

        With a `cache` these tokens follow the ones it holds. `attention_mask_BS` is 1 for tokens and 0 for padding,
        on either side, and covers cached positions too. `position_ids_BT` count the tokens of a row without its
        padding, unless they are given. With `segment_ids_BT` several documents share a window: a position sees only
        earlier positions of its own segment.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty cache for `capacity` positions, on the device and in the numbers of the model."""
        raise NotImplementedError

    def forward(
        self,
        input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Scores [B, T, V] of the token that follows each position; the arguments are those of `hidden`."""
        return self.logits(
            self.hidden(input_ids_BT, attention_mask_BS, position_ids_BT, cache, segment_ids_BT)
        )


class EncoderDecoder(LanguageModel):
    """Reads a source as a whole, then writes a target token by token."""

    config: EncoderDecoderConfig

    def encode(self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None = None) -> Tensor:
        """The memory of a source: a vector for each of its tokens, [B, S, D]. The mask is 0 for padding."""
        raise NotImplementedError

    def decode(
        self,
        decoder_input_ids_BT: Tensor,
        memory_BSD: Tensor,
        attention_mask_BS: Tensor | None = None,
        cache: Cache | None = None,
        decoder_attention_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D] of the target so far, which begins with `config.decoder_start_token_id`.

        `attention_mask_BS` is the source's. With a `cache` these tokens follow the ones it holds, and the memory's
        keys and values are worked out once. The target's mask covers cached positions too.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        raise NotImplementedError

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty cache for a target of `capacity` positions."""
        raise NotImplementedError

    def forward(
        self,
        input_ids_BS: Tensor,
        decoder_input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        decoder_attention_mask_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Scores [B, T, V] of the target's next tokens."""
        memory_BSD = self.encode(input_ids_BS, attention_mask_BS)
        return self.logits(
            self.decode(decoder_input_ids_BT, memory_BSD, attention_mask_BS, cache, decoder_attention_mask_BT)
        )


class Encoder(LanguageModel):
    """Reads a text and gives vectors for it."""

    def hidden(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """A vector for each token, [B, T, D]; the mask is 0 for padding."""
        raise NotImplementedError

    def embed(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """A vector of length 1 for each text, [B, D]."""
        raise NotImplementedError

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Tensor:
        """The same as `hidden`."""
        return self.hidden(input_ids_BT, attention_mask_BT)
