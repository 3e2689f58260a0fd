"""One text's choices: settings that depend on what was written, random numbers of its own, log-probabilities."""

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation import logits_process as theirs

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.sampler import Sampler, score_token

V = 12
NEVER = torch.tensor([0, 11])


def scores(seed: int = 0, size: int = V) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


def sampler(prompt: tuple[int, ...] = (), index: int = 0, never=NEVER, size: int = V, **fields) -> Sampler:
    config = GenerationConfig(**{"temperature": 1.0, "seed": 7, **fields})
    return Sampler(config, prompt, size, never, index)


def probabilities(scores_V: torch.Tensor, never=NEVER) -> np.ndarray:
    return scores_V.index_fill(0, never, -torch.inf).softmax(0).numpy()


@settings(deadline=None)
@given(
    st.lists(st.integers(0, V - 1), max_size=30),
    st.lists(st.integers(0, V - 1), max_size=30),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.5, 2),
    st.dictionaries(st.integers(0, V - 1), st.floats(-9, 9), max_size=4),
)
def test_penalties_and_biases_are_what_they_are_defined_to_be(
    prompt, written, presence, frequency, repetition, bias
) -> None:
    chooser = sampler(
        tuple(prompt),
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    for token in written:
        chooser.advance(token)
    expected = scores()
    for token in range(V):
        expected[token] += bias.get(token, 0.0)
        if token in prompt or token in written:
            expected[token] *= repetition if expected[token] <= 0 else 1 / repetition
        expected[token] -= presence * (token in written) + frequency * written.count(token)
    assert chooser.distribution(scores()) == pytest.approx(probabilities(expected), abs=1e-5)


def test_repetition_counts_the_prompt_and_presence_and_frequency_do_not() -> None:
    plain = probabilities(scores())
    assert sampler((5, 5), presence_penalty=2.0, frequency_penalty=2.0).distribution(
        scores()
    ) == pytest.approx(plain)
    assert sampler((5, 5), repetition_penalty=2.0).distribution(scores()) != pytest.approx(plain)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    ids = torch.tensor([[4, 6, 4]])
    expected = theirs.RepetitionPenaltyLogitsProcessor(1.7)(ids, scores()[None].clone())[0]
    found = sampler((4, 6), repetition_penalty=1.7)
    found.advance(4)
    assert found.distribution(scores()) == pytest.approx(probabilities(expected), abs=1e-6)


def test_what_is_taken_back_no_longer_counts() -> None:
    chooser = sampler((3,), presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.5)
    before = chooser.distribution(scores())
    for token in (4, 3, 4, 9):
        chooser.advance(token)
    assert chooser.distribution(scores()) != pytest.approx(before)
    chooser.rollback(4)
    assert np.array_equal(chooser.distribution(scores()), before)
    chooser.advance(9)
    again = sampler((3,), presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.5)
    again.advance(9)
    assert np.array_equal(chooser.distribution(scores()), again.distribution(scores()))


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 4},
        {"temperature": 1.0, "top_p": 0.7, "min_p": 0.02},
        {"temperature": 0.9, "typical_p": 0.8, "repetition_penalty": 1.2},
    ],
)
def test_draws_follow_the_distribution(fields: dict) -> None:
    chooser = sampler((2, 3), **fields)
    expected = chooser.distribution(scores()).astype(np.float64)
    drawn = Counter[int]()
    for _ in range(6000):
        drawn[chooser.choose(scores()).token_id] += 1
        chooser.rollback(1)
    possible = np.flatnonzero(expected)
    assert set(drawn) <= set(possible.tolist())
    counts = [drawn[int(id)] for id in possible]
    assert chisquare(counts, expected[possible] / expected[possible].sum() * 6000).pvalue > 1e-4
    wrong = np.roll(expected[possible], 1)
    assert chisquare(counts, wrong / wrong.sum() * 6000).pvalue < 1e-4


def test_only_what_is_allowed_and_is_text_is_written() -> None:
    allowed = np.array([0, 4, 8])
    for fields in (
        {"temperature": 1.0},
        {"temperature": 0.0},
        {"temperature": 0.5, "top_k": 2, "top_p": 0.9},
    ):
        chooser = sampler(**fields)
        drawn = {chooser.choose(scores(seed), allowed).token_id for seed in range(60)}
        assert drawn == {4, 8}
        assert set(np.flatnonzero(chooser.distribution(scores(), allowed)).tolist()) <= {4, 8}
    biased = sampler(logit_bias={0: 100.0}, temperature=0.0)
    assert biased.choose(scores()).token_id != 0
    assert sampler(never=None, logit_bias={0: 100.0}, temperature=0.0).choose(scores()).token_id == 0


def test_greedy_is_the_likeliest_that_is_left() -> None:
    plain = sampler(temperature=0.0)
    best = int(scores().index_fill(0, NEVER, -torch.inf).argmax())
    assert plain.choose(scores()).token_id == best
    assert np.flatnonzero(plain.distribution(scores())).tolist() == [best]
    penalized = sampler((best,), temperature=0.0, repetition_penalty=50.0)
    assert penalized.choose(scores()).token_id != best


def test_greedy_never_takes_what_is_no_text() -> None:
    rows = [scores(seed) for seed in range(40)]
    assert {0, 11} & {int(row.argmax()) for row in rows}
    assert not {0, 11} & {sampler(temperature=0.0).choose(row).token_id for row in rows}


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 0.011, 2.0])
def test_no_temperature_overflows(temperature: float) -> None:
    chooser = sampler(temperature=temperature)
    found = chooser.distribution(scores() * 1e4)
    assert np.isfinite(found).all() and found.sum() == pytest.approx(1, abs=1e-5)
    assert 0 <= chooser.choose(scores() * 1e4).token_id < V


def drawn(count: int = 40, **fields) -> list[int]:
    chooser = sampler(**fields)
    return [chooser.choose(scores(step)).token_id for step in range(count)]


def test_a_seed_repeats_a_text_and_each_text_of_a_request_is_another() -> None:
    assert drawn() == drawn()
    assert drawn() != drawn(seed=8)
    assert drawn() != drawn(index=1) != drawn(index=2)
    assert drawn(seed=None) != drawn(seed=None)
    assert drawn(seed=-1) == drawn(seed=-1) != drawn(seed=1)


def test_a_text_draws_the_same_whatever_else_draws() -> None:
    first, second = sampler(), sampler(index=1)
    mixed = []
    for step in range(40):
        second.choose(scores(step))
        torch.rand(3)
        mixed.append(first.choose(scores(step)).token_id)
    assert mixed == drawn()


def test_log_probabilities_are_the_models_own() -> None:
    chooser = sampler(temperature=0.3, top_k=2, repetition_penalty=3.0, logit_bias={4: 5.0}, logprobs=3)
    told = chooser.choose(scores())
    expected = scores().double().log_softmax(0)
    assert told.scored is not None and told.scored.token_id == told.token_id
    assert told.scored.logprob == pytest.approx(float(expected[told.token_id]), abs=1e-5)
    shown = expected.index_fill(0, NEVER, -torch.inf).topk(3)
    assert [one.token_id for one in told.likeliest] == shown.indices.tolist()
    assert [one.logprob for one in told.likeliest] == pytest.approx(shown.values.tolist(), abs=1e-5)
    cooled = (scores().double() / 0.3).log_softmax(0)
    assert told.scored.logprob != pytest.approx(float(cooled[told.token_id]), abs=1e-3)


def test_as_many_of_the_likeliest_as_were_asked_for() -> None:
    assert sampler().choose(scores()).scored is None
    assert sampler(logprobs=0).choose(scores()).likeliest == ()
    assert len(sampler(logprobs=20).choose(scores()).likeliest) == V - len(NEVER)
    assert len(score_token(scores(), 3, 5)[1]) == 5


def test_the_scores_that_were_given_are_not_changed() -> None:
    given_scores, before = scores(), scores()
    sampler((1,), repetition_penalty=2.0, presence_penalty=1.0, logit_bias={3: 1.0}).choose(given_scores)
    sampler(top_p=0.5, logprobs=4).choose(given_scores, np.array([3, 4]))
    sampler(never=None).distribution(given_scores)
    assert torch.equal(given_scores, before)


def test_a_bias_for_no_token_is_told() -> None:
    with pytest.raises(UserError, match="logit_bias: there is no token 12 in a vocabulary of 12"):
        sampler(logit_bias={12: 1.0})
    with pytest.raises(UserError, match="no token -1"):
        sampler(logit_bias={-1: 1.0})


def test_the_cost_of_choosing_can_be_measured(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    found = importlib.import_module("choosing").measure(vocabulary=300, rounds=2, width=3.0)
    assert len(found) == 9 and all(0 < least <= median for median, least in found.values())
