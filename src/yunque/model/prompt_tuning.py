"""Prompt tuning: trained vectors before the input of a frozen model (Lester et al. 2021, arXiv:2104.08691).

The vectors stand in the embedding behind the vocabulary, as tokens that no text has: ids `vocab_size`,
`vocab_size + 1` and so on. A model reads them like any others: positions, masks and caches need nothing new.

Shapes: B batch, T positions of this call, S positions seen so far (of the source, for an encoder), P virtual tokens,
D hidden_size, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.model.cache import Cache
from yunque.model.configuration import EncoderDecoderConfig, ModelConfig
from yunque.model.language_model import CausalModel, EncoderDecoder, LanguageModel


class PromptSettings(Settings):
    """What a prompt is. It begins as the vectors of a text's tokens (repeated, or cut, to the number there is room
    for), of tokens drawn from the vocabulary, or as random numbers between -0.5 and 0.5."""

    num_virtual_tokens: int = Field(default=20, ge=1, le=2**16)
    initialization: Literal["text", "vocabulary", "random"] = "vocabulary"


class PromptedEmbedding(nn.Module):
    """A frozen table of token vectors, with trained ones behind it."""

    def __init__(self, table: nn.Module, vocab_size: int, vectors_PD: Tensor) -> None:
        super().__init__()
        self.table = table
        self.vocab_size = vocab_size
        self.vectors_PD = nn.Parameter(vectors_PD)

    @property
    def weight(self) -> Tensor:
        """The table of the vocabulary [V, D]."""
        weight = self.table.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]; virtual ones are numbered from `vocab_size` on."""
        known_BTD: Tensor = self.table(input_ids_BT.clamp(max=self.vocab_size - 1))
        virtual_BT = input_ids_BT - self.vocab_size
        trained_BTD = F.embedding(virtual_BT.clamp(min=0), self.vectors_PD).to(known_BTD.dtype)
        return torch.where((virtual_BT >= 0)[..., None], trained_BTD, known_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token of the vocabulary after `hidden` [..., D]."""
        scores: Tensor = self.table.logits(hidden)  # type: ignore[operator]
        return scores


@dataclass(frozen=True)
class Prompt:
    """Puts the virtual tokens of a model before what it is given."""

    # The model has this part; it is no part of the prompt, or it would be counted and saved twice.
    embedding: PromptedEmbedding

    @property
    def length(self) -> int:
        """P."""
        return len(self.embedding.vectors_PD)

    def before_ids(self, input_ids_BT: Tensor, padding_B: Tensor) -> Tensor:
        """[B, P + T]; in a row padded on the left the prompt stands after the padding, next to the text."""
        first = self.embedding.vocab_size
        return self._insert(input_ids_BT, torch.arange(first, first + self.length), padding_B)

    def before_mask(self, attention_mask_BS: Tensor, padding_B: Tensor) -> Tensor:
        """[B, P + S]; virtual tokens are always seen."""
        return self._insert(attention_mask_BS, torch.ones(self.length), padding_B)

    def before_positions(self, position_ids_BT: Tensor, padding_B: Tensor) -> Tensor:
        """[B, P + T]; those of the text begin where the prompt ends."""
        return self._insert(position_ids_BT + self.length, torch.arange(self.length), padding_B)

    def _insert(self, text_BT: Tensor, prompt_P: Tensor, padding_B: Tensor) -> Tensor:
        slots_1S = torch.arange(self.length + text_BT.shape[1], device=text_BT.device)[None]
        # How far into the prompt a slot is: below 0 it is padding, from P on it is text.
        inside_BS = slots_1S - padding_B[:, None]
        text_BS = text_BT.expand(len(padding_B), -1).gather(
            1, torch.where(inside_BS < 0, slots_1S, (slots_1S - self.length).clamp(min=0))
        )
        prompt_BS = prompt_P.to(text_BT)[inside_BS.clamp(0, self.length - 1)]
        return torch.where((inside_BS >= 0) & (inside_BS < self.length), prompt_BS, text_BS)


def left_padding(input_ids_BT: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    """How much padding each row [B] begins with."""
    if attention_mask_BT is None:
        return input_ids_BT.new_zeros(len(input_ids_BT))
    return (attention_mask_BT.cumsum(1) == 0).sum(1)


class PromptedCache:
    """A model's cache whose `length` leaves out the virtual tokens; `padding_B` stands before them."""

    def __init__(self, inner: Cache, padding_B: Tensor) -> None:
        self.inner = inner
        self.padding_B = padding_B
        self.length = 0

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""
        self.inner.reorder(rows_B)
        self.padding_B = self.padding_B.index_select(0, rows_B)


class PromptedCausalModel(CausalModel):
    """A model that reads its prompt before every text; the arguments and results are those of the model alone."""

    def __init__(self, model: CausalModel, prompt: Prompt) -> None:
        super().__init__(_shorter(model.config, prompt.length))
        self.model = model
        self.prompt = prompt

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BS: Tensor | None = None,
        position_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        segment_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D] of the text; see `CausalModel.hidden`. Raises UserError for packed documents."""
        assert cache is None or isinstance(cache, PromptedCache), "a cache comes from the model's new_cache"
        if segment_ids_BT is not None:
            raise UserError(
                "a prompt stands before one text: give each row a single document, not packed ones"
            )
        begins = cache is None or cache.inner.length == 0
        padding_B = left_padding(input_ids_BT, attention_mask_BS)
        if cache is not None:
            # What stood before the prompt when it was read, whatever has come since.
            cache.padding_B = padding_B = padding_B if begins else cache.padding_B
        if attention_mask_BS is not None:
            attention_mask_BS = self.prompt.before_mask(attention_mask_BS, padding_B)
        if begins:
            input_ids_BT = self.prompt.before_ids(input_ids_BT, padding_B)
        if position_ids_BT is not None and begins:
            position_ids_BT = self.prompt.before_positions(position_ids_BT, padding_B)
        elif position_ids_BT is not None:
            position_ids_BT = position_ids_BT + self.prompt.length
        hidden_BTD = self.model.hidden(
            input_ids_BT, attention_mask_BS, position_ids_BT, cache.inner if cache is not None else None
        )
        if cache is not None:
            cache.length = cache.inner.length - self.prompt.length
        return hidden_BTD[:, self.prompt.length :] if begins else hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return self.model.logits(hidden)

    def new_cache(self, batch_size: int, capacity: int) -> PromptedCache:
        """An empty cache for `capacity` positions beside the prompt."""
        inner = self.model.new_cache(batch_size, capacity + self.prompt.length)
        return PromptedCache(inner, torch.zeros(batch_size, dtype=torch.int64, device=_device(self.model)))


class PromptedEncoderDecoder(EncoderDecoder):
    """A model that reads its prompt before every source; the memory begins with the prompt's vectors, everything else
    is as with the model alone."""

    config: EncoderDecoderConfig

    def __init__(self, model: EncoderDecoder, prompt: Prompt) -> None:
        super().__init__(_shorter(model.config, prompt.length))
        self.model = model
        self.prompt = prompt

    def encode(self, input_ids_BS: Tensor, attention_mask_BS: Tensor | None = None) -> Tensor:
        """The memory of prompt and source, [B, P + S, D]. The mask is the source's."""
        ids_BS = self.prompt.before_ids(input_ids_BS, left_padding(input_ids_BS, attention_mask_BS))
        return self.model.encode(ids_BS, self._mask(attention_mask_BS))

    def _mask(self, attention_mask_BS: Tensor | None) -> Tensor | None:
        if attention_mask_BS is None:
            return None
        return self.prompt.before_mask(attention_mask_BS, left_padding(attention_mask_BS, attention_mask_BS))

    def decode(
        self,
        decoder_input_ids_BT: Tensor,
        memory_BSD: Tensor,
        attention_mask_BS: Tensor | None = None,
        cache: Cache | None = None,
        decoder_attention_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Final vectors [B, T, D] of the target so far; `attention_mask_BS` is the source's, without its prompt."""
        mask_BS = self._mask(attention_mask_BS)
        return self.model.decode(decoder_input_ids_BT, memory_BSD, mask_BS, cache, decoder_attention_mask_BT)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return self.model.logits(hidden)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty cache for a target of `capacity` positions."""
        return self.model.new_cache(batch_size, capacity)


PromptedModel = PromptedCausalModel | PromptedEncoderDecoder


def _shorter(config: ModelConfig, length: int) -> ModelConfig:
    """The configuration as a caller should see it: the prompt takes some of the context."""
    if config.context is None:
        return config
    if length >= config.context:
        raise UserError(
            f"num_virtual_tokens: {length} leave no room for text in a context of {config.context} tokens"
        )
    return config.model_copy(update={"max_position_embeddings": config.context - length})


def add_prompt(
    model: LanguageModel,
    settings: PromptSettings,
    text_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> PromptedModel:
    """`model` with a fresh prompt: that is to be trained, the model itself is frozen.

    `text_ids` are the tokens of the text that it begins as, where `settings` asks for one; numbers are drawn from
    `generator` (on the CPU). Raises UserError for a text without tokens, a context too short for the prompt, and a
    model that writes no text.
    """
    count, vocab_size = settings.num_virtual_tokens, model.config.vocab_size
    table = _table(model)
    if settings.initialization == "random":
        vectors_PD = torch.empty(count, embedding_size(model)).uniform_(-0.5, 0.5, generator=generator)
        return attach_prompt(model, vectors_PD, trainable=True)
    if settings.initialization == "vocabulary":
        ids = torch.randint(vocab_size, (count,), generator=generator)
    elif not text_ids:
        raise UserError("initialization: the text that the prompt should begin as has no tokens")
    elif not 0 <= min(text_ids) <= max(text_ids) < vocab_size:
        raise UserError(f"initialization: the text has tokens beyond the model's vocabulary of {vocab_size}")
    else:
        ids = torch.tensor([text_ids[place % len(text_ids)] for place in range(count)])
    vectors_PD = table(ids[None].to(_device(model)))[0].detach().float()
    return attach_prompt(model, vectors_PD.clone(), trainable=True)


def attach_prompt(model: LanguageModel, vectors_PD: Tensor, trainable: bool = False) -> PromptedModel:
    """`model`, frozen, with these vectors before everything it reads. Raises UserError as `add_prompt` does."""
    table = _table(model)
    model.requires_grad_(False)
    embedding = PromptedEmbedding(table, model.config.vocab_size, vectors_PD.to(_device(model)))
    embedding.requires_grad_(False).vectors_PD.requires_grad_(trainable)
    prompt = Prompt(embedding)
    prompted: PromptedModel
    if isinstance(model, CausalModel):
        prompted = PromptedCausalModel(model, prompt)
    else:
        assert isinstance(model, EncoderDecoder)
        prompted = PromptedEncoderDecoder(model, prompt)
    model.embedding = embedding
    return prompted.train(model.training)


def prompt_vectors(model: PromptedModel) -> nn.Parameter:
    """The vectors [P, D] that are trained."""
    return model.prompt.embedding.vectors_PD


def remove_prompt(model: PromptedModel) -> LanguageModel:
    """The model alone, as it was."""
    inner = model.model
    inner.embedding = model.prompt.embedding.table
    return inner


def embedding_size(model: LanguageModel) -> int:
    """D, the size of a token's vector; raises UserError for a model that writes no text."""
    table = _table(model)
    size: int = table(torch.zeros(1, 1, dtype=torch.int64, device=_device(model))).shape[-1]
    return size


def _table(model: LanguageModel) -> nn.Module:
    """The embedding that what is read goes through."""
    if not isinstance(model, CausalModel | EncoderDecoder):
        raise UserError(f"a {model.config.model_type} model writes no text: prompts are for those that do")
    assert not isinstance(model, PromptedModel), "a model has one prompt"
    table = model.embedding
    assert isinstance(table, nn.Module)
    return table


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device
