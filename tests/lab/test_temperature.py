"""The next token at several temperatures: the numbers are those that generation draws from."""

import math

import pytest
import torch
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.lab.temperature import NextToken, distributions, draw_temperature, entropy, likeliest

LOGITS = torch.randn(200, generator=torch.Generator().manual_seed(1)) * 3


def test_a_distribution_is_the_softmax_of_scores_over_temperature() -> None:
    for one in distributions(LOGITS, [0.2, 1.0, 2.0]):
        expected = torch.softmax(LOGITS.double() / one.temperature, 0).float()
        assert_close(one.all_V, expected)
        assert_close(one.kept_V, expected)
        with pytest.raises(AssertionError):
            assert_close(one.all_V, torch.softmax(LOGITS.double() / (one.temperature + 0.01), 0).float())


def test_top_k_and_top_p_cut_and_share_out_again() -> None:
    (one,) = distributions(LOGITS, [1.0], top_k=10)
    assert one.tokens_kept == 10
    kept = one.all_V.topk(10)
    assert_close(one.kept_V[kept.indices], kept.values / kept.values.sum())
    assert_close(torch.tensor(one.cut_away), 1 - kept.values.sum())
    (one,) = distributions(LOGITS, [1.0], top_p=0.8)
    assert one.all_V[one.kept_V > 0].sum() >= 0.8
    smallest = one.all_V[one.kept_V > 0].min()
    assert one.all_V[one.kept_V > 0].sum() - smallest < 0.8


def test_entropy_is_counted_in_bits() -> None:
    assert entropy(torch.full((8,), 1 / 8)) == pytest.approx(3)
    assert entropy(torch.tensor([1.0, 0.0])) == 0
    grows = [one.entropy for one in distributions(LOGITS, [0.1, 0.5, 1.0, 2.0])]
    assert grows == sorted(grows)
    assert grows[-1] < math.log2(200)


def test_temperature_zero_is_greedy_and_a_very_cold_one_nearly() -> None:
    zero, cold = distributions(LOGITS, [0, 1e-39], top_k=3)
    assert zero.kept_V[LOGITS.argmax()] == 1
    assert zero.entropy == 0
    assert_close(cold.kept_V, zero.kept_V)


def test_the_likeliest_come_first_and_what_is_never_drawn_does_not() -> None:
    logits = LOGITS.clone()
    logits[3:] = float("-inf")
    assert sorted(likeliest(logits, 10)) == [0, 1, 2]
    assert likeliest(LOGITS, 5) == LOGITS.topk(5).indices.tolist()


@pytest.mark.parametrize("wrong", [{"temperatures": [2.5]}, {"temperatures": []}, {"temperatures": [-1.0]},
                                   {"temperatures": [1.0], "top_p": 0.0}, {"temperatures": [math.nan]}])  # fmt: skip
def test_settings_that_generation_refuses_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        distributions(LOGITS, **wrong)


def test_one_token_and_many_can_be_drawn() -> None:
    for count, temperatures in ((1, [0.0]), (30, [0.0, 0.5, 1.0, 2.0])):
        ids = tuple(likeliest(LOGITS, count))
        names = tuple(f"$ñ_{id}$" for id in ids)
        found = NextToken(
            "m", "¿$5? " * 99, tuple(distributions(LOGITS, temperatures, 9)), ids, names, 9, 1.0
        )
        assert len(draw_temperature(found).axes) == len(temperatures)
