"""GPT-2 beside `transformers`."""

import random
from pathlib import Path

import parity
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from yunque.errors import UserError
from yunque.model import CausalModel, blocks, load_model

SHAPE = {"vocab_size": 99, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
ACTIVATIONS = sorted(blocks.ACTIVATIONS)


def checkpoint(**changes):
    """A tiny random model of `transformers`."""
    return parity.random_weights(AutoModelForCausalLM.from_config(GPT2Config(**{**SHAPE, **changes})))


def opened(theirs, folder: Path, **changes) -> CausalModel:
    return load_model(parity.saved(theirs, folder, **changes), kind=CausalModel)


@pytest.mark.parametrize("seed", range(6))
def test_a_gpt2_of_any_shape_gives_the_scores_of_transformers(seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 5])
    theirs = checkpoint(
        vocab_size=pick.randint(20, 150),
        n_head=heads,
        n_embd=heads * pick.choice([7, 10, 16]),
        n_layer=pick.randint(1, 4),
        n_positions=pick.choice([13, 40]),
        n_inner=pick.choice([None, 7, 60]),
        activation_function=pick.choice(ACTIVATIONS),
        layer_norm_epsilon=pick.choice([1e-6, 1e-5, 1e-3]),
        scale_attn_weights=pick.random() < 0.7,
        scale_attn_by_inverse_layer_idx=pick.random() < 0.3,
        reorder_and_upcast_attn=pick.random() < 0.3,
        tie_word_embeddings=pick.random() < 0.5,
    )
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)
    parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = checkpoint(activation_function=name)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"scale_attn_weights": False}, {"scale_attn_weights": True}),
        ({"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_by_inverse_layer_idx": False}),
        ({"activation_function": "gelu_new"}, {"activation_function": "gelu"}),
        ({"layer_norm_epsilon": 1e-5}, {"layer_norm_epsilon": 1e-6}),
        ({}, {"n_head": 2}),
    ],
    ids=str,
)
def test_each_field_counts(changes: dict, wrong: dict, tmp_path: Path) -> None:
    theirs = checkpoint(**changes)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(opened(theirs, tmp_path, **wrong), theirs)


def test_a_missing_bias_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint()
    ours = opened(theirs, tmp_path)
    ours.layers[2].attention.value.bias.zero_()
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


def test_an_untied_head_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint()
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    ours.head = parity.random_weights(nn.Linear(32, 99, bias=False))
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_bit_for_bit(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = checkpoint(tie_word_embeddings=tied).to(dtype)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(theirs, tmp_path, AutoModelForCausalLM, lambda model: model(ids).logits)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"n_head": 5}, "heads"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"activation_function": "swoosh"}, "activation_function"),
    ],
    ids=str,
)
def test_a_gpt2_that_cannot_be_is_told_in_one_sentence(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        opened(checkpoint(), tmp_path, **changes)
