"""Positions beside their definitions and beside `transformers`."""

import math

import pytest
import torch
from test_llama import ROPES
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.falcon.modeling_falcon import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from yunque.model.positions import Rope, alibi, distance_buckets, rotary_angles, rotate, sinusoids


@pytest.mark.parametrize("name", [one for one in ROPES if one != "default"])
@pytest.mark.parametrize("length", [1, 8, 9, 40, 5000])
def test_frequencies_of_every_scaling_are_those_of_transformers(name: str, length: int) -> None:
    group = ROPES[name]
    theirs = LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=40, rope_parameters=dict(group)
    )
    wanted = ROPE_INIT_FUNCTIONS[group["rope_type"]](theirs, seq_len=length)
    rope = Rope.of({"rope_parameters": group}, 40)
    assert_close(rope.frequencies(8, 40, length), wanted, rtol=1e-6, atol=0)
    # Negative control: plain frequencies are others.
    plain = Rope(rope_theta=rope.rope_theta * 1.01).frequencies(8, 40, length)
    with pytest.raises(AssertionError):
        assert_close(plain, wanted, rtol=1e-6, atol=0)


def test_a_context_outside_of_the_group_comes_first() -> None:
    group = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
    fields = {"rope_scaling": group, "rope_theta": 77.0, "original_max_position_embeddings": 16}
    rope = Rope.of(fields, 64)
    assert (rope.original_max_position_embeddings, rope.rope_theta) == (16, 77.0)
    assert (
        Rope.of({"rope_scaling": {"type": "yarn", "factor": 2.0}}, 64).original_max_position_embeddings == 64
    )


def test_rotary_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(4))

    def product(m: int, n: int) -> float:
        (cos, sin), (cos_k, sin_k) = (rotary_angles(torch.tensor([[at]]), Rope(), 8, 512) for at in (m, n))
        return float((rotate(q, cos, sin) * rotate(k, cos_k, sin_k)).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 23, 71, 112])
def test_alibi_is_that_of_transformers(heads: int) -> None:
    mask = torch.ones(3, 900, dtype=torch.long)
    mask[0, :5] = mask[1, 600:] = 0
    wanted = build_alibi_tensor(mask, heads, torch.float32).view(3, heads, 1, 900)
    ours = alibi((mask.cumsum(1) - 1) * mask, heads)
    assert torch.equal(ours, wanted)
    # Negative control: one position further.
    assert not torch.equal(alibi(mask.cumsum(1), heads), wanted)


def test_slopes_of_alibi_are_those_of_the_paper() -> None:
    one = torch.ones(1, 1, dtype=torch.long)
    assert alibi(one, 8).flatten().tolist() == [2.0**-power for power in range(1, 9)]
    # 12 heads: those of 8, and every other one of 16.
    filled = [2.0 ** -(0.5 + power) for power in range(4)]
    assert_close(alibi(one, 12).flatten()[8:], torch.tensor(filled).bfloat16().float())


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 12)
    for position in (0, 1, 7, 49):
        for pair in range(6):
            angle = position / 10000 ** (2 * pair / 12)
            assert float(table[position, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(table[position, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (16, 64), (32, 1000)])
def test_buckets_of_distances_are_those_of_transformers(buckets: int, farthest: int, both_ways: bool) -> None:
    distances = torch.arange(-1200, 1200)
    wanted = T5Attention._relative_position_bucket(distances, both_ways, buckets, farthest)
    assert torch.equal(distance_buckets(distances, buckets, farthest, both_ways), wanted)
    assert not torch.equal(distance_buckets(distances + 1, buckets, farthest, both_ways), wanted)
