"""The plan against the model itself, and against what torch counts while it runs."""

import pytest
import torch
from shapes import GPT2, LLAMA, T5
from torch.utils.flop_counter import FlopCounterMode

from yunque.errors import UserError
from yunque.model import EncoderDecoder, ModelConfig, plan_model, quantize_model, save_model
from yunque.model.checkpoint import parse_configuration
from yunque.model.family import new_model


def shape(fields: dict[str, object], **changed: object) -> ModelConfig:
    return parse_configuration({**fields, **changed}, "test")


def numbers_of(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("fields", [LLAMA, {**LLAMA, "tie_word_embeddings": True}, GPT2, T5])
def test_parameters_are_those_of_the_model(fields: dict[str, object]) -> None:
    config = shape(fields)
    assert plan_model(config).parameters == numbers_of(new_model(config))
    assert plan_model(config).parameters != numbers_of(new_model(shape(fields, vocab_size=513)))


@pytest.mark.parametrize("fields", [LLAMA, GPT2, T5])
def test_flops_are_those_that_torch_counts(fields: dict[str, object]) -> None:
    config = shape(fields)
    model, length = new_model(config), config.context or 1024
    ids_1T = torch.zeros(1, length, dtype=torch.int64)
    both = isinstance(model, EncoderDecoder)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
        torch.no_grad(),
    ):
        model(ids_1T, ids_1T) if both else model(ids_1T)
    counted = counter.get_total_flops() / (2 * length if both else length)
    assert plan_model(config).forward_flops_per_token == pytest.approx(counted, abs=1)
    with pytest.raises(AssertionError):
        assert plan_model(shape(fields, vocab_size=513)).forward_flops_per_token == counted


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_weight_bytes_are_those_on_disk(kind: str | None) -> None:
    model = new_model(shape(LLAMA), torch.Generator().manual_seed(0)).eval()
    if kind:
        model = quantize_model(model, kind)
    on_disk = len(save_model(model)["model.safetensors"])
    planned = plan_model(model.config).weight_bytes
    assert planned <= on_disk <= planned + 16_000  # the file's header comes on top


def test_more_layers_than_one_would_wait_for_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"5,000 layers .* 1,000 are the most"):
        plan_model(shape(LLAMA, num_hidden_layers=5_000))


def test_sizes_beyond_a_tensor_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="beyond what a tensor can have"):
        plan_model(
            shape(
                LLAMA,
                vocab_size=2**31 - 1,
                hidden_size=2**31 - 2**16,
                intermediate_size=2**31 - 1,
                num_attention_heads=2**15,
                num_key_value_heads=2**15,
            )
        )
