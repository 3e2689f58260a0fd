"""Falcon beside `transformers`: 7B and 40B layouts, sequential ones, rotary positions and ALiBi."""

import random
from pathlib import Path

import parity
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, FalconConfig

from yunque.errors import UserError
from yunque.model import CausalModel, load_model
from yunque.model.families import falcon

SHAPE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}

KINDS = {
    "7B": {"multi_query": True, "parallel_attn": True},
    "40B": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "11B": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "40B without groups": {"new_decoder_architecture": True},
    "RW": {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    "parallel with many heads": {"multi_query": False, "parallel_attn": True},
    "sequential with one head": {"multi_query": True, "parallel_attn": False, "bias": True},
    "40B with alibi": {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": True},
}


def checkpoint(**changes):
    """A tiny random model of `transformers`."""
    return parity.random_weights(AutoModelForCausalLM.from_config(FalconConfig(**{**SHAPE, **changes})))


def opened(theirs, folder: Path, **changes) -> CausalModel:
    return load_model(parity.saved(theirs, folder, **changes), kind=CausalModel)


@pytest.mark.parametrize("seed", range(6))
def test_a_falcon_of_any_shape_gives_the_scores_of_transformers(seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    kind = dict(KINDS[list(KINDS)[seed % len(KINDS)]])
    heads = pick.choice([2, 4, 6, 10])
    if kind.get("num_kv_heads"):
        kind["num_kv_heads"] = pick.choice([one for one in range(1, heads + 1) if heads % one == 0])
    ropes = [{"rope_type": "default", "rope_theta": 500.0}, {"rope_type": "linear", "factor": 2.0}]
    theirs = checkpoint(
        **kind | {"alibi": pick.random() < 0.5, "bias": pick.random() < 0.5},
        vocab_size=pick.randint(20, 150),
        num_attention_heads=heads,
        hidden_size=heads * pick.choice([4, 8, 10]),
        num_hidden_layers=pick.randint(1, 4),
        ffn_hidden_size=pick.choice([None, 7, 60]),
        activation=pick.choice(["gelu", "relu", "gelu_pytorch_tanh", "silu"]),
        layer_norm_epsilon=pick.choice([1e-6, 1e-5, 1e-3]),
        tie_word_embeddings=pick.random() < 0.5,
        rope_parameters=pick.choice(ropes),
    )
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)
    parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_of_falcon_is_read(kind: str, tmp_path: Path) -> None:
    theirs = checkpoint(**KINDS[kind])
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    # Negative controls: heads that change places, and a query that loses its weights.
    key = ours.layers[0].attention.key.weight
    ours.layers[0].attention.key.weight = nn.Parameter(key.roll(1, 0), requires_grad=False)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 71])
def test_alibi_is_that_of_transformers_for_any_number_of_heads(heads: int, tmp_path: Path) -> None:
    theirs = checkpoint(alibi=True, num_attention_heads=heads, hidden_size=heads * 4)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)


@torch.no_grad()
def test_alibi_rounds_far_positions_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = checkpoint(alibi=True, num_hidden_layers=1)
    ours, ids = opened(theirs, tmp_path), parity.ragged(99, (700,))[0][None]
    parity.assert_same(ours(ids), theirs(ids).logits)

    def unrounded(key_positions: Tensor, num_heads: int) -> Tensor:
        slopes = 2.0 ** (-8.0 / num_heads * torch.arange(1, num_heads + 1))
        return (slopes[:, None] * key_positions[:, None])[:, :, None]

    monkeypatch.setattr(falcon, "alibi", unrounded)
    with pytest.raises(AssertionError):
        parity.assert_same(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("7B", {"layer_norm_epsilon": 1e-3}),
        ("7B", {"alibi": True}),
        ("7B", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("7B", {"activation": "relu"}),
        ("RW", {"alibi": False}),
        ("40B without groups", {"new_decoder_architecture": True, "num_kv_heads": 4, "activation": "relu"}),
    ],
)
def test_each_field_counts(kind: str, wrong: dict, tmp_path: Path) -> None:
    theirs = checkpoint(**KINDS[kind])
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(opened(theirs, tmp_path, **wrong), theirs)


def test_an_untied_head_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint()
    ours = opened(theirs, tmp_path)
    ours.head = parity.random_weights(nn.Linear(32, 99, bias=False))
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    theirs = checkpoint(**KINDS[kind], tie_word_embeddings=kind != "11B").to(torch.bfloat16)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(theirs, tmp_path, AutoModelForCausalLM, lambda model: model(ids).logits)


@torch.no_grad()
def test_documents_in_one_window_read_as_if_alone(tmp_path: Path) -> None:
    for kind in ("7B", "RW"):
        ours = opened(checkpoint(**KINDS[kind]), tmp_path)
        first, second = parity.ragged(99, (5, 7))
        packed = ours(torch.cat((first, second))[None], segment_ids_BT=torch.tensor([[0] * 5 + [1] * 7]))
        parity.assert_same(packed[:, 5:], ours(second[None]))
        with pytest.raises(AssertionError):
            parity.assert_same(ours(torch.cat((first, second))[None])[:, 5:], ours(second[None]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 5}, "heads"),
        ({"new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ({"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ({"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        ({"new_decoder_architecture": True}, "ln_attn"),
        ({"multi_query": False}, "query_key_value"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 1e300}}, "cannot be worked out"),
        ({"bias": "false"}, "bias"),
    ],
    ids=str,
)
def test_a_falcon_that_cannot_be_is_told_in_one_sentence(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        opened(checkpoint(), tmp_path, **changes)
