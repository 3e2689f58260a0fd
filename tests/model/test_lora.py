"""LoRA on every family, on quantized bases too."""

import copy

import pytest
import torch
from pydantic import ValidationError
from tiny_models import MODEL_TYPES, ids, output, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import LanguageModel, known_model_types, quantize_model, save_model
from yunque.model.lora import (
    LoraSettings,
    add_lora,
    lora_adapters,
    lora_names,
    lora_parameters,
    merge_lora,
    remove_lora,
    select_adapter,
    selected_adapter,
    unmerge_lora,
)
from yunque.model.quantized_layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedRecurrence,
)

# A recurrent network has no attention, and no matrix but its head: PyTorch's LSTM is one whole.
TARGETS = {"rnn": ("head",)}


def adapted(
    model: LanguageModel, name: str = "default", seed: int = 0, trained: bool = True, **settings: object
) -> LanguageModel:
    """The model with an adapter on it, whose B is no longer zero if it is `trained`."""
    targets = settings.pop("targets", TARGETS.get(model.config.model_type, "attention"))
    generator = torch.Generator().manual_seed(seed)
    add_lora(model, LoraSettings(rank=4, targets=targets, **settings), generator, name)
    if trained:
        train(model, name, seed)
    return model


@torch.no_grad()
def train(model: LanguageModel, name: str = "default", seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed + 100)
    for adapter in lora_adapters(model, name).values():
        adapter.b_OR.copy_(torch.randn(adapter.b_OR.shape, generator=generator) * 0.2)


def loss(model: LanguageModel) -> Tensor:
    scores = output(model, ids())
    return (scores * torch.linspace(-1, 1, scores.shape[-1])).square().mean()


def test_every_family_is_tried_here() -> None:
    assert set(MODEL_TYPES) == set(known_model_types())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_fresh_adapter_leaves_the_base_as_it_is_bit_for_bit(model_type: str) -> None:
    base = tiny_model(model_type)
    fresh = adapted(copy.deepcopy(base), trained=False)
    assert torch.equal(output(fresh, ids()), output(base, ids()))
    # Negative control: a trained one does not.
    train(fresh)
    assert not torch.allclose(output(fresh, ids()), output(base, ids()), atol=1e-3)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_merged_is_the_same_and_unmerged_is_the_base_bit_for_bit(model_type: str, targets: str) -> None:
    targets = TARGETS.get(model_type, targets)
    base = tiny_model(model_type)
    tuned = adapted(copy.deepcopy(base), targets=targets)
    scores, alone = output(tuned, ids()), output(base, ids())
    merge_lora(tuned)
    assert_close(output(tuned, ids()), scores, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(output(tuned, ids()), alone, rtol=1e-5, atol=1e-5)
    unmerge_lora(tuned)
    assert torch.equal(output(tuned, ids()), scores)
    remove_lora(tuned)
    assert torch.equal(output(tuned, ids()), alone)
    state = base.state_dict()
    assert tuned.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in tuned.state_dict().items())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_merged_model_without_its_adapter_is_a_plain_checkpoint(model_type: str) -> None:
    tuned = adapted(tiny_model(model_type))
    scores = output(tuned, ids())
    merge_lora(tuned)
    remove_lora(tuned)
    assert lora_names(tuned) == ()
    assert_close(output(tuned, ids()), scores, rtol=1e-5, atol=1e-5)
    plain = tiny_model(model_type)
    assert tuned.state_dict().keys() == plain.state_dict().keys()
    assert save_model(tuned).keys() == save_model(plain).keys()
    assert save_model(tuned)["model.safetensors"] != save_model(plain)["model.safetensors"]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_the_adapter_is_trained(model_type: str) -> None:
    model = tiny_model(model_type).requires_grad_(True)
    tuned = adapted(model)
    wanted = set(map(id, lora_parameters(tuned).values()))
    assert {id(weight) for weight in tuned.parameters() if weight.requires_grad} == wanted
    loss(tuned).backward()
    for name, weight in lora_parameters(tuned).items():
        assert weight.grad is not None and bool(weight.grad.ne(0).any()), name


def test_gradients_are_those_of_the_spelled_out_product() -> None:
    tuned = adapted(tiny_model("llama"))
    loss(tuned).backward()
    plain = tiny_model("llama")
    name = "layers.0.attention.query"
    adapter, layer = lora_adapters(tuned)[name], plain.get_submodule(name)
    a, b = (weight.detach().clone().requires_grad_() for weight in (adapter.a_RI, adapter.b_OR))
    for other, part in lora_adapters(tuned).items():
        if other != name:
            plain.get_submodule(other).weight += part.change().detach()
    changed = {"weight": layer.weight + 16 / 4 * b @ a}
    layer.register_forward_pre_hook(lambda *_: None)
    layer.forward = lambda x: nn.functional.linear(x, changed["weight"])
    loss(plain).backward()
    assert_close(adapter.a_RI.grad, a.grad, rtol=1e-4, atol=1e-6)
    assert_close(adapter.b_OR.grad, b.grad, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(adapter.b_OR.grad, 1.01 * b.grad, rtol=1e-4, atol=1e-6)


def test_the_scale_is_alpha_over_the_rank_or_over_its_root() -> None:
    for use_rslora, scale in ((False, 4.0), (True, 8.0)):
        tuned = adapted(tiny_model("llama"), use_rslora=use_rslora)
        assert {adapter.scale for adapter in lora_adapters(tuned).values()} == {scale}


def test_the_same_generator_makes_the_same_adapter() -> None:
    one, two, other = (lora_parameters(adapted(tiny_model("gpt2"), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(*(next(iter(each.values())) for each in (one, other)))


def test_dropout_works_in_training_only() -> None:
    tuned = adapted(tiny_model("llama"), dropout=0.5)
    assert torch.equal(output(tuned, ids()), output(tuned, ids()))
    tuned.train()
    assert not torch.equal(output(tuned, ids()), output(tuned, ids()))


def test_default_targets_are_all_of_attention_and_no_more() -> None:
    parts = {"query", "key", "value", "output"}
    tuned = adapted(tiny_model("t5"))
    found = {tuple(name.rsplit(".", 2)[1:]) for name in lora_adapters(tuned)}
    assert found == {(block, part) for block in ("attention", "cross_attention") for part in parts}
    tuned = adapted(tiny_model("llama", tie_word_embeddings=False), targets="all-linear")
    found = {name.rpartition(".")[2] for name in lora_adapters(tuned)}
    assert found == parts | {"gate", "up", "down"}
    tuned = adapted(tiny_model("llama", tie_word_embeddings=False), targets=("head", "feed_forward.down"))
    assert set(lora_adapters(tuned)) == {
        "head",
        *(f"layers.{layer}.feed_forward.down" for layer in (0, 1)),
    }


def test_the_last_layers_alone_can_be_adapted() -> None:
    tuned = adapted(tiny_model("t5"), targets="all-linear", last_layers=1)
    assert {name.split(".")[:3:2][1] for name in lora_adapters(tuned)} == {"1"}
    assert {name.split(".")[0] for name in lora_adapters(tuned)} == {"encoder", "decoder"}
    every = adapted(tiny_model("t5"), targets="all-linear", last_layers=9)
    assert (
        lora_adapters(every).keys() == lora_adapters(adapted(tiny_model("t5"), targets="all-linear")).keys()
    )
    tuned = adapted(tiny_model("llama"), last_layers=1)
    seen = []
    tuned.layers[0].register_forward_hook(lambda *arguments: seen.append(arguments[-1].requires_grad))
    loss(tuned).backward()
    # What is below needs no backward pass.
    assert seen == [False]


def test_settings_that_cannot_be_are_told() -> None:
    with pytest.raises(
        UserError, match=r"targets: no matrix of the model is called 'q_proj' \(there are query"
    ):
        add_lora(tiny_model("llama"), LoraSettings(targets=("q_proj",)))
    with pytest.raises(UserError, match=r"has no matrices of attention to adapt \(there are head\)"):
        add_lora(tiny_model("rnn"), LoraSettings())
    with pytest.raises(UserError, match=r"has no matrices to adapt \(there are none\)"):
        add_lora(tiny_model("rnn", tie_word_embeddings=True), LoraSettings(targets="all-linear"))
    tuned = adapted(tiny_model("llama"))
    with pytest.raises(UserError, match="has an adapter 'default' already"):
        add_lora(tuned, LoraSettings())
    with pytest.raises(UserError, match=r"no adapter 'other' \(there are default\)"):
        select_adapter(tuned, "other")
    with pytest.raises(UserError, match="no adapter 'other'"):
        remove_lora(tuned, "other")
    select_adapter(tuned, None)
    with pytest.raises(UserError, match="no adapter works"):
        merge_lora(tuned)
    for wrong in ({"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": "most"}):
        with pytest.raises(ValidationError):
            LoraSettings(**wrong)


# Several adapters on one model.


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_rows_of_one_batch_go_through_adapters_of_their_own(model_type: str) -> None:
    base = tiny_model(model_type)
    names = ("es.v1", "train")
    model = copy.deepcopy(base)
    for seed, name in enumerate(names):
        adapted(model, name, seed)
    alone = {None: output(base, ids())}
    for seed, name in enumerate(names):
        alone[name] = output(adapted(copy.deepcopy(base), seed=seed), ids())
    rows = ["train", None, "es.v1"]
    select_adapter(model, rows)
    assert selected_adapter(model) is None
    mixed = output(model, ids())
    for row, name in enumerate(rows):
        assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(mixed[0], alone["es.v1"][0], rtol=1e-4, atol=1e-5)
    for name, scores in alone.items():
        select_adapter(model, name)
        assert_close(output(model, ids()), scores, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="chosen for 2 rows, and the batch has 3"):
        select_adapter(model, ["train", None])
        output(model, ids())


def test_adapters_for_different_matrices_live_side_by_side() -> None:
    base = tiny_model("llama")
    model = adapted(copy.deepcopy(base), "query", targets=("query",))
    adapted(model, "down", targets=("down",))
    assert selected_adapter(model) == "down"
    assert_close(output(model, ids()), output(adapted(copy.deepcopy(base), targets=("down",)), ids()))
    remove_lora(model, "down")
    assert lora_names(model) == ("query",) and selected_adapter(model) is None
    assert torch.equal(output(model, ids()), output(base, ids()))
    select_adapter(model, "query")
    remove_lora(model, "query")
    assert model.state_dict().keys() == base.state_dict().keys()


def test_a_copy_of_a_model_chooses_for_itself() -> None:
    model = adapted(tiny_model("llama"))
    scores = output(model, ids())
    other = copy.deepcopy(model)
    select_adapter(other, None)
    assert torch.equal(output(model, ids()), scores)
    assert not torch.allclose(output(other, ids()), scores, atol=1e-3)


def test_half_precision_keeps_its_type_and_trains_in_float32() -> None:
    base = tiny_model("llama").bfloat16()
    tuned = adapted(copy.deepcopy(base), trained=False)
    assert {weight.dtype for weight in lora_parameters(tuned).values()} == {torch.float32}
    assert torch.equal(output(tuned, ids()), output(base, ids()))
    train(tuned)
    assert output(tuned, ids()).dtype == torch.bfloat16
    merge_lora(tuned)
    remove_lora(tuned)
    assert {weight.dtype for weight in tuned.parameters()} == {torch.bfloat16}


# On a quantized base.


def spelled_out(small: LanguageModel, model_type: str) -> LanguageModel:
    """The float model that a quantized one stands for."""
    model = tiny_model(model_type)
    for name, layer in small.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedEmbedding):
            model.get_submodule(name).weight.copy_(layer.weight)
        elif isinstance(layer, QuantizedRecurrence):
            model.get_submodule(name).load_state_dict(layer.weights())
    return model


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_above_a_quantized_base_are_those_above_its_floats(model_type: str, kind: str) -> None:
    small = quantize_model(tiny_model(model_type), kind)
    floats = adapted(spelled_out(small, model_type))
    floats.train()
    tuned = adapted(copy.deepcopy(small))
    tuned.train()
    loss(tuned).backward()
    loss(floats).backward()
    wanted = {name: weight.grad for name, weight in lora_parameters(floats).items()}
    for name, weight in lora_parameters(tuned).items():
        assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-4 * float(wanted[name].abs().max()))
    with pytest.raises(AssertionError):
        assert_close(weight.grad, 1.01 * wanted[name], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_quantized_base_is_left_as_it_is_and_merges_into_floats(model_type: str, kind: str) -> None:
    small = quantize_model(tiny_model(model_type), kind)
    tuned = adapted(copy.deepcopy(small), trained=False)
    with torch.no_grad():
        assert torch.equal(output(tuned, ids()), output(small, ids()))
    train(tuned)
    with torch.no_grad():
        before = output(tuned, ids())
        merge_lora(tuned)
        unmerge_lora(tuned)
        assert torch.equal(output(tuned, ids()), before)
    wanted = output(adapted(spelled_out(small, model_type)), ids())
    merge_lora(tuned)
    remove_lora(tuned)
    assert_close(output(tuned, ids()), wanted, rtol=1e-4, atol=1e-4)
    assert tuned.config.quantization_config is None
    plain = tiny_model(model_type)
    assert save_model(tuned).keys() == save_model(plain).keys()
    assert {name: weight.dtype for name, weight in tuned.state_dict().items()} == {
        name: weight.dtype for name, weight in plain.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_no_float_copy_of_a_quantized_base_is_kept_for_the_gradient(kind: str) -> None:
    tuned = adapted(quantize_model(tiny_model("llama"), kind), targets="all-linear").train()
    shapes = {tuple(layer.weight.shape) for layer in tuned.modules() if isinstance(layer, QuantizedLinear)}
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(tuned)
    assert kept and not shapes & set(kept)
    # Negative control: above floats the matrices themselves are kept.
    tuned = adapted(tiny_model("llama"), targets="all-linear")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(tuned)
    assert {(shape[1], shape[0]) for shape in shapes} & set(kept) or shapes & set(kept)
