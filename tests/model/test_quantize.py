"""Quantization from outside: what the numbers must be, for every family, on disk, and where it must say no."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ids, output, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import LanguageModel, load_model, new_model, quantize_model, save_model
from yunque.model.checkpoint import parse_configuration
from yunque.model.compensation import compensated
from yunque.model.quantization_report import layer_errors, linear_ratio
from yunque.model.quantized_layers import (
    Int4Matrix,
    Int8Matrix,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedRecurrence,
    integer_product,
    plain_integer_product,
    quantize_groups,
)

KINDS = ("int8", "int4")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "falcon", "t5", "mt5", "transformer")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled_int8(weight_OI: Tensor) -> Int8Matrix:
    matrix = Int8Matrix(*weight_OI.shape)
    matrix.fill(weight_OI)
    return matrix


def filled_int4(weight_OI: Tensor, group_size: int = 64, moments_II: Tensor | None = None) -> Int4Matrix:
    matrix = Int4Matrix(*weight_OI.shape, group_size)
    matrix.fill(weight_OI, moments_II)
    return matrix


def saved(model: LanguageModel, folder: Path) -> Path:
    for name, content in save_model(model).items():
        (folder / name).write_bytes(content)
    return folder


# INT8


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_int8_rows_are_those_of_torch() -> None:
    weight_OI = numbers(7, 40) * torch.logspace(-4, 3, 7)[:, None]
    kept = filled_int8(weight_OI)
    theirs = torch.quantize_per_channel(
        weight_OI, (weight_OI.abs().amax(1) / 127).double(), torch.zeros(7), 0, torch.qint8
    )
    assert torch.equal(kept.values, theirs.int_repr())
    assert_close(kept.dense(), theirs.dequantize())


def test_no_int8_number_is_off_by_more_than_half_its_rows_scale() -> None:
    weight_OI = numbers(7, 40) * torch.logspace(-4, 3, 7)[:, None]
    bound_O1 = weight_OI.abs().amax(1, keepdim=True) / 127 * 0.50001

    def check(dense_OI: Tensor) -> None:
        assert ((dense_OI - weight_OI).abs() <= bound_O1).all()

    check(filled_int8(weight_OI).dense())
    # Negative control: one scale for the whole matrix ruins the small rows.
    scale = weight_OI.abs().max() / 127
    with pytest.raises(AssertionError):
        check((weight_OI / scale).round() * scale)


@pytest.mark.parametrize("inputs", [3, 64, 1040, 1041, 5000])
def test_products_of_int8_numbers_are_exact_on_every_path(inputs: int) -> None:
    generator = torch.Generator().manual_seed(inputs)
    x_TI = torch.randint(-127, 128, (5, inputs), generator=generator, dtype=torch.int8)
    values_OI = torch.randint(-127, 128, (33, inputs), generator=generator, dtype=torch.int8)
    # The largest sums that there can be.
    x_TI[0], values_OI[0], values_OI[1] = 127, 127, -127
    right = torch.from_numpy(x_TI.numpy().astype(np.int64) @ values_OI.numpy().astype(np.int64).T).int()
    assert torch.equal(integer_product(x_TI, values_OI), right)
    assert torch.equal(plain_integer_product(x_TI, values_OI), right)
    if inputs == 5000:
        # Negative control: one float32 sum of so many is not exact.
        odd = torch.full((1, inputs), 127, dtype=torch.int8)
        odd[0, 0] = 126
        exact = int((odd.long() * 127).sum())
        assert plain_integer_product(odd, torch.full_like(odd, 127)).item() == exact
        assert int(np.float32(exact)) != exact


def test_int8_products_are_those_written_out() -> None:
    weight_OI, x_BTI = numbers(12, 40), numbers(2, 3, 40, seed=1) * 5
    x, weight = x_BTI.numpy().reshape(6, 40), weight_OI.numpy()
    steps, scales = np.abs(x).max(1, keepdims=True) / 127, np.abs(weight).max(1) / 127
    wanted = (np.rint(x / steps) @ np.rint(weight / scales[:, None]).T) * steps * scales
    given = filled_int8(weight_OI).multiply(x_BTI)
    assert_close(given, torch.from_numpy(wanted).view(2, 3, 12).float())
    assert_close(given, x_BTI @ weight_OI.t(), rtol=0, atol=1.0)
    # Negative control: what is multiplied was rounded too.
    with pytest.raises(AssertionError):
        assert_close(given, x_BTI @ filled_int8(weight_OI).dense().t())


def test_a_token_does_not_change_the_scale_of_another() -> None:
    matrix, quiet = filled_int8(numbers(8, 32)), numbers(1, 32, seed=1)
    together = torch.cat((quiet, 1e4 * numbers(1, 32, seed=2)))
    assert torch.equal(matrix.multiply(together)[:1], matrix.multiply(quiet))


def test_a_row_of_zeros_stays_zeros_and_nan_is_not_hidden() -> None:
    weight_OI = numbers(4, 64)
    weight_OI[2] = 0
    for matrix in (filled_int8(weight_OI), filled_int4(weight_OI)):
        assert torch.equal(matrix.dense()[2], torch.zeros(64))
        assert torch.equal(matrix.multiply(torch.zeros(1, 64)), torch.zeros(1, 4))
        x = torch.ones(2, 64)
        x[0, 5] = float("nan")
        product = matrix.multiply(x)
        assert product[0].isnan().all() and product[1].isfinite().all()
        assert matrix.multiply(torch.empty(0, 64)).shape == (0, 4)


# INT4


def test_int4_numbers_are_the_nearest_of_sixteen_steps() -> None:
    weight_OGW = numbers(6, 3, 64)
    steps, scales, centers = quantize_groups(weight_OGW)
    assert steps.min() == -8 and steps.max() == 7 and scales.dtype == centers.dtype == torch.bfloat16
    scale, center = scales.float().numpy()[..., None], centers.float().numpy()[..., None]
    lattice = center + np.arange(-8, 8) * scale  # [O, G, 16]
    nearest = np.abs(weight_OGW.numpy()[..., None] - lattice[:, :, None]).argmin(-1) - 8
    assert (steps.numpy() == nearest).mean() > 0.999  # halves may go either way


def test_ends_that_are_searched_for_give_less_error_than_those_of_the_group() -> None:
    weight_OGW = numbers(64, 4, 64)
    steps, scales, centers = quantize_groups(weight_OGW)
    error = (steps * scales.float()[..., None] + centers.float()[..., None] - weight_OGW).square().sum()
    least, most = weight_OGW.amin(-1, keepdim=True), weight_OGW.amax(-1, keepdim=True)
    scale = (most - least) / 15
    plain = (((weight_OGW - least) / scale).round() * scale + least - weight_OGW).square().sum()
    assert error < 0.95 * plain


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("columns", [2, 7, 32, 48, 64, 100, 129, 192, 576])
def test_int4_holds_any_width_and_multiplies_by_what_it_holds(columns: int, group_size: int) -> None:
    weight_OI = numbers(10, columns)
    matrix = filled_int4(weight_OI, group_size)
    assert matrix.dense().shape == (10, columns)
    assert matrix.width <= group_size and matrix.width % 2 == 0
    assert (matrix.dense() - weight_OI).abs().max() < 0.45
    x = numbers(2, 3, columns, seed=1)
    # What is multiplied is rounded to int8, each token with a scale of its own.
    steps = x.abs().amax(-1, keepdim=True) / 127
    rounded = (x / steps).round() * steps
    assert_close(matrix.multiply(x), rounded @ matrix.dense().t(), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):  # negative control: as it came
        assert_close(matrix.multiply(x), x @ matrix.dense().t(), rtol=1e-4, atol=1e-4)
    # Negative control: low and high halves of the bytes, the other way round.
    matrix.packed = (matrix.packed << 4) | (matrix.packed >> 4)
    with pytest.raises(AssertionError):
        assert_close(matrix.dense(), weight_OI, rtol=0, atol=0.45)


def test_rounding_for_what_a_layer_reads_keeps_what_it_computes() -> None:
    mixed = numbers(64, 64, seed=3)
    x_TI, fresh_TI = numbers(4000, 64, seed=1) @ mixed, numbers(500, 64, seed=2) @ mixed
    weight_OI = numbers(32, 64)

    def error(matrix: Int4Matrix) -> float:
        wanted = fresh_TI @ weight_OI.t()
        return float((matrix.multiply(fresh_TI) - wanted).norm() / wanted.norm())

    plain, kept = filled_int4(weight_OI), filled_int4(weight_OI, moments_II=x_TI.t() @ x_TI)
    assert error(kept) < 0.75 * error(plain)
    # Each number on its own is further away: that is the price.
    assert (kept.dense() - weight_OI).norm() > (plain.dense() - weight_OI).norm()
    # Negative control: moments of other inputs do not help.
    other = numbers(4000, 64, seed=9) @ numbers(64, 64, seed=10)
    assert error(filled_int4(weight_OI, moments_II=other.t() @ other)) > 0.75 * error(plain)


def test_moments_of_inputs_that_are_not_numbers_are_passed_over() -> None:
    weight_OI = numbers(4, 64)
    for moments_II in (torch.full((64, 64), float("nan")), torch.zeros(64, 64)):
        assert torch.equal(
            filled_int4(weight_OI, moments_II=moments_II).dense(), filled_int4(weight_OI).dense()
        )
    assert compensated(weight_OI, torch.full((64, 64), float("nan")), 64, quantize_groups) is None


# Whole models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_matrix_of_every_family_is_found(model_type: str, kind: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    small = quantize_model(model, kind)
    assert not [name for name, layer in small.named_modules() if isinstance(layer, nn.Linear)]
    assert isinstance(small.embedding, QuantizedEmbedding)
    assert small.config.quantization_config.kind == kind
    assert model.config.quantization_config is None
    written, given = output(model, ids()), output(small, ids())
    moved = float((given - written).norm() / written.norm())
    assert 0 < moved < (0.1 if kind == "int8" else 0.6)
    loaded = load_model(saved(small, tmp_path))
    assert type(loaded) is type(model)
    assert torch.equal(output(loaded, ids()), given)
    first, again = save_model(small), save_model(loaded)
    assert again["model.safetensors"] == first["model.safetensors"]
    assert json.loads(again["config.json"]) == json.loads(first["config.json"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_computes_what_its_weights_say(kind: str) -> None:
    model = tiny_model("qwen2")  # it has biases
    small, spelled_out = quantize_model(model, kind), tiny_model("qwen2")
    for name, layer in small.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedEmbedding):
            spelled_out.get_submodule(name).weight.copy_(layer.weight)
    # What is multiplied is rounded too.
    tolerance = {"rtol": 0.0, "atol": 0.25}
    assert_close(output(small, ids()), output(spelled_out, ids()), **tolerance)
    with pytest.raises(AssertionError):  # negative control: without the biases
        for name, bias in small.named_parameters():
            if name.endswith("bias"):
                bias.zero_()
        assert_close(output(small, ids()), output(spelled_out, ids()), **tolerance)


def test_weights_take_a_quarter_and_an_eighth_of_fp32() -> None:
    model = tiny_model("llama", hidden_size=256, head_dim=64, intermediate_size=704)
    for kind, size, most in (("int8", 64, 0.27), ("int4", 32, 0.16), ("int4", 64, 0.16), ("int4", 128, 0.16)):
        small = quantize_model(model, kind, size)
        ratio = linear_ratio(layer_errors(model, small, lambda net: output(net, ids())))
        assert ratio is not None and ratio < most
    halves = quantize_model(model, "bfloat16")
    ratio = linear_ratio(layer_errors(model, halves, lambda net: output(net, ids())))
    assert ratio == 0.5
    with pytest.raises(AssertionError):  # negative control
        assert ratio < 0.27


def test_tables_that_are_shared_stay_shared_and_narrow_ones_stay_floats() -> None:
    small = quantize_model(tiny_model("t5", tie_word_embeddings=True), "int4")
    narrow = [name for name, weight in small.named_parameters() if weight.dim() == 2]
    assert sorted(narrow) == ["decoder.positions.weight", "encoder.positions.weight"]
    shared = nn.Linear(64, 64)
    twice = nn.ModuleDict({"one": shared, "other": shared})
    from yunque.model.configuration import Quantization
    from yunque.model.quantize import replace_by_quantized

    replace_by_quantized(twice, Quantization(kind="int8"))
    assert isinstance(twice["one"], QuantizedLinear) and twice["one"] is twice["other"]


def test_calibration_is_on_the_model_as_it_is_quantized_so_far() -> None:
    model, seen = tiny_model("llama"), []
    small = quantize_model(model, "int4", 32, lambda net: seen.append(output(net, ids(8, 30))))
    assert len(seen) == 1
    plain = quantize_model(model, "int4", 32)
    assert not torch.equal(small.layers[0].attention.query.weight, plain.layers[0].attention.query.weight)
    assert torch.equal(small.embedding.weight, plain.embedding.weight)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_is_a_plain_checkpoint_that_transformers_opens(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_model("llama")
    halves = quantize_model(model, kind)
    saved(halves, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.get("dtype") or config.get("torch_dtype")) == kind
    assert "quantization_config" not in config
    dtype = getattr(torch, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == dtype
    assert load_model(tmp_path).embedding.weight.dtype == dtype
    wide = load_model(tmp_path, torch.float32)
    assert torch.equal(wide.embedding.weight, model.embedding.weight.to(dtype).float())
    assert_close(output(wide, ids()), theirs.float()(ids()).logits)
    with pytest.raises(AssertionError):  # negative control: it is not the model it was made of
        assert_close(output(model, ids()), theirs(ids()).logits)


def test_a_half_precision_model_is_quantized_from_what_it_holds(tmp_path: Path) -> None:
    halves = quantize_model(tiny_model("llama"), "bfloat16")
    small = quantize_model(halves, "int8")
    assert small.norm.weight.dtype == torch.float32
    assert torch.equal(small.embedding.weight, quantize_model(halves.float(), "int8").embedding.weight)
    # What is asked for when it is loaded does not touch scales.
    loaded = load_model(saved(small, tmp_path), torch.float16)
    assert torch.equal(output(loaded, ids()), output(small, ids()))


# The report


def test_the_report_has_the_errors_that_there_are() -> None:
    model = tiny_model("llama")
    small = quantize_model(model, "int4")
    errors = {error.name: error for error in layer_errors(model, small, lambda net: output(net, ids()))}
    assert len(errors) == len([layer for layer in model.modules() if isinstance(layer, nn.Linear)]) + 1
    name = "layers.1.feed_forward.down"
    inputs: list[Tensor] = []
    layer, changed = model.get_submodule(name), small.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    output(model, ids())
    handle.remove()
    was, now = layer(inputs[0]), changed(inputs[0])
    error = errors[name]
    assert error.output_error == pytest.approx(float((now - was).norm() / was.norm()), rel=1e-4)
    assert error.largest_output_error == pytest.approx(float((now - was).abs().max()), rel=1e-4)
    moved = changed.weight - layer.weight
    assert error.weight_error == pytest.approx(float(moved.norm() / layer.weight.norm()), rel=1e-4)
    assert error.largest_weight_error == pytest.approx(float(moved.abs().max()), rel=1e-4)
    assert (error.rows, error.columns, error.bytes_before) == (32, 48, 4 * 32 * 48)
    assert error.bytes_after == 32 * 48 // 2 + 32 * 2 * 2
    # Negative control: a layer that was left out would have no error.
    assert layer_errors(model, model, lambda net: output(net, ids())) == []


# Mistakes and damage


def test_what_cannot_be_quantized_is_told_in_one_sentence() -> None:
    model = tiny_model("llama")
    for kind in KINDS:
        with pytest.raises(UserError, match="quantized already"):
            quantize_model(quantize_model(model, kind), "int8")
    with pytest.raises(UserError, match="'int3' is no kind"):
        quantize_model(model, "int3")
    with pytest.raises(UserError, match="a group of 48 weights: int4 has groups of 32, 64, 128"):
        quantize_model(model, "int4", 48)
    model.layers[0].attention.query.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"attention\.query\.weight .* too large for float16: take bfloat16"):
        quantize_model(model, "float16")
    quantize_model(model, "bfloat16")
    model.layers[0].attention.query.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"attention\.query\.weight are not all numbers"):
        quantize_model(model, "int4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_numbers_are_told(kind: str, value: float, tmp_path: Path) -> None:
    saved(quantize_model(tiny_model("llama"), kind), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layers.1.attention.key.matrix.scales"][3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.1\.attention\.key\.matrix\.scales is damaged"):
        load_model(tmp_path)


def _config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 32}, r"the tensor .* is \[.*\], and by config\.json it is"),
        ({"group_size": 48}, "quantization_config.group_size"),
        ({"group_size": None}, "int4 has a group_size"),
        ({"kind": "int8", "group_size": None}, "missing|not part of it"),
        ({"kind": "int2"}, "quantization_config.kind"),
        ({"quant_method": "gptq"}, "quantized by 'gptq'"),
        ({"quant_method": "yunque_int8"}, "quantization_config|quantized by"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_weights_is_told(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    saved(quantize_model(tiny_model("llama", hidden_size=128), "int4", 64), tmp_path)
    _config(tmp_path, **changes)
    with pytest.raises(UserError, match=sentence):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda tensor: tensor[:, :-1].contiguous(), r"is \[\d+, \d+\], and by config\.json"),
        (lambda tensor: tensor.to(torch.int64), "holds int64 numbers"),
        (lambda tensor: tensor.float(), "holds float32 numbers"),
    ],
)
def test_weights_of_another_shape_or_kind_are_told(change, sentence: str, tmp_path: Path) -> None:
    saved(quantize_model(tiny_model("llama"), "int4"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "layers.0.feed_forward.up.matrix.packed"
    tensors[name] = change(tensors[name])
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_model(tmp_path)


def test_a_group_of_one_number_many_times_is_that_number() -> None:
    weight_OI = torch.full((2, 64), 0.5)
    assert torch.equal(filled_int4(weight_OI).dense(), weight_OI)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("model_type", ["rnn", "rnn-seq2seq"])
def test_the_matrices_of_a_recurrence_are_quantized_too(
    model_type: str, cell: str, kind: str, tmp_path: Path
) -> None:
    shape = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "cell": cell}
    fields = {"model_type": model_type, **shape}
    model = new_model(parse_configuration(fields, "rnn"), torch.Generator().manual_seed(0)).eval()
    small = quantize_model(model, kind)
    assert not [name for name, weight in small.named_parameters() if weight.dim() == 2]
    floats = quantize_model(model, kind)
    for name, layer in small.named_modules():
        if isinstance(layer, QuantizedRecurrence):
            parent, _, last = name.rpartition(".")
            setattr(floats.get_submodule(parent), last, layer.dense())
    given = output(small, ids())
    assert_close(given, output(floats, ids()))
    assert not torch.allclose(given, output(model, ids()), rtol=1e-3)  # negative control
    assert torch.equal(output(load_model(saved(small, tmp_path)), ids()), given)
    errors = layer_errors(model, small, lambda net: output(net, ids()))
    stacks = 1 if model_type == "rnn" else 2
    inner = [error for error in errors if ".cells.weight_" in error.name]
    assert len(inner) == 4 * stacks and all(0 < (error.output_error or 0) < 0.5 for error in inner)
    ratio = linear_ratio(errors)
    assert ratio is not None and ratio < (0.27 if kind == "int8" else 0.16)
