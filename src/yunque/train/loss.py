"""The loss of next-token prediction, in nats a token; perplexity is its exponential.

Shapes: B windows, T positions, D hidden_size, V vocab_size.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from yunque.data.row import Row
from yunque.errors import UserError
from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Windows

IGNORED = -100
"""The target of a position that is not to be learned."""


# Where a model has no longest text (a recurrent one, relative positions), it reads pieces of this many tokens.
_UNLIMITED_CONTEXT = 1024


def context_of(model: LanguageModel) -> int:
    """How many positions the model reads at once."""
    return model.config.context or _UNLIMITED_CONTEXT


# More scores than this at once (256 MB of them) and they are made anew in the backward pass instead of kept.
_SCORES_AT_ONCE = 1 << 26


def scores_together(model: CausalModel | EncoderDecoder) -> int:
    """How many tokens are scored at once."""
    return max(1, _SCORES_AT_ONCE // model.config.vocab_size)


def token_losses(model: CausalModel | EncoderDecoder, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The loss [N] of each target after its final vector; 0 where there is none.

    Scores of all tokens at once are by far the largest thing in training where the vocabulary is large: they are made
    for some tokens at a time, and again when their gradient is wanted.
    """

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden).float(), targets, reduction="none", ignore_index=IGNORED)

    together = scores_together(model)
    if len(targets_N) <= together:
        return losses(hidden_ND, targets_N)
    pieces = zip(torch.split(hidden_ND, together), torch.split(targets_N, together), strict=True)
    return torch.cat([checkpoint(losses, *piece, use_reentrant=False) for piece in pieces])


def next_token_loss(model: CausalModel, windows: Windows) -> Tensor:
    """Mean loss over every position of packed windows (a scalar, float32)."""
    return token_losses(model, *window_vectors(model, windows)).mean()


def window_vectors(model: CausalModel, windows: Windows) -> tuple[Tensor, Tensor]:
    """The final vectors [N, D] of every position of packed windows, and the targets [N]."""
    windows = windows.to(next(model.parameters()).device)
    hidden_BTD = model.hidden(windows.input_ids, segment_ids_BT=windows.borders)
    return hidden_BTD.flatten(0, 1), windows.targets.flatten()


def summed_loss(model: CausalModel, input_ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss [B] of each row and how many targets it counts [B]; rows are padded on the right.

    Only positions with a target are scored against the vocabulary, which is most of the work for short answers.
    """
    device = next(model.parameters()).device
    input_ids_BT, targets_BT = input_ids_BT.to(device), targets_BT.to(device)
    return _summed(model, model.hidden(input_ids_BT), targets_BT)


def _summed(
    model: CausalModel | EncoderDecoder, hidden_BTD: Tensor, targets_BT: Tensor
) -> tuple[Tensor, Tensor]:
    wanted_BT = targets_BT != IGNORED
    losses = token_losses(model, hidden_BTD[wanted_BT], targets_BT[wanted_BT])
    rows = torch.arange(len(targets_BT), device=losses.device)[:, None].expand_as(targets_BT)[wanted_BT]
    summed_B = torch.zeros(len(targets_BT), device=losses.device).index_add(0, rows, losses)
    return summed_B, wanted_BT.sum(dim=1)


def padded(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and targets [B, T] of rows of unequal length, padded on the right; padding has no target."""
    longest = max(len(ids) for ids, _ in rows)
    input_ids_BT = torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in rows])
    targets_BT = torch.tensor([targets + [IGNORED] * (longest - len(targets)) for _, targets in rows])
    return input_ids_BT, targets_BT


@torch.inference_mode()
def evaluate_loss(
    model: CausalModel,
    tokenizer: Tokenizer,
    rows: Iterable[Row],
    max_tokens: int | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> float:
    """Mean loss a token over rows (nats), their end tokens included; stops after `max_tokens` tokens.

    A row that is longer than the context is read in pieces, each without what stood before it.
    Raises UserError when the rows hold no text.
    """
    context = context_of(model)
    total, count = 0.0, 0
    waiting: list[tuple[list[int], list[int]]] = []

    def score() -> None:
        nonlocal total
        if waiting:
            summed_B, _ = summed_loss(model, *padded(waiting, tokenizer.pad_id))
            total += float(summed_B.double().sum())
            waiting.clear()

    with progress("Measuring the loss", total=max_tokens) as task:
        for row in rows:
            if not row.text:
                continue
            ids = [*tokenizer.encode_prompt(row.text), tokenizer.end_id]
            for start in range(0, len(ids) - 1, context):
                targets = ids[start + 1 : start + 1 + context]
                if max_tokens is not None:
                    targets = targets[: max_tokens - count]
                if targets:
                    waiting.append((ids[start : start + len(targets)], targets))
                    count += len(targets)
                    task.advance(len(targets))
                if len(waiting) == batch_size:
                    score()
            if count == max_tokens:
                break
        score()
    if not count:
        raise UserError("the loss cannot be measured: the rows hold no text")
    return total / count
