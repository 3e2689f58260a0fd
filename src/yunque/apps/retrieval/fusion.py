"""Lists of what was found made into one, and what is alike in it spread out.

Fusion by scores: a convex combination of both, each over its highest (Bruch, Gai and Ingber, "An Analysis of Fusion
Functions for Hybrid Retrieval", 2023). Fusion by ranks: Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion"
(2009), with its constant 60. A list that is much worse than the other spoils ranks more than scores
(`docs/retrieval.md`). Spreading: Carbonell and
Goldstein, "The use of MMR, diversity-based reranking" (1998).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FUSION = 60.0


def reciprocal_rank_fusion(
    lists: Sequence[Sequence[str]], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """The sum over the lists of weight / (60 + rank), for each id in any of them."""
    fused: dict[str, float] = {}
    for found, weight in zip(lists, weights or [1.0] * len(lists), strict=True):
        for rank, id in enumerate(found, start=1):
            fused[id] = fused.get(id, 0.0) + weight / (FUSION + rank)
    return fused


def score_fusion(
    keywords: Mapping[str, float], vectors: Mapping[str, float], weight: float
) -> dict[str, float]:
    """`1 - weight` of the keyword score over the highest one, and `weight` of the cosine over the highest one."""
    fused: dict[str, float] = {}
    for scores, share in ((keywords, 1 - weight), (vectors, weight)):
        highest = max(scores.values(), default=0.0)
        for id, score in scores.items():
            if highest > 0:
                fused[id] = fused.get(id, 0.0) + share * score / highest
    return fused


def maximal_marginal_relevance(
    scores: Sequence[float],
    vectors: Sequence[NDArray[np.float32] | None],
    k: int,
    diversity: float,
) -> list[int]:
    """The places of `k` of the results: each next one is the best by `(1 - diversity)` of its score over the highest,
    less `diversity` of its largest cosine with one chosen before. A result without a vector is like no other."""
    highest = max(scores, default=0.0) or 1.0
    chosen: list[int] = []
    nearest = [0.0] * len(scores)
    left = list(range(len(scores)))
    while left and len(chosen) < k:
        best = max(left, key=lambda n: (1 - diversity) * scores[n] / highest - diversity * nearest[n])
        chosen.append(best)
        left.remove(best)
        mine = vectors[best]
        for n in left:
            other = vectors[n]
            if mine is not None and other is not None:
                nearest[n] = max(nearest[n], float(mine @ other))
    return chosen
