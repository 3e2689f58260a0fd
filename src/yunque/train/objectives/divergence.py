"""How far a model has gone from its base: KL(base || model) of the next token, over the whole vocabulary.

The base's own predictions as soft targets keep what it knew (Li and Hoiem 2016, arXiv:1606.09282).

Shapes: N positions, D hidden_size, V vocab_size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from yunque.train.loss import scores_together
from yunque.train.objectives.written import Writer, reference_of


def base_vectors(model: Writer, frozen: Writer | None, read: Callable[[Writer], Tensor]) -> Tensor:
    """What `read` gives of the base (the `frozen` copy, or the model with its adapter off), without a gradient and
    without dropout."""
    with torch.no_grad(), reference_of(model, frozen) as base, _not_training(base):
        return read(base)


def divergences(model: Writer, vectors_ND: Tensor, frozen: Writer | None, base_ND: Tensor) -> Tensor:
    """KL(base || model) [N] in nats at each position, from final vectors of both; 0 where they are the same.

    Scores are made for some positions at a time, and again when their gradient is wanted.
    """

    def some(vectors: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad(), reference_of(model, frozen) as base:
            wanted = base.logits(others).float().log_softmax(-1)
        found = model.logits(vectors).float().log_softmax(-1)
        return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)

    together = max(1, scores_together(model) // 2)
    if len(vectors_ND) <= together:
        return some(vectors_ND, base_ND)
    pieces = zip(torch.split(vectors_ND, together), torch.split(base_ND, together), strict=True)
    return torch.cat([checkpoint(some, *piece, use_reentrant=False) for piece in pieces])


@contextmanager
def _not_training(model: Writer) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
