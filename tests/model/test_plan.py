"""The plan against what torch counts while the model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from yunque.model import Llama, LlamaConfig, plan_model, quantize_model, save_model
from yunque.train.corpus import Windows
from yunque.train.loss import next_token_loss

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
)


def model() -> Llama:
    return Llama(CONFIG, torch.Generator().manual_seed(0))


def test_parameters_are_those_of_the_model() -> None:
    assert plan_model(CONFIG).parameters == sum(weight.numel() for weight in model().parameters())


def test_flops_are_those_that_torch_counts() -> None:
    net = model()
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
    ):
        net(torch.zeros(2, 64, dtype=torch.int64))
    assert counter.get_total_flops() == plan_model(CONFIG).forward_flops_per_token * 2 * 64


def test_activations_are_about_what_autograd_keeps() -> None:
    net, kept = model(), {}
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    ids = torch.zeros(4, 64, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = next_token_loss(net, Windows(ids, ids, torch.ones_like(ids)))
    measured = sum(size for size, _ in kept.values())
    del loss
    assert plan_model(CONFIG, batch_tokens=256).activation_bytes == pytest.approx(measured, rel=0.2)


def test_weight_bytes_are_those_on_disk() -> None:
    net = model().eval()
    for kind in (net, quantize_model(net)):
        on_disk = len(save_model(kind, kind.config)["model.safetensors"])
        planned = plan_model(kind.config).weight_bytes
        assert planned <= on_disk <= planned + 16_000  # the file's header comes on top
