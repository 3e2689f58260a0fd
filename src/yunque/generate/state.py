"""A model with texts read into it, that says the scores of every next token: alike for every family.

Shapes: B texts, T positions of the longest, S positions seen so far, V vocab_size.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.runner import check_scores
from yunque.model import CausalModel, EncoderDecoder, LanguageModel


class State(Protocol):
    """Texts under way. The first call of `next_logits` reads the prompts, each later one a token for each text."""

    def next_logits(self, tokens_B: Tensor | None = None) -> Tensor:
        """Scores [B, V] (float32) of the token after what was read."""
        ...

    def reorder(self, rows_B: Tensor) -> None:
        """Let text i go on from what text `rows_B[i]` is now; there may be more or fewer than before."""
        ...


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int = 0) -> tuple[Tensor, Tensor | None]:
    """Ids and mask [B, T] of prompts of unequal length, padded on the left; no mask where all are as long."""
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ragged = any(len(prompt) < longest for prompt in prompts)
    return torch.tensor(ids), torch.tensor(mask) if ragged else None


def _scores(logits_BV: Tensor) -> Tensor:
    """The scores as float32; raises UserError where they are no numbers."""
    logits_BV = logits_BV.float()
    check_scores(logits_BV)
    return logits_BV


class _CausalState:
    """Prompts that a decoder-only model goes on with."""

    def __init__(self, model: CausalModel, prompts: Sequence[Sequence[int]], fresh: int) -> None:
        self._model = model
        device = next(model.parameters()).device
        ids_BT, mask_BT = left_padded(prompts)
        self._ids_BT = ids_BT.to(device)
        self._mask_BS = None if mask_BT is None else mask_BT.to(device)
        self._cache = model.new_cache(len(prompts), ids_BT.shape[1] + fresh)

    def next_logits(self, tokens_B: Tensor | None = None) -> Tensor:
        """See `State`."""
        ids_BT = self._ids_BT if tokens_B is None else tokens_B[:, None]
        if self._mask_BS is not None and tokens_B is not None:
            self._mask_BS = torch.cat((self._mask_BS, torch.ones_like(ids_BT)), dim=1)
        hidden_BTD = self._model.hidden(ids_BT, self._mask_BS, cache=self._cache)
        return _scores(self._model.logits(hidden_BTD[:, -1]))

    def reorder(self, rows_B: Tensor) -> None:
        """See `State`."""
        self._cache.reorder(rows_B)
        if self._mask_BS is not None:
            self._mask_BS = self._mask_BS.index_select(0, rows_B)


class _EncoderDecoderState:
    """Sources that an encoder-decoder has read, and the targets that it writes."""

    def __init__(self, model: EncoderDecoder, prompts: Sequence[Sequence[int]], fresh: int) -> None:
        self._model = model
        device = next(model.parameters()).device
        ids_BT, mask_BT = left_padded(prompts)
        # Relative and absolute positions both count from the beginning of a source, so it is padded on the right.
        if mask_BT is not None:
            order_BT = mask_BT.sort(dim=1, descending=True, stable=True).indices
            ids_BT, mask_BT = ids_BT.gather(1, order_BT), mask_BT.gather(1, order_BT)
        self._mask_BS = None if mask_BT is None else mask_BT.to(device)
        self._memory_BSD = model.encode(ids_BT.to(device), self._mask_BS)
        start = model.config.decoder_start_token_id
        self._start_B1 = torch.full((len(prompts), 1), start, device=device)
        self._cache = model.new_cache(len(prompts), fresh + 1)

    def next_logits(self, tokens_B: Tensor | None = None) -> Tensor:
        """See `State`."""
        ids_B1 = self._start_B1 if tokens_B is None else tokens_B[:, None]
        hidden_B1D = self._model.decode(ids_B1, self._memory_BSD, self._mask_BS, self._cache)
        return _scores(self._model.logits(hidden_B1D[:, -1]))

    def reorder(self, rows_B: Tensor) -> None:
        """See `State`."""
        self._cache.reorder(rows_B)
        self._memory_BSD = self._memory_BSD.index_select(0, rows_B)
        if self._mask_BS is not None:
            self._mask_BS = self._mask_BS.index_select(0, rows_B)


def open_state(model: LanguageModel, prompts: Sequence[Sequence[int]], fresh: int) -> State:
    """A state with these prompts, none of them empty, and room for `fresh` tokens after each.

    Raises UserError for a model that writes no text, and for a token that it does not know.
    """
    largest = max((id for prompt in prompts for id in prompt), default=0)
    if largest >= model.config.vocab_size:
        raise UserError(
            f"the tokenizer has tokens (number {largest} in this text) beyond the {model.config.vocab_size} that the "
            "model knows: it is another model's"
        )
    if isinstance(model, CausalModel):
        return _CausalState(model, prompts, fresh)
    if isinstance(model, EncoderDecoder):
        return _EncoderDecoderState(model, prompts, fresh)
    raise UserError(f"a {model.config.model_type} model writes no text: it only reads")
