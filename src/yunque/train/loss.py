"""The loss of next-token prediction, in nats a token; perplexity is its exponential.

Shapes: B windows, T positions, D hidden_size, V vocab_size.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from yunque.data.row import Row
from yunque.errors import UserError
from yunque.model import Llama
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Windows

IGNORED = -100
"""The target of a position that is not to be learned."""


def next_token_loss(model: Llama, windows: Windows) -> Tensor:
    """Mean loss over every position of packed windows (a scalar, float32)."""
    hidden_BTD = model.hidden(windows.input_ids, segment_ids_BT=windows.segment_ids)
    logits_BTV = model.embedding.logits(hidden_BTD)
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), windows.targets.flatten())


def summed_loss(model: Llama, input_ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss [B] of each row and how many targets it counts [B]; rows are padded on the right.

    Only positions with a target are scored against the vocabulary, which is most of the work for short answers.
    """
    hidden_BTD = model.hidden(input_ids_BT)
    wanted_BT = targets_BT != IGNORED
    logits = model.embedding.logits(hidden_BTD[wanted_BT])
    losses = F.cross_entropy(logits.float(), targets_BT[wanted_BT], reduction="none")
    rows = torch.arange(len(targets_BT), device=targets_BT.device)[:, None].expand_as(targets_BT)[wanted_BT]
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
    model: Llama,
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
    context = model.config.max_position_embeddings
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
