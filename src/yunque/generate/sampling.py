"""From scores to a token: penalty, temperature, top-k, top-p, and the draw.

Shapes: V vocab_size. Scores are float32, minus infinity for a token that cannot be drawn.
"""

import torch
from torch import Tensor

from yunque.generate.config import GenerationConfig


def penalize(logits_V: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely: positive scores are divided by `penalty`, negative ones multiplied
    (Keskar et al. 2019, arXiv:1909.05858)."""
    scores = logits_V[seen_ids]
    return logits_V.scatter(0, seen_ids, torch.where(scores > 0, scores / penalty, scores * penalty))


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """Keep the `k` highest scores (Fan et al. 2018, arXiv:1805.04833); equal ones go to the lower id."""
    kept = torch.sort(logits_V, descending=True, stable=True).indices[:k]
    return torch.full_like(logits_V, float("-inf")).scatter(0, kept, logits_V[kept])


def keep_top_p(logits_V: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least `p` (Holtzman et al. 2019,
    arXiv:1904.09751); the likeliest one always stays."""
    ordered, order = torch.sort(logits_V, descending=True, stable=True)
    probabilities = ordered.softmax(0)
    # A token stays if those before it do not reach p yet.
    before = probabilities.cumsum(0) - probabilities
    before[0] = -1.0
    kept = order[before < p]
    return torch.full_like(logits_V, float("-inf")).scatter(0, kept, logits_V[kept])


def next_token_probabilities(logits_V: Tensor, seen_ids: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution [V] that a token is drawn from, for a temperature above 0.

    Order: repetition penalty, temperature, top-k, top-p.
    """
    if config.repetition_penalty != 1:
        logits_V = penalize(logits_V, seen_ids, config.repetition_penalty)
    logits_V = logits_V / config.temperature
    if 0 < config.top_k < len(logits_V):
        logits_V = keep_top_k(logits_V, config.top_k)
    if config.top_p < 1:
        logits_V = keep_top_p(logits_V, config.top_p)
    return logits_V.softmax(0)


# Below this the likeliest token has all the probability, and dividing by it would overflow.
_COLDEST = 1e-4


def choose_token(
    logits_V: Tensor, seen_ids: Tensor, config: GenerationConfig, generator: torch.Generator
) -> int:
    """The next token: the likeliest at temperature 0, else one drawn with `generator`."""
    if config.temperature < _COLDEST:
        if config.repetition_penalty != 1:
            logits_V = penalize(logits_V, seen_ids, config.repetition_penalty)
        return int(logits_V.argmax())
    probabilities_V = next_token_probabilities(logits_V, seen_ids, config)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))
