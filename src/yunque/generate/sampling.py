"""From scores to a token: penalties, temperature, the filters, and the draw.

Shapes: V vocab_size, N some of its tokens, C those that may still be drawn. Scores are float32, minus infinity for a
token that cannot be drawn. `sampler.py` puts these together for a text. The arithmetic is numpy's, which finds the
largest of a vocabulary, or sorts it, in a twentieth of torch's time on a CPU.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yunque.generate.config import GenerationConfig

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# Below this the likeliest token has all the probability, and dividing by it would overflow.
COLDEST = 1e-4
# So many of the likeliest tokens are put in order before all are.
_FIRST_TRIES = (256, 4096)


def penalize(logits_V: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely: positive scores are divided by `penalty`, negative ones multiplied
    (Keskar et al. 2019, arXiv:1909.05858)."""
    scores = logits_V.numpy().copy()
    divide_seen(scores, seen_ids.numpy(), penalty)
    return torch.from_numpy(scores)


def divide_seen(scores: Floats, seen: Ids, penalty: float) -> None:
    """`penalize`, in place."""
    old = scores[seen]
    scores[seen] = np.where(old > 0, old / np.float32(penalty), old * np.float32(penalty))


def subtract(scores: Floats, ids: Ids, counts: Floats, presence: float, frequency: float) -> None:
    """Take `presence` once, and `frequency` for each time, from tokens that were written so often (OpenAI's
    definition), in place. The ids are distinct."""
    scores[ids] -= np.float32(presence) + np.float32(frequency) * counts


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """Keep the `k` highest scores (Fan et al. 2018, arXiv:1805.04833); equal ones go to the lower id."""
    return _only(logits_V, highest(logits_V.numpy(), k))


def keep_top_p(logits_V: Tensor, p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least `p` (Holtzman et al. 2019,
    arXiv:1904.09751); the likeliest one always stays, and equal ones go to the lower id."""
    return _only(logits_V, _top_p(logits_V.numpy(), p))


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least `min_p` times as likely as the likeliest (Nguyen et al. 2024,
    arXiv:2407.01082)."""
    return _only(logits_V, _min_p(logits_V.numpy(), min_p))


def keep_typical(logits_V: Tensor, mass: float) -> Tensor:
    """Keep the fewest tokens that reach `mass`, taking first those whose information is nearest to what is expected,
    the entropy of the distribution (Meister et al. 2022, arXiv:2202.00666)."""
    return _only(logits_V, _typical(logits_V.numpy(), mass))


def _only(logits_V: Tensor, kept: Ids) -> Tensor:
    ids_C = torch.from_numpy(kept)
    return torch.full_like(logits_V, -math.inf).scatter(0, ids_C, logits_V[ids_C])


def softmax(scores: Floats) -> Floats:
    """Probabilities of scores."""
    probabilities: Floats = torch.from_numpy(scores).softmax(0).numpy()
    return probabilities


def _running_sum(weights: Floats) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = torch.from_numpy(weights).cumsum(0, dtype=torch.float64).numpy()
    return sums


def highest(scores: Floats, k: int) -> Ids:
    """The places of the `k` highest scores, in rising order; equal ones go to the lower place."""
    if k >= len(scores):
        return np.arange(len(scores))
    border = np.partition(scores, len(scores) - k)[len(scores) - k]
    kept = np.flatnonzero(scores >= border)
    if len(kept) > k:
        equal = np.flatnonzero(scores[kept] == border)
        kept = np.delete(kept, equal[len(equal) - (len(kept) - k) :])
    return kept


def _fewest(order: Floats, probabilities: Floats, p: float) -> Ids:
    """The places, in rising order, of the fewest tokens that reach `p` together, those of highest `order` first
    (equal ones by their place); one at least."""
    for tried in (*(count for count in _FIRST_TRIES if 2 * count < len(order)), len(order)):
        if tried < len(order):
            places = np.flatnonzero(order >= np.partition(order, len(order) - tried)[len(order) - tried])
            places = places[np.argsort(-order[places])]
            ordered, weights = order[places], probabilities[places]
        elif order is probabilities:
            # Sorting numbers takes a seventh of the time of sorting their places.
            ordered = weights = np.sort(order)[::-1].copy()
        else:
            places = np.argsort(-order)
            ordered, weights = order[places], probabilities[places]
        reached = _running_sum(weights)
        if reached[-1] >= p:
            break
    # A token stays if those before it do not reach p yet.
    border = ordered[min(int(np.searchsorted(reached, p)), len(ordered) - 1)]
    above, equal = np.flatnonzero(order > border), np.flatnonzero(order == border)
    if len(equal) > 1:
        before = reached[len(above) - 1] if len(above) else 0.0
        reached = before + _running_sum(probabilities[equal])
        equal = equal[: np.searchsorted(reached, p) + 1]
    return np.sort(np.concatenate((above, equal)))


def _top_p(scores: Floats, p: float) -> Ids:
    probabilities = softmax(scores)
    return _fewest(probabilities, probabilities, p)


def _min_p(scores: Floats, min_p: float) -> Ids:
    return np.flatnonzero(scores >= scores.max() + (math.log(min_p) if min_p else -math.inf))


def _typical(scores: Floats, mass: float) -> Ids:
    logs = torch.from_numpy(scores).log_softmax(0).numpy()
    probabilities = np.exp(logs)
    entropy = -np.sum(probabilities * np.where(probabilities > 0, logs, 0))
    # What cannot be drawn is infinitely far from it.
    return _fewest(-np.abs(logs + entropy), probabilities, mass)


def shortlist(scores: Floats, config: GenerationConfig) -> tuple[Floats, Ids | None]:
    """What the filters leave of scores that are divided by the temperature, and its places in rising order (None for
    all of them).

    Order, each filter on what the one before it left: top-k, top-p, min-p, typical.
    """
    places: Ids | None = None

    def keep(kept: Ids) -> None:
        nonlocal scores, places
        scores, places = scores[kept], kept if places is None else places[kept]

    if 0 < config.top_k < len(scores):
        keep(highest(scores, config.top_k))
    if config.top_p < 1:
        keep(_top_p(scores, config.top_p))
    if config.min_p > 0:
        keep(_min_p(scores, config.min_p))
    if config.typical_p < 1:
        keep(_typical(scores, config.typical_p))
    return scores, places


def next_token_probabilities(logits_V: Tensor, seen_ids: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution [V] that a token is drawn from, for a temperature above 0.

    Order: repetition penalty, temperature, the filters of `shortlist`.
    """
    if config.repetition_penalty != 1:
        logits_V = penalize(logits_V, seen_ids, config.repetition_penalty)
    scores, places = shortlist((logits_V / config.temperature).numpy(), config)
    return torch.from_numpy(spread(softmax(scores), places, len(logits_V)))


def spread(probabilities: Floats, places: Ids | None, vocab_size: int) -> Floats:
    """Probabilities of some places as those of all, 0 for the others."""
    if places is None:
        return probabilities
    everywhere = np.zeros(vocab_size, dtype=np.float32)
    everywhere[places] = probabilities
    return everywhere


def draw(weights: Floats, uniform: float) -> int:
    """The place where a number of [0, 1) falls, among weights that need not sum to 1."""
    reached = _running_sum(weights)
    place = int(np.searchsorted(reached, uniform * reached[-1], side="right"))
    # Rounded up to the whole: the last one that can be drawn.
    return place if place < len(weights) else int(np.flatnonzero(weights)[-1])
