"""llama2.c's checkpoints: every version gives the numbers of the model that was written."""

from pathlib import Path

import pytest
import torch
from checkpoints import tiny_llama, write_llama2c

from yunque.errors import UserError
from yunque.model.checkpoint import build_model, parse_configuration
from yunque.model.formats.llama2c import Llama2cFile
from yunque.model.formats.rotary_rows import halves_from_pairs, pairs_from_halves

IDS = torch.arange(20)[None]


def opened(path: Path) -> torch.nn.Module:
    file = Llama2cFile(path)
    return build_model(parse_configuration(file.config, str(path)), file)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_float_versions_give_the_same_logits(version: int, tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    ours = opened(write_llama2c(model, tmp_path / "m.bin", version))
    assert torch.equal(ours(IDS), model(IDS))
    # Negative control: rows left in Meta's order do not give them.
    query = ours.layers[0].attention.query
    query.weight = torch.nn.Parameter(pairs_from_halves(query.weight, 4), requires_grad=False)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours(IDS), model(IDS))


@pytest.mark.parametrize("tied", [True, False])
def test_the_int8_version_gives_what_its_numbers_say(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    ours = opened(write_llama2c(model, tmp_path / "m.bin", 2, group=16))
    for (name, mine), theirs in zip(ours.named_parameters(), model.parameters(), strict=True):
        if mine.dim() == 1:
            assert torch.equal(mine, theirs), name
        else:
            scale = theirs.reshape(-1, 16).abs().amax(1).max() / 127
            assert (mine - theirs).abs().max() <= scale * 0.51, name
    assert (ours(IDS) - model(IDS)).abs().max() < 0.05
    assert not torch.equal(ours(IDS), model(IDS))


def test_the_two_orders_of_rows_undo_each_other() -> None:
    rows = torch.arange(24.0).reshape(12, 2)
    assert torch.equal(halves_from_pairs(pairs_from_halves(rows, 2), 2), rows)
    # Two heads of six: numbers 0 and 3 turn together, and stand side by side in Meta's order.
    assert pairs_from_halves(torch.arange(12), 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_a_version_that_is_not_known_is_told(tmp_path: Path) -> None:
    path = write_llama2c(tiny_llama(), tmp_path / "m.bin", 1)
    content = bytearray(path.read_bytes())
    content[4] = 9
    path.write_bytes(content)
    with pytest.raises(UserError, match="version 9"):
        Llama2cFile(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cut off"):
        Llama2cFile(path)
