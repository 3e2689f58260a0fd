"""Qwen 2, 2.5 and 3 beside `transformers`."""

import random
from pathlib import Path

import parity
import pytest
import torch
import transformers
from test_llama import random_shape
from transformers import AutoModelForCausalLM

from yunque.errors import UserError
from yunque.model import CausalModel, load_model

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def checkpoint(kind: str, **changes):
    """A tiny random model of `transformers`."""
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    return parity.random_weights(AutoModelForCausalLM.from_config(config))


def opened(theirs, folder: Path, **changes) -> CausalModel:
    return load_model(parity.saved(theirs, folder, **changes), kind=CausalModel)


def random_windows(pick: random.Random, layers: int) -> dict:
    """Windows as any of the three ways of writing them says."""
    windows = {"use_sliding_window": pick.random() < 0.8, "sliding_window": pick.choice([2, 3, 7, 30])}
    if windows["use_sliding_window"] and pick.random() < 0.5:
        kinds = ["full_attention", "sliding_attention"]
        return windows | {"layer_types": [pick.choice(kinds) for _ in range(layers)]}
    return windows | {"max_window_layers": pick.randint(0, layers)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_a_qwen_of_any_shape_gives_the_scores_of_transformers(kind: str, seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    shape = random_shape(300 + seed)
    shape |= random_windows(pick, shape["num_hidden_layers"])
    theirs = checkpoint(kind, **shape, **({"attention_bias": pick.random() < 0.5} if kind == "Qwen3" else {}))
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)
    parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_missing_bias_is_noticed(part: str, tmp_path: Path) -> None:
    theirs = checkpoint("Qwen2")
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    getattr(ours.layers[1].attention, part).bias.zero_()
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


def test_a_missing_norm_of_heads_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Qwen3", head_dim=8)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    ours.layers[0].attention.key_norm = torch.nn.Identity()
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"use_sliding_window": False},
        {"sliding_window": 5},
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": ["sliding_attention"] * 3},
    ],
    ids=str,
)
def test_the_wrong_window_is_noticed(kind: str, wrong: dict, tmp_path: Path) -> None:
    theirs = checkpoint(kind, head_dim=8, **WINDOWS)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(opened(theirs, tmp_path, **wrong), theirs)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_comes_back_bit_for_bit(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs = checkpoint(kind, tie_word_embeddings=tied, **WINDOWS).to(torch.bfloat16)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(theirs, tmp_path, AutoModelForCausalLM, lambda model: model(ids).logits)


@pytest.mark.parametrize("types", [["full_attention"], ["full_attention", "sliding", "full_attention"]])
def test_layer_types_that_do_not_fit_are_told(types: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer_types"):
        opened(checkpoint("Qwen2"), tmp_path, layer_types=types)
