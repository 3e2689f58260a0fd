"""Layers below the first adapted one keep nothing for the backward pass, and the frozen base is not copied."""

import pytest
import torch
from torch import Tensor

from yunque.model import Llama, LlamaConfig
from yunque.model.lora import LoraSettings, add_lora


def model(layers: int) -> Llama:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    return Llama(config, torch.Generator().manual_seed(0))


def kept_bytes(net: Llama) -> int:
    """What a forward pass keeps for the backward pass, beside the weights themselves."""
    weights = {weight.untyped_storage().data_ptr() for weight in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(torch.arange(24).view(2, 12)).logsumexp(-1).mean()
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_frozen_layers_at_the_bottom_keep_nothing_for_the_backward_pass(targets) -> None:
    def kept(layers: int, last: int | None) -> int:
        net = model(layers)
        add_lora(net, LoraSettings(targets=targets, last_layers=last), torch.Generator().manual_seed(0))
        return kept_bytes(net)

    assert kept(6, 2) == kept(3, 2) == kept(2, 2)
    # Negative control: where all layers are adapted, more of them keep more.
    assert kept(6, None) > 2 * kept(2, None)


def test_no_gradient_enters_the_embedding_or_the_layers_below() -> None:
    net = model(4)
    add_lora(net, LoraSettings(last_layers=1), torch.Generator().manual_seed(0))
    seen: list[bool] = []
    for layer in net.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.requires_grad))
    net(torch.arange(12)[None]).logsumexp(-1).mean().backward()
    assert seen == [False, False, False, True]
    trained = {name for name, weight in net.named_parameters() if weight.grad is not None}
    assert trained and all(name.startswith("layers.3.attention.") for name in trained)


def test_an_adapter_keeps_less_than_full_tuning_does() -> None:
    full, adapted = model(3), model(3)
    add_lora(adapted, LoraSettings(targets=("query", "value")), torch.Generator().manual_seed(0))
    assert kept_bytes(adapted) < kept_bytes(full)


def test_the_frozen_base_is_used_where_it_lies() -> None:
    net = model(2)
    before = {name: weight.data_ptr() for name, weight in net.named_parameters()}
    add_lora(net, LoraSettings(targets="all-linear"), torch.Generator().manual_seed(0))
    after = {name.replace(".base.", "."): weight.data_ptr() for name, weight in net.named_parameters()}
    assert before.items() <= after.items()
