"""Searching twice: the words and the direction of what was found first make the question longer.

Keywords: relevance model 3 (Abdul-Jaleel et al., "UMass at TREC 2004"). Vectors: Rocchio (1971).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yunque.apps.retrieval.stores import Entry
from yunque.apps.retrieval.stores.postings import analyze

if TYPE_CHECKING:
    from yunque.apps.retrieval.index import Index

WORDS = 20
SHARE = 0.4
"""What part of the longer question's weight the new words have."""
TOWARDS = 0.5
"""How much of the mean of what was found is added to the question's vector."""


def expanded(
    index: "Index", terms: Mapping[str, float], vector: NDArray[np.float32], found: Sequence[Entry]
) -> tuple[dict[str, float], NDArray[np.float32]]:
    """The weighted stems and the vector of a question, after what was found for it, best first."""
    if not found:
        return dict(terms), vector
    weights: dict[str, float] = {}
    for rank, entry in enumerate(found, start=1):
        one = analyze(entry.heading, entry.text, entry.language)
        index.keywords.learn(one.counts)
        for stem, count in one.counts.items():
            if len(stem) > 2 and not stem[0].isdigit():
                share = count / max(sum(one.counts.values()), 1) * index.keywords.idf(stem) / rank
                weights[stem] = weights.get(stem, 0.0) + share
    new = sorted(weights, key=lambda stem: -weights[stem])[:WORDS]
    whole, old = sum(weights[stem] for stem in new) or 1.0, sum(terms.values()) or 1.0
    longer = {stem: (1 - SHARE) * weight / old for stem, weight in terms.items()}
    for stem in new:
        longer[stem] = longer.get(stem, 0.0) + SHARE * weights[stem] / whole
    vectors = list(index.store.vectors([entry.id for entry in found]).values())
    if vectors:
        moved = vector + TOWARDS * np.mean(vectors, axis=0)
        vector = (moved / (float(np.linalg.norm(moved)) or 1.0)).astype(np.float32)
    return longer, vector
