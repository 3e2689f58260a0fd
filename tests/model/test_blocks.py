"""The blocks against oracles that share no code with them."""

import math

import pytest
import torch
from torch.testing import assert_close

from yunque.model import Llama, LlamaConfig
from yunque.model.attention import Attention, Pass
from yunque.model.blocks import RMSNorm
from yunque.model.positions import Rope, rotary_angles

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def config(**changes) -> LlamaConfig:
    return LlamaConfig(**{**SHAPE, **changes})


def model(**changes) -> Llama:
    made = Llama(config(**changes), torch.Generator().manual_seed(1)).eval().requires_grad_(False)
    # Larger than fresh weights, so that a fault in a block is not hidden in the last digits.
    for name, weight in made.named_parameters():
        if weight.dim() == 2:
            weight.mul_(5)
        assert torch.isfinite(weight).all(), name
    return made


def ids(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


def naive_attention(block: Attention, x: torch.Tensor, angles) -> torch.Tensor:
    """One position, one head at a time, in float64, with a written-out softmax."""
    x = x.double()
    length, heads, size = x.shape[1], block.num_heads, block.head_dim

    def turned(vector: torch.Tensor, position: int) -> torch.Tensor:
        cos, sin = (part[0, position].double() for part in angles)
        pairs = torch.complex(vector[: size // 2], vector[size // 2 :]) * torch.complex(cos, sin)
        return torch.cat((pairs.real, pairs.imag))

    rows = []
    for t in range(length):
        mixed = []
        for head in range(heads):
            shared = head // (heads // block.num_key_value_heads)
            part, shared_part = (
                slice(head * size, (head + 1) * size),
                slice(shared * size, (shared + 1) * size),
            )
            q = turned(block.query.weight.double()[part] @ x[0, t], t)
            scores, values = [], []
            for s in range(t + 1):
                k = turned(block.key.weight.double()[shared_part] @ x[0, s], s)
                scores.append(math.exp(float(q @ k) / math.sqrt(size)))
                values.append(block.value.weight.double()[shared_part] @ x[0, s])
            total = sum(scores)
            mixed.append(sum(score / total * value for score, value in zip(scores, values, strict=True)))
        rows.append(block.output.weight.double() @ torch.cat(mixed))
    return torch.stack(rows)[None]


def test_attention_equals_a_written_out_softmax() -> None:
    block = model().layers[0].attention
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(3))
    positions = torch.arange(7)[None]
    angles = rotary_angles(positions, Rope(), 8, 64)
    theirs = naive_attention(block, x, angles)
    assert_close(block(x, Pass(positions, 0, angles=angles)).double(), theirs, rtol=1e-4, atol=1e-5)
    # Negative control: the oracle notices angles that are off by one position.
    with pytest.raises(AssertionError):
        shifted = (angles[0].roll(1, 1), angles[1].roll(1, 1))
        assert_close(block(x, Pass(positions, 0, angles=shifted)).double(), theirs, rtol=1e-4, atol=1e-5)


def test_norm_gives_a_root_mean_square_of_its_gain() -> None:
    norm = RMSNorm(16, 1e-6)
    x = torch.randn(3, 16) * 40
    assert_close(norm(x).pow(2).mean(-1).sqrt(), torch.ones(3), rtol=1e-4, atol=0)
    assert_close(norm(x) * x.pow(2).mean(-1, keepdim=True).sqrt(), x, rtol=1e-4, atol=1e-4)


def test_shared_heads_equal_repeated_ones() -> None:
    shared, full = model(), model(num_key_value_heads=4)
    weights = shared.state_dict()
    for name in list(weights):
        if name.endswith(("attention.key.weight", "attention.value.weight")):
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32)
    full.load_state_dict(weights)
    assert_close(full(ids(2, 9)), shared(ids(2, 9)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [5, 1, 1, 5]])
def test_decoding_with_a_cache_equals_decoding_without(pieces: list[int]) -> None:
    net, tokens = model(), ids(2, 12)
    cache = net.new_cache(2, 12)
    start, parts = 0, []
    for length in pieces:
        parts.append(net(tokens[:, start : start + length], cache=cache))
        start += length
    assert_close(torch.cat(parts, 1), net(tokens), rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    net, tokens = model(), ids(1, 10)
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    before, after = net(tokens), net(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-3)


def test_padding_on_the_right_does_not_leak() -> None:
    net, row = model(), ids(1, 6)
    padded = torch.cat((row, torch.full((1, 5), 1)), 1)
    assert_close(net(padded)[:, :6], net(row), rtol=1e-4, atol=1e-5)


def test_documents_in_one_window_do_not_see_one_another() -> None:
    net = model()
    first, second, other = ids(1, 5, seed=5), ids(1, 7, seed=6), ids(1, 5, seed=7)
    segments = torch.tensor([[1] * 5 + [2] * 7])
    packed = net(torch.cat((first, second), 1), segment_ids_BT=segments)
    swapped = net(torch.cat((other, second), 1), segment_ids_BT=segments)
    assert torch.equal(packed[:, 5:], swapped[:, 5:])
    # Rotary positions are relative, so a document reads the same wherever it stands.
    assert_close(packed[:, 5:], net(second), rtol=1e-4, atol=1e-4)
    # Negative control: without segments the first document does change the second.
    assert not torch.allclose(
        net(torch.cat((first, second), 1))[:, 5:], net(torch.cat((other, second), 1))[:, 5:], atol=1e-3
    )


def test_the_same_generator_makes_the_same_model() -> None:
    one, two = (Llama(config(), torch.Generator().manual_seed(8)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes", [{"num_key_value_heads": 3}, {"head_dim": 7}, {"num_hidden_layers": 0}, {"model_type": "gpt2"}]
)
def test_a_shape_that_cannot_be_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        config(**changes)
