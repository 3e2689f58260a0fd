"""Memory that is told beforehand, against the memory that torch takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shapes import GPT2, LLAMA, T5
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model import CausalModel, Encoder, EncoderDecoder, LanguageModel, ModelConfig, quantize_model
from yunque.model.checkpoint import parse_configuration
from yunque.model.family import new_model
from yunque.model.memory import (
    OPTIMIZERS,
    Training,
    changes_that_help,
    plan_holding,
    plan_training,
)

QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 32, "num_hidden_layers": 4}
MULTI_HEAD = {**LLAMA, "num_key_value_heads": 4, "vocab_size": 4000, "tie_word_embeddings": True}
WINDOWED = {**LLAMA, "model_type": "mistral", "sliding_window": 8}
UNTIED_T5 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

FALCON = {
    "model_type": "falcon",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
}
BERT = {**FALCON, "model_type": "bert", "intermediate_size": 128}
TRANSFORMER = {
    "model_type": "transformer",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
}
RNN = {"model_type": "rnn", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2}

# Family, rows, positions, dtype of products, several documents or padding in a row.
POINTS: list[tuple[dict[str, Any], int, int, str, bool]] = [
    (LLAMA, 4, 64, "float32", False),
    (LLAMA, 4, 64, "float32", True),
    (LLAMA, 1, 17, "bfloat16", True),
    (LLAMA, 3, 48, "float16", False),
    (MULTI_HEAD, 2, 64, "float32", False),
    (MULTI_HEAD, 8, 8, "bfloat16", False),
    (WINDOWED, 2, 40, "float32", False),
    (QWEN3, 2, 64, "float32", True),
    (QWEN3, 5, 20, "bfloat16", False),
    (GPT2, 4, 32, "float32", False),
    (GPT2, 2, 16, "bfloat16", True),
    (T5, 3, 24, "float32", True),
    (T5, 2, 40, "bfloat16", False),
    (UNTIED_T5, 2, 33, "float32", False),
    (UNTIED_T5, 4, 16, "bfloat16", True),
    (FALCON, 4, 32, "float32", False),
    ({**FALCON, "alibi": True}, 2, 24, "bfloat16", True),
    (BERT, 4, 32, "float32", True),
    (TRANSFORMER, 4, 32, "float32", False),
    ({**RNN, "cell": "gru"}, 4, 32, "float32", False),
]


def shape(fields: dict[str, Any], **changed: Any) -> ModelConfig:
    return parse_configuration({**fields, **changed}, "test")


def real_loss(model: LanguageModel, batch: int, length: int, masked: bool) -> Tensor:
    ids = torch.randint(0, model.config.vocab_size, (batch, length))
    marks = torch.ones_like(ids)
    marks[:, length // 2 :] = 0
    if isinstance(model, Encoder):
        vectors = model.embed(ids, marks if masked else None)
        return F.cross_entropy(vectors @ vectors.T, torch.arange(batch))
    if isinstance(model, EncoderDecoder):
        logits = model(ids, ids, marks if masked else None)
    else:
        assert isinstance(model, CausalModel)
        logits = model.logits(model.hidden(ids, segment_ids_BT=marks if masked else None))
    return F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())


def kept_bytes(model: LanguageModel, batch: int, length: int, dtype: str, masked: bool) -> int:
    """What autograd keeps of a real forward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    cast = torch.bfloat16 if dtype == "float32" else getattr(torch, dtype)
    with (
        torch.autocast("cpu", cast, enabled=dtype != "float32"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = real_loss(model, batch, length, masked)
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize(("fields", "batch", "length", "dtype", "masked"), POINTS)
def test_activations_are_what_autograd_keeps(
    fields: dict[str, Any], batch: int, length: int, dtype: str, masked: bool
) -> None:
    config = shape(fields)
    planned = plan_training(config, Training(batch, length, dtype=dtype, masked=masked)).activation_bytes

    def measured(rows: int) -> int:
        return kept_bytes(new_model(config), rows, length, dtype, masked)

    # 10 % is what is promised; it is some bytes.
    assert planned == pytest.approx(measured(batch), rel=0.001)
    with pytest.raises(AssertionError):
        assert planned == pytest.approx(measured(batch + 1), rel=0.001)


def test_what_an_lstm_keeps_without_telling_is_told_within_some_percent() -> None:
    config = shape(RNN)
    planned = plan_training(config, Training(4, 32, masked=False)).activation_bytes
    measured = kept_bytes(new_model(config), 4, 32, "float32", False)
    assert planned == pytest.approx(measured, rel=0.1)
    assert planned != pytest.approx(kept_bytes(new_model(config), 5, 32, "float32", False), rel=0.1)


def test_a_model_without_matrices_of_layers_takes_no_lora() -> None:
    with pytest.raises(UserError, match="rnn has no matrices"):
        plan_training(shape(RNN), Training(4, 32, "lora"))


class LowRank(nn.Module):
    """LoRA as in the paper, on a matrix that does not learn."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def with_lora(model: LanguageModel, rank: int) -> LanguageModel:
    model.requires_grad_(False)
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear) and ".layers." in f".{name}":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LowRank(part, rank))
    return model


@pytest.mark.parametrize("fields", [LLAMA, GPT2, T5])
def test_lora_is_counted_as_it_is(fields: dict[str, Any]) -> None:
    config = shape(fields)
    model = with_lora(new_model(config), 4)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    planned = plan_training(config, Training(2, 32, "lora", rank=4, masked=False))
    assert planned.trained_parameters == sum(weight.numel() for weight in learned)
    assert planned.gradient_bytes == sum(weight.nbytes for weight in learned)
    assert planned.weight_bytes == sum(weight.nbytes for weight in model.parameters())
    # LoRA's own weights are kept for the backward pass, as all weights are: they are no activations.
    assert planned.activation_bytes == pytest.approx(kept_bytes(model, 2, 32, "float32", False), rel=0.001)
    assert planned.activation_bytes < kept_bytes(new_model(config), 2, 32, "float32", False)
    wider = with_lora(new_model(config), 5)
    assert planned.gradient_bytes < sum(
        weight.nbytes for weight in wider.parameters() if weight.requires_grad
    )


@pytest.mark.parametrize(
    ("fields", "name"), [*((LLAMA, name) for name in OPTIMIZERS), (GPT2, "adamw"), (T5, "adafactor")]
)
def test_weights_gradients_and_optimizer_are_exact_to_the_byte(fields: dict[str, Any], name: str) -> None:
    config = shape(fields)
    model = new_model(config, torch.Generator().manual_seed(0))
    weights = list(model.parameters())
    made: torch.optim.Optimizer = {
        "adamw": lambda: torch.optim.AdamW(weights, fused=True),
        "momentum": lambda: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
        "sgd": lambda: torch.optim.SGD(weights, lr=0.1),
        "adafactor": lambda: torch.optim.Adafactor(weights),
    }[name]()
    real_loss(model, 2, 8, masked=False).backward()
    made.step()
    state = [part for one in made.state.values() for part in one.values() if isinstance(part, Tensor)]
    planned = plan_training(config, Training(2, 8, optimizer=name))
    assert planned.optimizer_bytes == sum(part.nbytes for part in state)
    assert planned.weight_bytes == sum(weight.nbytes for weight in weights)
    assert planned.gradient_bytes == sum(weight.grad.nbytes for weight in weights if weight.grad is not None)
    other = plan_training(config, Training(2, 8, optimizer="sgd" if name != "sgd" else "adamw"))
    assert other.optimizer_bytes != planned.optimizer_bytes


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        (LLAMA, "float32"),
        (LLAMA, "float16"),
        (LLAMA, "int8"),
        (LLAMA, "int4"),
        (T5, "int4"),
        (GPT2, "bfloat16"),
        (GPT2, "int8"),
    ],
)
def test_bytes_to_hold_a_model_are_exact(fields: dict[str, Any], number: str) -> None:
    config = shape(fields)
    model = new_model(config, torch.Generator().manual_seed(0)).eval()
    if number != "float32":
        model = quantize_model(model, number)
    held = {part.data_ptr(): part.nbytes for part in (*model.parameters(), *model.buffers())}
    assert plan_holding(config, number).weight_bytes == sum(held.values())
    assert plan_holding(shape(fields, vocab_size=513), number).weight_bytes != sum(held.values())


def test_a_cache_has_a_key_and_a_value_for_each_layer_and_shared_head() -> None:
    cache = plan_holding(shape(LLAMA), "float32").cache
    assert cache is not None
    assert cache.token_bytes == 2 * 5 * 2 * 16 * 4
    assert (cache.fixed_bytes, cache.source_token_bytes) == (0, 0)
    assert cache.total(3, 10) == 30 * cache.token_bytes


def test_the_cache_of_an_encoder_decoder_holds_the_source_too() -> None:
    cache = plan_holding(shape(T5), "bfloat16").cache
    assert cache is not None
    assert cache.token_bytes == cache.source_token_bytes == 2 * 5 * 4 * 8 * 2


def test_recomputed_layers_keep_less_and_the_rest_is_the_same() -> None:
    config = shape(LLAMA)
    plain, less = (
        plan_training(config, Training(4, 64, masked=False, recompute=recompute))
        for recompute in (False, True)
    )
    # A layer keeps its input: 4 rows of 64 positions, 64 numbers each.
    top = plan_training(shape(LLAMA, num_hidden_layers=1), Training(4, 64, masked=False, recompute=True))
    assert less.activation_bytes - top.activation_bytes == 4 * (4 * 64 * 64 * 4)
    assert less.activation_bytes < plain.activation_bytes
    assert (less.weight_bytes, less.optimizer_bytes) == (plain.weight_bytes, plain.optimizer_bytes)


def test_layers_left_out_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config, training = shape(LLAMA, num_hidden_layers=9), Training(4, 64)
    short = plan_training(config, training)
    monkeypatch.setattr("yunque.model.simulation._shorten", lambda stack: 0)  # noqa: ARG005
    assert plan_training(config, training) == short


def test_a_tenth_of_a_million_million_million_parameters_takes_no_memory() -> None:
    huge = shape(
        LLAMA, hidden_size=2**20, intermediate_size=2**22, num_attention_heads=1024, num_hidden_layers=64
    )
    assert plan_training(huge, Training(1, 64)).parameters > 10**12


def test_the_rule_of_the_classroom_is_24_bytes_a_parameter() -> None:
    planned = plan_training(shape(GPT2), Training(2, 8))
    assert planned.classroom_bytes == 24 * planned.parameters


def test_what_helps_is_told_and_the_batch_is_the_largest_that_fits() -> None:
    config, training = shape(GPT2), Training(24, 32)
    available = plan_training(config, Training(20, 32)).peak_bytes
    changes = changes_that_help(config, training, available)
    batch = next(change.memory for change in changes if change.what.startswith("batch"))
    assert batch.peak_bytes <= available
    assert 18 <= batch.training.batch_size <= 20
    asked = plan_training(config, training).peak_bytes
    assert all(change.memory.peak_bytes < asked for change in changes)
    assert {"LoRA", "QLoRA"} < {change.what for change in changes}
