"""Muon turns the matrices of layers, leaves the rest to AdamW, and goes on after a stop as if there had been none."""

import copy

import numpy as np
import pytest
import torch
from broken_off import StopAt
from scipy.optimize import linprog
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.model import Llama, LlamaConfig, load_model
from yunque.train import pretrain
from yunque.train.checkpoint import Position, load_checkpoint, save_checkpoint
from yunque.train.optimizer import _STEPS, Muon, layer_matrices, make_optimizer, orthogonalized
from yunque.train.settings import OptimizerSettings

MUON = OptimizerSettings(kind="muon", learning_rate=0.01, weight_decay=0.1)
CONFIG = LlamaConfig(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=16,
)


def model() -> Llama:
    return Llama(CONFIG, torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def put_gradients(net: nn.Module, seed: int) -> None:
    for number, weight in enumerate(net.parameters()):
        weight.grad = random(*weight.shape, seed=1000 * seed + number)


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (20, 48), (1, 30), (30, 1)])
def test_an_update_has_its_singular_values_near_one(shape) -> None:
    matrices = random(3, *shape)
    before = torch.linalg.svdvals(matrices / matrices.norm(dim=(1, 2), keepdim=True))
    after = torch.linalg.svdvals(orthogonalized(matrices))
    assert ((after > 0.79) & (after < 1.21))[before > 0.0031].all() and (after < 1.21).all()
    assert (before > 0.003).float().mean() > 0.9
    # Negative control: what was only scaled is far from it, but for vectors, which have one value.
    assert 1 in shape or not ((before > 0.8) & (before < 1.2)).any()


def by_singular_values(matrix: Tensor, steps=_STEPS) -> Tensor:
    """The same polynomials, applied to the singular values alone, in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (s.square().sum().sqrt() + 1e-7)
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return ((u * s) @ v).float()


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (20, 48)])
def test_products_do_what_the_formula_does_to_singular_values(shape) -> None:
    matrix = random(*shape)
    assert_close(orthogonalized(matrix[None])[0], by_singular_values(matrix), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(
            orthogonalized(matrix[None])[0], by_singular_values(matrix, _STEPS[:3]), rtol=1e-4, atol=1e-5
        )


def test_the_numbers_of_each_step_are_the_best_there_are() -> None:
    """Found anew as a linear program: the least distance from 1 over what the steps before left."""
    low, high = 0.003, 1.0
    for numbers in _STEPS:
        values = np.geomspace(low, high, 400)
        powers = np.stack([values, values**3, values**5], 1)
        rows = np.block([[powers, -np.ones((400, 1))], [-powers, -np.ones((400, 1))]])
        sides = np.concatenate([np.ones(400), -np.ones(400)])
        found = linprog([0, 0, 0, 1], rows, sides, bounds=[(None, None)] * 4).x
        assert numbers == pytest.approx(found[:3], abs=2e-3)
        low, high = 1 - found[3], 1 + found[3]
    assert high == pytest.approx(1.2, abs=0.01)


def test_four_steps_end_nearer_to_one_than_five_of_the_first_proposal() -> None:
    values = torch.arange(1, 257) ** -1.0
    matrix = torch.diag(values)
    five = by_singular_values(matrix, [(3.4445, -4.7750, 2.0315)] * 5)
    eye = torch.eye(256)
    assert (orthogonalized(matrix[None])[0] - eye).norm() < 0.8 * (five - eye).norm()


def test_an_update_goes_where_the_nearest_orthogonal_matrix_points() -> None:
    matrix = random(40, 24)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    ours, nearest = orthogonalized(matrix[None])[0].flatten(), (u @ v).flatten()
    assert torch.cosine_similarity(ours, nearest, dim=0) > 0.97
    assert torch.cosine_similarity(matrix.flatten(), nearest, dim=0) < 0.97


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not orthogonalized(torch.zeros(1, 4, 6)).any()


def test_two_steps_equal_the_plain_formula() -> None:
    net = model()
    name = "layers.1.feed_forward.down.weight"
    weight, running = net.get_parameter(name).detach().clone(), torch.zeros(16, 24)
    optimizer = make_optimizer(net, MUON)
    for step in range(2):
        put_gradients(net, step)
        gradient = net.get_parameter(name).grad.clone()
        optimizer.step()
        running = 0.95 * running + 0.05 * gradient
        update = by_singular_values(0.95 * running + 0.05 * gradient)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 24**0.5 * update
    assert_close(net.get_parameter(name).detach(), weight, rtol=1e-4, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(net.get_parameter(name).detach(), weight + 1e-4 * update, rtol=1e-4, atol=1e-6)


def test_an_update_is_as_large_as_one_of_adamw() -> None:
    """Of square and long matrices alike: the root mean square is 0.2 times the rate."""
    net = model()
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = make_optimizer(net, OptimizerSettings(kind="muon", learning_rate=0.01, weight_decay=0))
    put_gradients(net, 0)
    optimizer.step()
    for name in ("layers.0.attention.query.weight", "layers.0.feed_forward.up.weight"):
        moved = (net.get_parameter(name) - before[name]).square().mean().sqrt()
        assert moved.item() == pytest.approx(0.2 * 0.01, rel=0.25)


def test_what_muon_does_not_turn_moves_as_under_adamw() -> None:
    ours, theirs = model(), model()
    turned = {id(weight) for weight in layer_matrices(ours)}
    pair = make_optimizer(ours, MUON), make_optimizer(theirs, MUON.model_copy(update={"kind": "adamw"}))
    for step in range(3):
        put_gradients(ours, step)
        put_gradients(theirs, step)
        for optimizer in pair:
            optimizer.step()
    others = dict(theirs.named_parameters())
    alike = [name for name, weight in ours.named_parameters() if torch.equal(weight, others[name])]
    assert set(alike) == {name for name, weight in ours.named_parameters() if id(weight) not in turned}
    assert {"embedding.weight", "head.weight", "norm.weight"} <= set(alike)
    assert "layers.0.attention.query.weight" not in alike


def test_weights_without_a_gradient_stay_as_they_are() -> None:
    net = model()
    before = copy.deepcopy(net.state_dict())
    optimizer = make_optimizer(net, MUON)
    net.embedding.weight.grad = torch.ones_like(net.embedding.weight)
    optimizer.step()
    moved = {name for name, weight in net.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {"embedding.weight"}


def test_a_checkpoint_holds_what_muon_remembers(tmp_path) -> None:
    def run(net: Llama, optimizer: torch.optim.Optimizer, steps: range) -> Llama:
        for step in steps:
            put_gradients(net, step)
            optimizer.step()
        return net

    def restored(drop: bool) -> Llama:
        net = model()
        optimizer = make_optimizer(net, MUON)
        assert load_checkpoint(tmp_path, net, optimizer).step == 3
        if drop:
            optimizer.state.clear()
        return run(net, optimizer, range(3, 6))

    first = model()
    optimizer = make_optimizer(first, MUON)
    run(first, optimizer, range(3))
    save_checkpoint(tmp_path, first, optimizer, Position(step=3))
    run(first, optimizer, range(3, 6))
    for name, weight in restored(drop=False).named_parameters():
        assert torch.equal(weight, first.get_parameter(name)), name
    # Negative control: one that forgot its momentum would go elsewhere.
    lost = restored(drop=True)
    assert not torch.equal(lost.layers[0].attention.query.weight, first.layers[0].attention.query.weight)


def test_a_run_with_muon_that_crashed_and_went_on_ends_with_the_same_bits(workspace, settings) -> None:
    muon = settings.model_copy(update={"optimizer": MUON.model_copy(update={"schedule": "trapezoid"})})
    whole = load_model(workspace.files(pretrain(workspace, muon)))
    twin = muon.model_copy(update={"name": "twin"})
    with pytest.raises(RuntimeError, match="crash"):
        pretrain(workspace, twin, StopAt(10))
    again = load_model(workspace.files(pretrain(workspace, twin)))
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    plain = load_model(workspace.files(pretrain(workspace, settings)))
    assert not torch.equal(next(plain.parameters()), next(whole.parameters()))


def test_it_is_one_optimizer_for_any_family() -> None:
    assert isinstance(make_optimizer(model(), MUON), Muon)
    tied = Llama(CONFIG.model_copy(update={"tie_word_embeddings": True}), torch.Generator().manual_seed(0))
    weights = [weight for group in make_optimizer(tied, MUON).param_groups for weight in group["params"]]
    assert {id(weight) for weight in weights} == {id(weight) for weight in tied.parameters()}
    assert len(weights) == len(list(tied.parameters()))
