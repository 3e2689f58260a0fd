"""Each filter against its definition, written out."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.generate.config import GenerationConfig
from yunque.generate.sampling import (
    choose_token,
    keep_top_k,
    keep_top_p,
    next_token_probabilities,
    penalize,
)

SCORES = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=20)
NONE_SEEN = torch.tensor([], dtype=torch.int64)


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


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
    assert {id for id, score in enumerate(kept.tolist()) if score != -math.inf} == set(expected)
    assert all(kept[id] == torch.tensor(scores[id]) for id in expected)


@settings(deadline=None)
@given(SCORES, st.floats(0.05, 0.95))
def test_top_p_keeps_the_smallest_set_that_reaches_p(scores: list[float], p: float) -> None:
    kept = keep_top_p(torch.tensor(scores), p)
    probabilities = softmax(scores)
    inside = [id for id, score in enumerate(kept.tolist()) if score != -math.inf]
    outside = [id for id in range(len(scores)) if id not in inside]
    total = sum(probabilities[id] for id in inside)
    assert total >= p - 1e-5
    if len(inside) > 1:
        assert total - min(probabilities[id] for id in inside) < p + 1e-5
    if outside:
        assert max(probabilities[id] for id in outside) <= min(probabilities[id] for id in inside) + 1e-6


def test_top_p_always_keeps_the_likeliest() -> None:
    kept = keep_top_p(torch.tensor([0.0, 9.0, 1.0]), 1e-9)
    assert (kept != -math.inf).tolist() == [False, True, False]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    scores = torch.tensor([2.0, -2.0, 4.0, -4.0])
    assert penalize(scores, torch.tensor([0, 1, 1]), 2.0).tolist() == [1.0, -4.0, 4.0, -4.0]
    assert scores.tolist() == [2.0, -2.0, 4.0, -4.0]


def test_the_penalty_holds_for_greedy_choice_too() -> None:
    config = GenerationConfig(repetition_penalty=3.0)
    scores, generator = torch.tensor([3.0, 2.0]), torch.Generator()
    assert choose_token(scores, torch.tensor([0]), config, generator) == 1
    assert choose_token(scores, torch.tensor([0]), GenerationConfig(), generator) == 0


def test_draws_follow_the_distribution() -> None:
    config = GenerationConfig(temperature=0.7, top_k=3, top_p=0.95)
    scores = torch.tensor([1.0, 0.5, 0.0, -3.0, 0.2])
    expected = next_token_probabilities(scores, NONE_SEEN, config).tolist()
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(choose_token(scores, NONE_SEEN, config, generator) for _ in range(4000))
    for id, probability in enumerate(expected):
        assert drawn[id] / 4000 == pytest.approx(probability, abs=0.03)
    assert drawn[3] == drawn[2] == 0
