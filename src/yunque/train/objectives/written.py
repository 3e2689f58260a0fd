"""How likely a model finds answers to prompts: what every objective on answers is made of.

Shapes: B answers, N tokens of all the answers one after the other, D hidden_size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from yunque.generate.conversation import Written
from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.lora import lora_names, select_adapter, selected_adapter
from yunque.model.prompt_tuning import PromptedCausalModel, PromptedEncoderDecoder
from yunque.model.scored import ScoredModel
from yunque.train.loss import token_losses

Writer = CausalModel | EncoderDecoder
"""A model that writes."""


def answer_vectors(model: Writer, rows: Sequence[Written]) -> tuple[Tensor, Tensor]:
    """The final vectors [N, D] from which each token of the answers is scored, and those tokens [N]."""
    device = next(model.parameters()).device
    targets_N = torch.tensor([token for row in rows for token in row.answer], device=device)
    if isinstance(model, EncoderDecoder):
        sources_BS, mask_BS = _right_padded([row.prompt for row in rows], device)
        start = model.config.decoder_start_token_id
        input_ids_BT, written_BT = _right_padded([[start, *row.answer[:-1]] for row in rows], device)
        memory_BSD = model.encode(sources_BS, mask_BS)
        hidden_BTD = model.decode(input_ids_BT, memory_BSD, mask_BS, decoder_attention_mask_BT=written_BT)
        return hidden_BTD[written_BT.bool()], targets_N
    _, answer_ND, _ = prompt_and_answer_vectors(model, rows)
    return answer_ND, targets_N


def prompt_and_answer_vectors(model: CausalModel, rows: Sequence[Written]) -> tuple[Tensor, Tensor, Tensor]:
    """The final vectors from which each token of the prompts is scored (not the first of each: nothing stands before
    it) [M, D], those for the tokens of the answers [N, D], and the answers' tokens [N]."""
    device = next(model.parameters()).device
    targets_N = torch.tensor([token for row in rows for token in row.answer], device=device)
    input_ids_BT, mask_BT = _right_padded([row.prompt + row.answer[:-1] for row in rows], device)
    prompts_B = torch.tensor([len(row.prompt) for row in rows], device=device)
    positions_T = torch.arange(input_ids_BT.shape[1], device=device)
    written_BT = mask_BT.bool() & (positions_T >= prompts_B[:, None] - 1)
    # No mask: what stands before a token never sees the padding behind it.
    hidden_BTD = model.hidden(input_ids_BT)
    return hidden_BTD[positions_T < prompts_B[:, None] - 1], hidden_BTD[written_BT], targets_N


def _right_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


def token_log_probabilities(model: Writer, rows: Sequence[Written]) -> Tensor:
    """The log-probability [N], in nats, of each token of the answers."""
    return -token_losses(model, *answer_vectors(model, rows))


def per_answer(values_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum [B] of the numbers of each answer's tokens."""
    rows_N = torch.repeat_interleave(torch.tensor(lengths)).to(values_N.device)
    return torch.zeros(len(lengths), dtype=values_N.dtype, device=values_N.device).index_add(
        0, rows_N, values_N
    )


def writer_of(model: LanguageModel) -> Writer:
    """The model that writes, without the matrix for values that may be beside it."""
    body = model.body if isinstance(model, ScoredModel) else model
    assert isinstance(body, CausalModel | EncoderDecoder)
    return body


@contextmanager
def reference_of(policy: Writer, frozen: Writer | None) -> Iterator[Writer]:
    """The reference: the `frozen` copy, or the policy with its adapter off for as long as the block lasts."""
    if frozen is not None:
        yield frozen
        return
    if isinstance(policy, PromptedCausalModel | PromptedEncoderDecoder):
        yield policy.model
        return
    assert lora_names(policy), "without a frozen copy the reference is the model without its adapter"
    adapter = selected_adapter(policy)
    select_adapter(policy, None)
    try:
        yield policy
    finally:
        select_adapter(policy, adapter)
