"""Recurrent networks, as language models and translators were before the Transformer: the baseline to compare with.

A state is carried from token to token: LSTM (Hochreiter and Schmidhuber 1997) or GRU (Cho et al. 2014,
arXiv:1406.1078). The names of the configuration and of the tensors are ours: no other program writes such files.

The matrices of the recurrence belong to `nn.LSTM` and `nn.GRU`, which are quick because they are one whole: LoRA,
which replaces an `nn.Linear`, does not reach them. It does reach the embedding, the head, the bridge and the
attention.

Shapes: B batch, T positions of this call, N all of them (B * T), S positions of the source, D hidden_size, L layers
of a stack, R runs (rows, or documents in them), V vocab_size.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from yunque.model.attention import AttentionBlock, padding_mask
from yunque.model.blocks import Embedding
from yunque.model.cache import Cache
from yunque.model.configuration import EncoderDecoderConfig, Flag, Layers, ModelConfig, Positive, Size
from yunque.model.family import Family
from yunque.model.language_model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.weight_map import Entry

Cell = Literal["lstm", "gru"]


class RecurrentConfig(ModelConfig):
    """Shape of a recurrent language model."""

    model_type: Literal["rnn"] = "rnn"
    cell: Cell = "lstm"
    hidden_size: Size
    num_hidden_layers: Layers = 1
    initializer_range: Positive = 0.1

    @property
    def context(self) -> int | None:
        """None: a state has no last position."""
        return None

    @property
    def num_layers(self) -> int:
        """How many layers it has."""
        return self.num_hidden_layers


class RecurrentSeq2SeqConfig(EncoderDecoderConfig):
    """Shape of a recurrent encoder-decoder; both stacks have `num_hidden_layers`."""

    model_type: Literal["rnn-seq2seq"] = "rnn-seq2seq"
    cell: Cell = "lstm"
    hidden_size: Size
    num_hidden_layers: Layers = 1
    attention: Flag = True
    initializer_range: Positive = 0.1
    is_encoder_decoder: Literal[True] = Field(default=True)

    @property
    def context(self) -> int | None:
        """None: a state has no last position."""
        return None

    @property
    def num_layers(self) -> int:
        """How many layers it has, those of both stacks."""
        return 2 * self.num_hidden_layers


class RecurrentCache:
    """The state after the positions seen so far: one tensor [L, B, D] for a GRU, two for an LSTM."""

    def __init__(self) -> None:
        self.length = 0
        self.state: tuple[Tensor, ...] | None = None

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""
        if self.state is not None:
            self.state = tuple(part.index_select(1, rows_B) for part in self.state)


class Recurrence(nn.Module):
    """A stack of recurrent layers. Padding leaves the state alone wherever it stands; each document starts anew."""

    def __init__(self, cell: Cell, size: int, num_layers: int) -> None:
        super().__init__()
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        self.cells: nn.LSTM | nn.GRU = kind(size, size, num_layers, batch_first=True)
        self.parts = 2 if cell == "lstm" else 1

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None,
        state: Sequence[Tensor] | None,
        segment_ids_BT: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Vectors [B, T, D], 0 for padding, and the state after them; `state` is the one before, None for zeros."""
        if segment_ids_BT is None and (mask_BT is None or bool(mask_BT.all())):
            return self._run(x_BTD, state)
        B, T = x_BTD.shape[:2]
        real_N = x_BTD.new_ones(B * T).bool() if mask_BT is None else mask_BT.flatten().bool()
        runs_N, places_N, lengths_R = _line_up(real_N, _beginnings(x_BTD, segment_ids_BT))
        runs_N, places_N = runs_N[real_N], places_N[real_N]
        longest = max(int(lengths_R.max()), 1)
        x_RTD = x_BTD.new_zeros(len(lengths_R), longest, x_BTD.shape[2])
        x_RTD = x_RTD.index_put((runs_N, places_N), x_BTD.flatten(0, 1)[real_N])
        y_RTD, after = self._run(x_RTD, state, lengths_R)
        y_ND = torch.zeros_like(x_BTD).flatten(0, 1)
        y_BTD = y_ND.index_put((real_N.nonzero()[:, 0],), y_RTD[runs_N, places_N].to(y_ND.dtype)).view_as(
            x_BTD
        )
        return y_BTD, after

    def _run(
        self, x_RTD: Tensor, state: Sequence[Tensor] | None, lengths_R: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Whole runs, each from its first position to its length."""
        before = tuple(state) if state is not None else self._zeros(x_RTD)
        given = before if self.parts == 2 else before[0]
        if lengths_R is None:
            y_RTD, after = self.cells(x_RTD, given)
            return y_RTD, after if self.parts == 2 else (after,)
        # A run without a token cannot be packed: it gets one, and its state is put back.
        packed = pack_padded_sequence(
            x_RTD, lengths_R.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, after = self.cells(packed, given)
        y_RTD = pad_packed_sequence(packed, batch_first=True, total_length=x_RTD.shape[1])[0]
        read_1R1 = (lengths_R > 0)[None, :, None]
        kept = after if self.parts == 2 else (after,)
        return y_RTD, tuple(torch.where(read_1R1, new, old) for new, old in zip(kept, before, strict=True))

    def _zeros(self, x_RTD: Tensor) -> tuple[Tensor, ...]:
        shape = (self.cells.num_layers, x_RTD.shape[0], self.cells.hidden_size)
        return tuple(x_RTD.new_zeros(shape) for _ in range(self.parts))


def _beginnings(x_BTD: Tensor, segment_ids_BT: Tensor | None) -> Tensor:
    """Where a run begins, [B, T]: at the first position of a row, and of each document in it."""
    begins_BT = torch.zeros(x_BTD.shape[:2], dtype=torch.bool, device=x_BTD.device)
    begins_BT[:, 0] = True
    if segment_ids_BT is not None:
        begins_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return begins_BT


def _line_up(real_N: Tensor, begins_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the N = B * T positions its run and its place among the run's tokens; the length of each run."""
    begins_N = begins_BT.flatten()
    runs_N = begins_N.long().cumsum(0) - 1
    tokens_before_N = real_N.long().cumsum(0) - real_N.long()
    places_N = tokens_before_N - tokens_before_N[begins_N][runs_N]
    lengths_R = torch.zeros_like(runs_N[begins_N]).index_add(0, runs_N, real_N.long())
    return runs_N, places_N, lengths_R


class RecurrentLM(CausalModel):
    """A recurrent language model (Mikolov et al. 2010; Zaremba et al. 2014, arXiv:1409.2329). Weights are drawn from
    `generator`: the same one gives the same model."""

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.embedding = Embedding(config.vocab_size, size)
        self.recurrence = Recurrence(config.cell, size, config.num_hidden_layers)
        self.head = None if config.tie_word_embeddings else nn.Linear(size, config.vocab_size, bias=False)
        initialize_recurrent(self, size, config.initializer_range, generator)

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D], from which `logits` makes scores.

        The arguments are those of `CausalModel.hidden`; `position_ids_BT` change nothing, since a state counts none.
        """
        del position_ids_BT
        assert cache is None or isinstance(cache, RecurrentCache), "a cache comes from the model's new_cache"
        assert cache is None or segment_ids_BT is None, "packed documents are not read through a cache"
        mask_BT = None if attention_mask_BS is None else attention_mask_BS[:, -input_ids_BT.shape[1] :]
        state = cache.state if cache else None
        x_BTD, after = self.recurrence(self.embedding(input_ids_BT), mask_BT, state, segment_ids_BT)
        if cache is not None:
            cache.state, cache.length = after, cache.length + input_ids_BT.shape[1]
        hidden: Tensor = x_BTD
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        scores: Tensor = self.embedding.logits(hidden) if self.head is None else self.head(hidden)
        return scores

    def new_cache(self, batch_size: int, capacity: int) -> RecurrentCache:
        """An empty cache; a state is as large after a thousand positions as after one."""
        del batch_size, capacity
        return RecurrentCache()


class SourceAttention(AttentionBlock):
    """Looks from each target position at the source, and mixes what it sees with what it had (Luong et al. 2015,
    arXiv:1508.04025, the "general" score)."""

    def __init__(self, size: int) -> None:
        super().__init__(1, 1, size, scale=1.0)
        self.query = nn.Linear(size, size, bias=False)
        self.output = nn.Linear(2 * size, size, bias=False)

    def forward(self, x_BTD: Tensor, memory_BSD: Tensor, attention_mask_BS: Tensor | None) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        keys_B1SD, query_B1TD = memory_BSD[:, None], self.query(x_BTD)[:, None]
        seen_BTD = self.attend(query_B1TD, keys_B1SD, keys_B1SD, padding_mask(attention_mask_BS), False)
        return torch.tanh(self.output(torch.cat((seen_BTD, x_BTD), -1)))


class RecurrentSeq2Seq(EncoderDecoder):
    """A recurrent encoder and a recurrent decoder (Sutskever et al. 2014, arXiv:1409.3215).

    The decoder starts from a state that `bridge` makes of the encoder's last vector (Bahdanau et al. 2014,
    arXiv:1409.0473); without `attention` that vector is all that it knows of the source.
    """

    config: RecurrentSeq2SeqConfig

    def __init__(self, config: RecurrentSeq2SeqConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config)
        size, num_layers = config.hidden_size, config.num_hidden_layers
        self.embedding = Embedding(config.vocab_size, size)
        self.encoder = Recurrence(config.cell, size, num_layers)
        self.decoder = Recurrence(config.cell, size, num_layers)
        self.bridge = nn.Linear(size, self.decoder.parts * num_layers * size)
        self.attention = SourceAttention(size) if config.attention else None
        self.head = None if config.tie_word_embeddings else nn.Linear(size, config.vocab_size, bias=False)
        initialize_recurrent(self, size, config.initializer_range, generator)

    def encode(self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None = None) -> Tensor:
        """The memory of a source: a vector for each of its tokens, [B, S, D]. The mask is 0 for padding."""
        memory_BSD: Tensor = self.encoder(self.embedding(input_ids_BS), attention_mask_BS, None)[0]
        return memory_BSD

    def decode(
        self,
        decoder_input_ids_BT: Tensor,
        memory_BSD: Tensor,
        attention_mask_BS: Tensor | None = None,
        cache: Cache | None = None,
        decoder_attention_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D] of the target so far; the arguments are those of `EncoderDecoder.decode`."""
        assert cache is None or isinstance(cache, RecurrentCache), "a cache comes from the model's new_cache"
        state = cache.state if cache else None
        if state is None:
            state = self.first_state(memory_BSD, attention_mask_BS)
        T, mask_BT = decoder_input_ids_BT.shape[1], decoder_attention_mask_BT
        mask_BT = None if mask_BT is None else mask_BT[:, -T:]
        x_BTD, after = self.decoder(self.embedding(decoder_input_ids_BT), mask_BT, state)
        if cache is not None:
            cache.state, cache.length = after, cache.length + T
        hidden: Tensor = (
            x_BTD if self.attention is None else self.attention(x_BTD, memory_BSD, attention_mask_BS)
        )
        return hidden

    def first_state(self, memory_BSD: Tensor, attention_mask_BS: Tensor | None) -> tuple[Tensor, ...]:
        """The decoder's state [L, B, D] before its first token, from the vector of the source's last one."""
        rows_B = torch.arange(len(memory_BSD), device=memory_BSD.device)
        if attention_mask_BS is None:
            last_BD = memory_BSD[:, -1]
        else:
            places_BS = torch.arange(memory_BSD.shape[1], device=memory_BSD.device) * attention_mask_BS
            last_BD = memory_BSD[rows_B, places_BS.argmax(1)]
        shape = (len(rows_B), self.decoder.parts * self.config.num_hidden_layers, self.config.hidden_size)
        layers_BLD = torch.tanh(self.bridge(last_BD)).view(shape)
        parts = layers_BLD.transpose(0, 1).chunk(self.decoder.parts)
        return tuple(part.contiguous() for part in parts)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        scores: Tensor = self.embedding.logits(hidden) if self.head is None else self.head(hidden)
        return scores

    def new_cache(self, batch_size: int, capacity: int) -> RecurrentCache:
        """An empty cache; a state is as large after a thousand positions as after one."""
        del batch_size, capacity
        return RecurrentCache()


@torch.no_grad()
def initialize_recurrent(
    model: LanguageModel, size: int, deviation: float, generator: torch.Generator | None
) -> None:
    """Draw the embedding from a normal distribution and all else evenly from -1 / sqrt(D) to 1 / sqrt(D)."""
    for name, weight in model.named_parameters():
        if name.startswith("embedding"):
            weight.normal_(0.0, deviation, generator=generator)
        else:
            bound = 1 / math.sqrt(size)
            weight.uniform_(-bound, bound, generator=generator)


_LM_MODULES = ("embedding", "recurrence.cells", "head")
_SEQ2SEQ_MODULES = (
    "embedding",
    "encoder.cells",
    "decoder.cells",
    "bridge",
    "attention.query",
    "attention.output",
    "head",
)
RNN_FAMILY = Family(
    architecture="YunqueRecurrent",
    config=RecurrentConfig,
    model=RecurrentLM,
    weight_map=tuple(Entry(name, name) for name in _LM_MODULES),
)
RNN_SEQ2SEQ_FAMILY = Family(
    architecture="YunqueRecurrentSeq2Seq",
    config=RecurrentSeq2SeqConfig,
    model=RecurrentSeq2Seq,
    weight_map=tuple(Entry(name, name) for name in _SEQ2SEQ_MODULES),
)
