"""Each filter against its definition, written out, and against transformers' processors."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from yunque.generate.config import GenerationConfig
from yunque.generate.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    next_token_probabilities,
    penalize,
)

SCORES = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=20)
NONE_SEEN = torch.tensor([], dtype=torch.int64)
NO_PROMPT = torch.empty(1, 0, dtype=torch.int64)


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def kept_ids(scores_V: torch.Tensor) -> set[int]:
    return set((scores_V != -math.inf).nonzero().flatten().tolist())


@settings(deadline=None)
@given(SCORES, st.floats(0.1, 2.0))
def test_temperature_divides_the_scores(scores: list[float], temperature: float) -> None:
    config = GenerationConfig(temperature=temperature)
    found = next_token_probabilities(torch.tensor(scores), NONE_SEEN, config)
    expected = softmax([score / temperature for score in scores])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@settings(deadline=None)
@given(SCORES, st.integers(1, 25))
def test_top_k_keeps_the_k_highest(scores: list[float], k: int) -> None:
    kept = keep_top_k(torch.tensor(scores), k)
    expected = sorted(range(len(scores)), key=lambda id: (-scores[id], id))[:k]
    assert kept_ids(kept) == set(expected)
    assert all(kept[id] == torch.tensor(scores[id]) for id in expected)


@settings(deadline=None)
@given(SCORES, st.floats(0.05, 0.95))
def test_top_p_keeps_the_smallest_set_that_reaches_p(scores: list[float], p: float) -> None:
    inside = kept_ids(keep_top_p(torch.tensor(scores), p))
    probabilities = softmax(scores)
    outside = set(range(len(scores))) - inside
    total = sum(probabilities[id] for id in inside)
    assert total >= p - 1e-5
    if len(inside) > 1:
        assert total - min(probabilities[id] for id in inside) < p + 1e-5
    if outside:
        assert max(probabilities[id] for id in outside) <= min(probabilities[id] for id in inside) + 1e-6


def test_top_p_always_keeps_the_likeliest() -> None:
    kept = keep_top_p(torch.tensor([0.0, 9.0, 1.0]), 1e-9)
    assert (kept != -math.inf).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("p", "expected"), [(0.2, {1}), (0.6, {1, 2}), (0.7, {1, 2, 4}), (0.99, {0, 1, 2, 4})]
)
def test_of_equal_tokens_the_lower_ids_stay(p: float, expected: set[int]) -> None:
    scores = torch.tensor([0.1, 0.3, 0.3, 0.0, 0.3]).log()
    assert kept_ids(keep_top_p(scores, p)) == expected
    assert kept_ids(keep_top_k(scores, 2)) == {1, 2}


@settings(deadline=None)
@given(SCORES, st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_beside_the_likeliest(scores: list[float], min_p: float) -> None:
    inside = kept_ids(keep_min_p(torch.tensor(scores), min_p))
    probabilities = softmax(scores)
    border = min_p * max(probabilities)
    for id, probability in enumerate(probabilities):
        if abs(probability - border) > 1e-6:
            assert (id in inside) == (probability > border)
    assert scores.index(max(scores)) in inside


@settings(deadline=None)
@given(SCORES, st.floats(0.05, 0.95))
def test_typical_keeps_the_fewest_whose_information_is_nearest_to_the_entropy(
    scores: list[float], mass: float
) -> None:
    inside = kept_ids(keep_typical(torch.tensor(scores), mass))
    probabilities = softmax(scores)
    entropy = -sum(p * math.log(p) for p in probabilities)
    distances = [abs(-math.log(p) - entropy) for p in probabilities]
    total = sum(probabilities[id] for id in inside)
    assert total >= mass - 1e-5
    farthest = max(inside, key=lambda id: distances[id])
    assert total - probabilities[farthest] < mass + 1e-5
    assert all(distances[id] >= distances[farthest] - 1e-4 for id in range(len(scores)) if id not in inside)


FILTERS: dict[str, tuple[Callable, Callable]] = {
    "top_k": (lambda s: keep_top_k(s, 40), theirs.TopKLogitsWarper(40)),
    "top_p": (lambda s: keep_top_p(s, 0.9), theirs.TopPLogitsWarper(0.9)),
    "top_p of many": (lambda s: keep_top_p(s, 0.999), theirs.TopPLogitsWarper(0.999)),
    "min_p": (lambda s: keep_min_p(s, 0.05), theirs.MinPLogitsWarper(0.05)),
    "typical_p": (lambda s: keep_typical(s, 0.6), theirs.TypicalLogitsWarper(0.6)),
    "typical_p of many": (lambda s: keep_typical(s, 0.98), theirs.TypicalLogitsWarper(0.98)),
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("width", [1.0, 3.0])
def test_filters_of_a_large_vocabulary_equal_those_of_transformers(name: str, width: float) -> None:
    scores = torch.randn(20_000, generator=torch.Generator().manual_seed(3)) * width
    ours, warper = FILTERS[name]
    expected = warper(NO_PROMPT, scores[None].clone())[0]
    assert kept_ids(ours(scores)) == kept_ids(expected)
    for other, (_, other_warper) in FILTERS.items():
        if other != name:
            assert kept_ids(ours(scores)) != kept_ids(other_warper(NO_PROMPT, scores[None].clone())[0])


def test_settings_together_equal_transformers_in_their_order() -> None:
    config = GenerationConfig(
        temperature=0.6, top_k=100, top_p=0.95, min_p=0.01, typical_p=0.9, repetition_penalty=1.3
    )
    scores = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * 4
    seen = torch.tensor([3, 17, int(scores.argmax())])
    expected = scores[None].clone()
    chain = [
        theirs.RepetitionPenaltyLogitsProcessor(1.3),
        theirs.TemperatureLogitsWarper(0.6),
        theirs.TopKLogitsWarper(100),
        theirs.TopPLogitsWarper(0.95),
        theirs.MinPLogitsWarper(0.01),
        theirs.TypicalLogitsWarper(0.9),
    ]
    for processor in chain:
        expected = processor(seen[None], expected)
    found = next_token_probabilities(scores, seen, config)
    torch.testing.assert_close(found, expected[0].softmax(0), atol=1e-6, rtol=1e-5)
    without = next_token_probabilities(scores, seen, config.model_copy(update={"typical_p": 1.0}))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(without, expected[0].softmax(0), atol=1e-6, rtol=1e-5)


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    scores = torch.tensor([2.0, -2.0, 4.0, -4.0])
    assert penalize(scores, torch.tensor([0, 1, 1]), 2.0).tolist() == [1.0, -4.0, 4.0, -4.0]
    assert scores.tolist() == [2.0, -2.0, 4.0, -4.0]


def test_draws_fall_where_their_share_is() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]).numpy()
    assert [draw(weights, at) for at in (0.0, 0.2499, 0.25, 0.9999, 1.0)] == [1, 1, 3, 3, 3]
    counts = Counter(draw(weights, (step + 0.5) / 1000) for step in range(1000))
    assert counts == {1: 250, 3: 750}
