"""Recurrent networks beside `nn.LSTM` and `nn.GRU` run by hand, token by token."""

import json
from pathlib import Path

import parity
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import CausalModel, EncoderDecoder, load_model, new_model, record_attention, save_model
from yunque.model.checkpoint import parse_configuration
from yunque.model.families.rnn import RecurrentLM, RecurrentSeq2Seq

SHAPE = {"vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2}
CELLS = ["lstm", "gru"]


def language_model(cell: str, **changes) -> RecurrentLM:
    config = parse_configuration({"model_type": "rnn", **SHAPE, "cell": cell, **changes}, "here")
    made = new_model(config)
    assert isinstance(made, RecurrentLM)
    return parity.random_weights(made)


def seq2seq(cell: str, **changes) -> RecurrentSeq2Seq:
    config = parse_configuration({"model_type": "rnn-seq2seq", **SHAPE, "cell": cell, **changes}, "here")
    made = new_model(config)
    assert isinstance(made, RecurrentSeq2Seq)
    return parity.random_weights(made)


@torch.no_grad()
def by_hand(model: RecurrentLM, row_T: Tensor) -> Tensor:
    """Scores [T, V] of one row: the formulas of the cells, one token at a time, in float64."""
    weights = {name: one.double() for name, one in model.recurrence.cells.named_parameters()}
    size, layers = model.config.hidden_size, model.config.num_hidden_layers
    h, c = torch.zeros(layers, size).double(), torch.zeros(layers, size).double()
    rows = []
    for token in row_T:
        x = model.embedding.weight[token].double()
        for layer in range(layers):
            into = weights[f"weight_ih_l{layer}"] @ x + weights[f"bias_ih_l{layer}"]
            back = weights[f"weight_hh_l{layer}"] @ h[layer] + weights[f"bias_hh_l{layer}"]
            if model.config.cell == "lstm":
                i, f, g, o = (into + back).chunk(4)
                c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
                h[layer] = o.sigmoid() * c[layer].tanh()
            else:
                (r, z, n), (r_back, z_back, n_back) = into.chunk(3), back.chunk(3)
                z = (z + z_back).sigmoid()
                h[layer] = (1 - z) * (n + (r + r_back).sigmoid() * n_back).tanh() + z * h[layer]
            x = h[layer]
        rows.append(model.logits(x.float()).double())
    return torch.stack(rows)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_scores_are_those_of_the_formulas(cell: str) -> None:
    model = language_model(cell)
    row = parity.ragged(40, (11,))[0]
    assert_close(model(row[None])[0].double(), by_hand(model, row), rtol=1e-5, atol=1e-6)
    # Negative control: a state that is not carried on.
    with pytest.raises(AssertionError):
        alone = torch.cat([by_hand(model, row[at : at + 1]) for at in range(11)])
        assert_close(model(row[None])[0].double(), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_leaves_the_state_alone(cell: str, side: str) -> None:
    model, rows = language_model(cell, tie_word_embeddings=False), parity.ragged(40)
    ids_BT, mask_BT = parity.padded(rows, side, filler=7)
    scores = model(ids_BT, mask_BT)
    cache, parts, start = model.new_cache(*ids_BT.shape), [], 0
    # The first piece is padding alone for one of the rows.
    for length in (3, 1, 1, 5, 1, 2):
        end = start + length
        parts.append(model(ids_BT[:, start:end], mask_BT[:, :end], cache=cache))
        start = end
    assert cache.length == 13
    for number, row in enumerate(rows):
        wanted, real = model(row[None])[0], mask_BT[number].bool()
        assert_close(scores[number][real], wanted)
        assert_close(torch.cat(parts, 1)[number][real], wanted)
        if side == "left" and len(row) < 13:
            # Negative control: without the mask the padding is read.
            with pytest.raises(AssertionError):
                assert_close(model(ids_BT)[number][real], wanted)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_documents_in_one_window_do_not_see_one_another(cell: str) -> None:
    model = language_model(cell)
    rows = parity.ragged(40, (5, 7, 4, 8))
    ids = torch.stack([torch.cat(rows[:2]), torch.cat(rows[2:])])
    segments = torch.tensor([[0] * 5 + [1] * 7, [4] * 4 + [2] * 8])
    packed = model(ids, segment_ids_BT=segments)
    places = [(0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 4)), (1, slice(4, 12))]
    for (line, place), row in zip(places, rows, strict=True):
        assert_close(packed[line, place], model(row[None])[0])
    # The window ends in padding, as a packed one may.
    mask = torch.ones_like(ids)
    mask[0, 10:] = 0
    assert_close(model(ids, mask, segment_ids_BT=segments)[0, :10], packed[0, :10])
    with pytest.raises(AssertionError):
        assert_close(model(ids)[0, 5:], packed[0, 5:])


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_rows_of_a_cache_change_places(cell: str) -> None:
    model, rows = language_model(cell), torch.stack(parity.ragged(40, (6, 6, 6)))
    cache, order = model.new_cache(3, 6), torch.tensor([2, 0, 0, 1])
    model(rows[:, :5], cache=cache)
    cache.reorder(order)
    assert_close(model(rows[order][:, 5:], cache=cache), model(rows[order])[:, 5:])


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_translation_step_by_step_equals_the_whole(cell: str, attention: bool) -> None:
    model = seq2seq(cell, attention=attention)
    sources, targets = parity.ragged(40), torch.stack(parity.ragged(40, (6, 6, 6), seed=3))
    for side in ("left", "right"):
        source_BS, mask_BS = parity.padded(sources, side, filler=7)
        whole = model(source_BS, targets, mask_BS)
        memory, cache = model.encode(source_BS, mask_BS), model.new_cache(3, 6)
        steps = [model.decode(targets[:, at : at + 1], memory, mask_BS, cache) for at in range(6)]
        assert_close(model.logits(torch.cat(steps, 1)), whole)
        for number, source in enumerate(sources):
            assert_close(whole[number], model(source[None], targets[number][None])[0])
        with pytest.raises(AssertionError):
            assert_close(model(source_BS, targets)[1], whole[1])
    # The source counts.
    assert (model(source_BS.flip(0), targets, mask_BS.flip(0)) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_the_targets_padding_leaves_the_state_alone() -> None:
    model, source = seq2seq("gru"), torch.stack(parity.ragged(40, (5, 5)))
    target = torch.stack(parity.ragged(40, (6, 6)))
    shorter = torch.cat((torch.full((2, 2), 7), target), 1)
    mask = torch.tensor([[0, 0] + [1] * 6] * 2)
    padded = model(source, shorter, decoder_attention_mask_BT=mask)
    assert_close(padded[:, 2:], model(source, target))


@torch.no_grad()
def test_attention_to_the_source_can_be_watched() -> None:
    model, source = seq2seq("lstm"), torch.stack(parity.ragged(40, (5, 5)))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with record_attention(model) as records:
        model(source, source[:, :4], mask)
    weights = records[0].weights_BNTS
    assert weights.shape == (2, 1, 4, 5)
    assert_close(weights.sum(-1), torch.ones(2, 1, 4))
    assert (weights[1, ..., 3:] == 0).all() and (weights[0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_checkpoint_comes_back_bit_for_bit(cell: str, dtype: torch.dtype, tmp_path: Path) -> None:
    for made in (language_model(cell, tie_word_embeddings=False), seq2seq(cell)):
        made.to(dtype)
        for name, content in save_model(made).items():
            (tmp_path / name).write_bytes(content)
        again = load_model(tmp_path)
        state = made.state_dict()
        assert again.state_dict().keys() == state.keys()
        assert all(torch.equal(one, state[name]) for name, one in again.state_dict().items())
        assert load((tmp_path / "model.safetensors").read_bytes()).keys() == state.keys()
        ids = torch.arange(8)[None]
        arguments = (ids, ids) if isinstance(made, EncoderDecoder) else (ids,)
        assert torch.equal(again(*arguments), made(*arguments))


def test_a_file_that_is_none_is_told_in_one_sentence(tmp_path: Path) -> None:
    for name, content in save_model(language_model("lstm")).items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    assert fields["architectures"] == ["YunqueRecurrent"]
    for changes, told in (({"cell": "gru"}, "weight_ih_l0"), ({"cell": "elman"}, "cell")):
        path.write_text(json.dumps(fields | changes))
        with pytest.raises(UserError, match=told):
            load_model(tmp_path, kind=CausalModel)


def trained(model: nn.Module, loss, steps: int) -> tuple[float, float]:
    model.train().requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    model.eval().requires_grad_(False)
    return losses[0], losses[-1]


@pytest.mark.parametrize("cell", CELLS)
def test_a_language_model_learns_a_sequence_that_repeats(cell: str) -> None:
    fields = {"model_type": "rnn", "vocab_size": 40, "hidden_size": 24, "cell": cell}
    model = new_model(parse_configuration(fields, "here"), torch.Generator().manual_seed(0))
    assert isinstance(model, RecurrentLM)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6] * 3])
    segments = torch.tensor([[0] * 12 + [1] * 12])

    def loss() -> Tensor:
        scores = model(ids, segment_ids_BT=segments)
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    first, last = trained(model, loss, 60)
    assert first > 3 and last < 0.7, (first, last)


@pytest.mark.parametrize("attention", [True, False])
def test_a_translator_learns_to_turn_a_sequence_around(attention: bool) -> None:
    fields = {"model_type": "rnn-seq2seq", "vocab_size": 8, "hidden_size": 24, "attention": attention}
    model = new_model(parse_configuration(fields, "here"), torch.Generator().manual_seed(0))
    assert isinstance(model, RecurrentSeq2Seq)
    source = torch.randint(1, 8, (24, 4), generator=torch.Generator().manual_seed(1))
    target = F.pad(source.flip(1), (1, 0), value=0)

    def loss() -> Tensor:
        return F.cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten())

    first, last = trained(model, loss, 80)
    assert first > 2 and last < 0.3, (first, last)


def test_the_same_generator_makes_the_same_model() -> None:
    config = parse_configuration({"model_type": "rnn", **SHAPE}, "here")
    one, two, other = (new_model(config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
