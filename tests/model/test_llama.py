"""Llama and Mistral beside `transformers`."""

import json
import random
from pathlib import Path

import parity
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from yunque.errors import UserError
from yunque.model import CausalModel, LlamaConfig, load_model, read_configuration, save_model
from yunque.model import attention as attention_module

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn with all": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
        "truncate": False,
    },
    "yarn with a factor on attention": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.3,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.5, 3.0, 4.0],
    },
    "longrope by its contexts": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 8,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.5, 3.0, 4.0],
    },
}


def checkpoint(kind: str, **changes):
    """A tiny random model of `transformers`."""
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    return parity.random_weights(AutoModelForCausalLM.from_config(config))


def opened(theirs, folder: Path, **changes) -> CausalModel:
    return load_model(parity.saved(theirs, folder, **changes), kind=CausalModel)


def random_shape(seed: int) -> dict:
    """A shape that nobody picked by hand."""
    pick = random.Random(seed)
    heads, head_dim = pick.choice([1, 2, 3, 4, 6]), pick.choice([4, 8, 10])
    return {
        "vocab_size": pick.randint(20, 150),
        "hidden_size": heads * pick.choice([4, 8, 12]),
        "intermediate_size": pick.randint(5, 90),
        "num_hidden_layers": pick.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": pick.choice([one for one in range(1, heads + 1) if heads % one == 0]),
        "head_dim": head_dim,
        "max_position_embeddings": pick.choice([13, 40, 4096]),
        "rms_norm_eps": pick.choice([1e-6, 1e-5, 1e-3]),
        "hidden_act": pick.choice(["silu", "gelu", "gelu_pytorch_tanh", "relu"]),
        "tie_word_embeddings": pick.random() < 0.5,
        "rope_parameters": pick.choice(
            [one for one in ROPES.values() if "short_factor" not in one and one["rope_type"] != "dynamic"]
        ),
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_llama_of_any_shape_gives_the_scores_of_transformers(seed: int, tmp_path: Path) -> None:
    pick = random.Random(100 + seed)
    biases = {"attention_bias": pick.random() < 0.5, "mlp_bias": pick.random() < 0.5}
    theirs = checkpoint("Llama", **random_shape(seed), **biases)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)
    parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("seed", range(6))
def test_a_mistral_of_any_shape_gives_the_scores_of_transformers(seed: int, tmp_path: Path) -> None:
    window = random.Random(200 + seed).choice([None, 2, 3, 5, 12, 13, 60])
    theirs = checkpoint("Mistral", **random_shape(50 + seed), sliding_window=window)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    parity.assert_rows_stand_alone(ours, theirs)
    parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ROPES)
def test_every_scaling_of_rotary_positions_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    # Short of the texts, so that the scalings that look at the length do something.
    theirs = checkpoint("Llama", rope_parameters=ROPES[name], max_position_embeddings=10)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    if name != "default":
        # Negative control: without the scaling the scores are others.
        fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        with pytest.raises(AssertionError):
            parity.assert_same_logits(opened(theirs, tmp_path, **fields), theirs)


@pytest.mark.parametrize("name", ROPES)
def test_the_old_spelling_of_rotary_positions_means_the_same(name: str, tmp_path: Path) -> None:
    theirs = checkpoint("Llama", rope_parameters=ROPES[name], max_position_embeddings=10)
    parity.saved(theirs, tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    group = fields.pop("rope_parameters")
    fields["rope_theta"] = group.pop("rope_theta")
    kind = group.pop("rope_type")
    fields["rope_scaling"] = None if kind == "default" else {**group, "type": kind}
    path.write_text(json.dumps(fields))
    ours = load_model(tmp_path, kind=CausalModel)
    parity.assert_same_logits(ours, theirs)
    assert json.loads(save_model(ours)["config.json"])["rope_scaling"] == fields["rope_scaling"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": None, "head_dim": 6},
        {"attention_bias": True},
        {"mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": 16, "rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_each_field_of_a_llama_counts(changes: dict, tmp_path: Path) -> None:
    theirs = checkpoint("Llama", **changes)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)


def interleaved(x_BNTH: Tensor, cos_BTh: Tensor, sin_BTh: Tensor) -> Tensor:
    """The other layout of rotary pairs: neighbours, as in the paper and in Meta's own files."""
    even, odd = x_BNTH[..., 0::2], x_BNTH[..., 1::2]
    cos, sin = cos_BTh[:, None], sin_BTh[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def test_the_wrong_layout_of_rotary_pairs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = checkpoint("Llama")
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    monkeypatch.setattr(attention_module, "rotate", interleaved)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


def test_a_wrong_epsilon_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Llama", rms_norm_eps=1e-5)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)
    with pytest.raises(AssertionError):
        parity.assert_same_logits(opened(theirs, tmp_path, rms_norm_eps=1e-6), theirs)


def test_a_missing_bias_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Llama", attention_bias=True)
    ours = opened(theirs, tmp_path)
    ours.layers[1].attention.query.bias.zero_()
    with pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


def test_an_untied_head_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Llama", tie_word_embeddings=True)
    ours = opened(theirs, tmp_path)
    parity.assert_same_logits(ours, theirs)
    ours.head = parity.random_weights(nn.Linear(32, 99, bias=False))
    with torch.no_grad(), pytest.raises(AssertionError):
        parity.assert_same_logits(ours, theirs)


def test_a_window_that_is_left_out_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Mistral", sliding_window=4)
    parity.assert_same_logits(opened(theirs, tmp_path), theirs)
    for wrong in (None, 3, 5):
        with pytest.raises(AssertionError):
            parity.assert_same_logits(opened(theirs, tmp_path, sliding_window=wrong), theirs)


def test_gradients_that_differ_are_noticed(tmp_path: Path) -> None:
    theirs = checkpoint("Llama")
    ours = opened(theirs, tmp_path)
    with torch.no_grad():
        ours.layers[0].feed_forward.up.weight[0, 0] += 1e-2
    with pytest.raises(AssertionError):
        parity.assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_a_checkpoint_comes_back_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": True, "attention_bias": True} if kind == "Llama" else {}
    theirs = checkpoint(kind, **changes).to(dtype)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(theirs, tmp_path, AutoModelForCausalLM, lambda model: model(ids).logits)
    assert next(load_model(tmp_path / "whole").parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"head_dim": 7}, "even"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_act": "swoosh"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer"),
        ({"rope_parameters": 7}, "groups of fields"),
        ({"head_dim": 2**17}, "larger than any"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"eos_token_id": [2, "3"]}, "eos_token_id"),
    ],
    ids=str,
)
def test_a_llama_that_cannot_be_is_told_in_one_sentence(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as raised:
        opened(checkpoint("Llama"), tmp_path, **changes)
    assert "\n" not in str(raised.value)


def longrope(**changes: object) -> dict:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    return {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **changes}


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (ROPES["yarn"] | {"beta_fast": -1.0}, "beta_fast"),
        (ROPES["yarn"] | {"beta_fast": 1e308}, "cannot be worked out"),
        (ROPES["yarn"] | {"attention_factor": 1e300}, "cannot be worked out"),
        (ROPES["yarn"] | {"original_max_position_embeddings": 10**400}, "original_max_position_embeddings"),
        (ROPES["llama3"] | {"low_freq_factor": 0}, "low_freq_factor"),
        (ROPES["llama3"] | {"low_freq_factor": -1}, "low_freq_factor"),
        (ROPES["llama3"] | {"high_freq_factor": 1e308, "low_freq_factor": 1e307}, "cannot be worked out"),
        (ROPES["dynamic"] | {"factor": 1e300}, "cannot be worked out"),
        (ROPES["default"] | {"rope_theta": 1e-300}, "cannot be worked out"),
        (longrope(original_max_position_embeddings=1), "cannot be worked out"),
        (
            longrope(original_max_position_embeddings=16, long_factor=[1.0, 1.0, 1.0, 0.0]),
            "cannot be worked out",
        ),
        (longrope(original_max_position_embeddings=16, short_factor=[1.0] * 3), "4 numbers each"),
    ],
    ids=str,
)
def test_rotary_positions_that_cannot_be_are_told_before_the_weights_are_read(
    group: dict, told: str, tmp_path: Path
) -> None:
    parity.saved(checkpoint("Llama"), tmp_path, rope_parameters=group)
    with pytest.raises(UserError, match=told) as raised:
        read_configuration(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("group", [*ROPES.values(), longrope(original_max_position_embeddings=16)], ids=str)
def test_rotary_positions_that_can_be_are_not_refused(group: dict, tmp_path: Path) -> None:
    # Some writers keep a float that is whole as a whole number.
    whole = {name: int(one) if one == 4.0 else one for name, one in group.items()}
    parity.saved(checkpoint("Llama"), tmp_path, rope_parameters=whole)
    assert isinstance(read_configuration(tmp_path), LlamaConfig)


@pytest.mark.parametrize("kind", ["LlamaModel", "LlamaForSequenceClassification"])
def test_the_weights_of_another_task_are_named(kind: str, tmp_path: Path) -> None:
    theirs = getattr(transformers, kind)(transformers.LlamaConfig(**SHAPE))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"config\.json says '{kind}'.*lm_head\.weight is missing"):
        load_model(tmp_path)
    parity.saved(checkpoint("Llama"), tmp_path, num_hidden_layers=3)
    with pytest.raises(UserError, match="not the weights of a llama: ") as raised:
        load_model(tmp_path)
    assert "another task" not in str(raised.value)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_floats_of_8_bits_are_read_as_larger_ones_or_told(stored: torch.dtype, tmp_path: Path) -> None:
    parity.saved(checkpoint("Llama"), tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"float8.*open it as float32"):
        load_model(tmp_path)
    assert load_model(tmp_path, torch.bfloat16)(torch.arange(9)[None]).isfinite().all()
