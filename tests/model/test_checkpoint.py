import json

import pytest
import torch
from safetensors.torch import load_file

from yunque.errors import UserError
from yunque.model import Llama, LlamaConfig, load_model, read_configuration, save_model
from yunque.model.family import family_of, known_model_types

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=32,
    eos_token_id=0,
    tie_word_embeddings=True,
)
IDS = torch.arange(20)[None]


def model() -> Llama:
    return Llama(CONFIG, torch.Generator().manual_seed(0)).eval().requires_grad_(False)


def saved(net: Llama, folder) -> None:
    for name, content in save_model(net).items():
        (folder / name).write_bytes(content)


def test_a_saved_model_gives_the_same_scores_bit_for_bit(tmp_path) -> None:
    saved(model(), tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(IDS), model()(IDS))
    assert save_model(loaded) == save_model(model())
    by_name = load_model({name: tmp_path / name for name in ("config.json", "model.safetensors")})
    assert torch.equal(by_name(IDS), loaded(IDS))


def test_a_checkpoint_has_the_names_and_fields_of_hugging_face(tmp_path) -> None:
    saved(model(), tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    layer = "model.layers.1."
    assert names >= {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"{layer}self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"{layer}mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        layer + "input_layernorm.weight",
        layer + "post_attention_layernorm.weight",
    }
    assert len(names) == 2 + 9 * 2
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["tie_word_embeddings"] is True
    assert "quantization_config" not in written


def test_a_cut_off_file_is_told_in_one_sentence(tmp_path) -> None:
    saved(model(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: is damaged"):
        load_model(tmp_path)


def test_weights_of_another_shape_are_told(tmp_path) -> None:
    saved(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"hidden_size": 32}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=r"by config\.json|not the weights of a llama"):
            load_model(tmp_path)


def test_a_family_that_is_not_known_is_told(tmp_path) -> None:
    saved(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    with pytest.raises(UserError, match="model_type 'unheard-of' is not known"):
        load_model(tmp_path)


def test_a_newer_and_an_older_spelling_of_rotary_positions_mean_the_same(tmp_path) -> None:
    saved(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    newer = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0}}
    older = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    read = []
    for spelling in (newer, older):
        (tmp_path / "config.json").write_text(json.dumps(config | spelling))
        read.append(read_configuration(tmp_path).rope)
    assert read[0] == read[1] and (read[0].rope_theta, read[0].factor) == (500.0, 2.0)
    half = {"rope_parameters": {"rope_theta": 500.0, "rope_type": "llama3", "factor": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config | half))
    with pytest.raises(UserError, match="need low_freq_factor"):
        load_model(tmp_path)


@pytest.mark.parametrize("model_type", known_model_types())
def test_every_model_type_leads_to_its_family(model_type: str) -> None:
    field = family_of({"model_type": model_type}).config.model_fields["model_type"]
    assert field.default == model_type


def test_a_field_that_no_family_knows_may_have_any_number(tmp_path) -> None:
    saved(model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layerdrop_seed": 10**9}))
    assert json.loads(save_model(load_model(tmp_path))["config.json"])["layerdrop_seed"] == 10**9
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(UserError, match="num_hidden_layers: Input should be less than or equal to 10000"):
        load_model(tmp_path)
