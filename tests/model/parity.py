"""Our models beside those of `transformers`: a tiny random checkpoint, opened by both, must give the same numbers.

Shapes: B batch, T positions of this call, S positions seen so far, V vocab_size.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.model import CausalModel, LanguageModel, load_model, save_model
from yunque.model.checkpoint import checkpoint_tensors

# Rows of a ragged batch, and how its positions go through a cache: a prefill, steps, a piece, steps.
LENGTHS = (9, 4, 13)
PIECES = (5, 1, 1, 3, 1, 2)


@torch.no_grad()
def random_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a model with numbers that let every part of it show: gains that are not 1, biases that are not 0.

    Vectors of tokens are small, so that the epsilon of a norm counts.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() > 1:
            weight.copy_(noise * (0.05 if id(weight) in tables else 0.25))
        else:
            weight.copy_(noise * 0.2 + (0.0 if name.endswith("bias") else 1.0))
    return model.eval()


def saved(theirs: Any, folder: Path, **changes: Any) -> Path:
    """The folder with a model of `transformers` in it, and `changes` made to its config.json."""
    theirs.save_pretrained(folder)
    if changes:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def ragged(vocab_size: int, lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[Tensor]:
    """Rows of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[Tensor], side: str, filler: int = 0) -> tuple[Tensor, Tensor]:
    """The rows as one batch, padded on the `left` or the `right`, and its mask."""
    longest = max(len(row) for row in rows)

    def widen(row: Tensor, value: int) -> Tensor:
        missing = longest - len(row)
        return F.pad(row, (missing, 0) if side == "left" else (0, missing), value=value)

    ids_BT = torch.stack([widen(row, filler) for row in rows])
    return ids_BT, torch.stack([widen(torch.ones_like(row), 0) for row in rows])


def positions(mask_BS: Tensor) -> Tensor:
    """How many tokens of its row stand before each one."""
    return (mask_BS.cumsum(1) - 1).clamp(min=0)


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """Mean KL divergence of next-token distributions, in nats; exact, not estimated."""
    p, q = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Scores of the same positions, within the tolerance of assert_close for float32."""
    assert theirs.std() > 0.05, "scores that are all alike prove nothing"
    assert_close(ours, theirs)
    assert divergence(ours, theirs) <= 1e-9


@torch.no_grad()
def assert_same_logits(ours: CausalModel, theirs: Any, lengths: Sequence[int] = LENGTHS) -> None:
    """A ragged batch padded on either side, each row alone, and pieces through a cache."""
    rows = ragged(ours.config.vocab_size, lengths)
    for side in ("left", "right"):
        ids_BT, mask_BT = padded(rows, side)
        scores_BTV = ours(ids_BT, mask_BT)
        wanted_BTV = theirs(ids_BT, attention_mask=mask_BT, position_ids=positions(mask_BT)).logits
        assert_same(scores_BTV[mask_BT.bool()], wanted_BTV[mask_BT.bool()])
        _assert_same_pieces(ours, theirs, ids_BT, mask_BT)


@torch.no_grad()
def assert_rows_stand_alone(ours: CausalModel, theirs: Any, lengths: Sequence[int] = LENGTHS) -> None:
    """A row of a padded batch has the scores that `transformers` gives to that row alone."""
    rows = ragged(ours.config.vocab_size, lengths)
    for side in ("left", "right"):
        ids_BT, mask_BT = padded(rows, side)
        scores_BTV = ours(ids_BT, mask_BT)
        for number, row in enumerate(rows):
            assert_same(scores_BTV[number][mask_BT[number].bool()], theirs(row[None]).logits[0])


def _assert_same_pieces(ours: CausalModel, theirs: Any, ids_BT: Tensor, mask_BT: Tensor) -> None:
    cache, past = ours.new_cache(*ids_BT.shape), None
    start, pieces = 0, [*PIECES, *[1] * max(0, ids_BT.shape[1] - sum(PIECES))]
    for length in pieces:
        end = min(start + length, ids_BT.shape[1])
        scores_BTV = ours(ids_BT[:, start:end], mask_BT[:, :end], cache=cache)
        output = theirs(
            ids_BT[:, start:end],
            attention_mask=mask_BT[:, :end],
            position_ids=positions(mask_BT)[:, start:end],
            past_key_values=past,
            use_cache=True,
        )
        past, real = output.past_key_values, mask_BT[:, start:end].bool()
        assert_close(scores_BTV[real], output.logits[real])
        start = end
    assert cache.length == ids_BT.shape[1]


def assert_same_gradients(
    ours: LanguageModel, theirs: Any, loss: Callable[[Any], tuple[Tensor, Tensor]] | None = None
) -> None:
    """Gradients of a loss, tensor by tensor, within 1e-5 of the size of each.

    `loss` gives a pair for both models: (ours, theirs) losses; without it, the next token of a plain batch.
    """
    ours.requires_grad_(True)
    ids_BT = torch.stack(ragged(ours.config.vocab_size, (11, 11)))
    if loss is None:
        ours_loss = F.cross_entropy(ours(ids_BT)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
        theirs_loss = theirs(ids_BT, labels=ids_BT).loss
    else:
        ours_loss, theirs_loss = loss(ids_BT)
    ours_loss.backward()
    theirs_loss.backward()
    # The weight map carries gradients as it carries weights, once they stand in the weights' place.
    with torch.no_grad():
        for weight in ours.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    found, gradients = checkpoint_tensors(ours), dict(theirs.named_parameters())
    overall = torch.cat([one.grad.flatten() for one in gradients.values() if one.grad is not None]).norm()
    for name, tensor in found.items():
        wanted = gradients[name].grad
        # A bias that changes no score has the gradient 0, up to rounding: it is measured by the others.
        assert (tensor - wanted).norm() <= 1e-5 * wanted.norm() + 1e-7 * overall, name


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_round_trip(theirs: Any, folder: Path, opener: Any, logits: Callable[[Any], Tensor]) -> None:
    """A checkpoint in every form that writers give it: whole, in shards, as .bin, with and without the prefix of its
    names. It comes back from us bit for bit, and `opener` (an AutoModel) opens it again to the same `logits`."""
    whole = folder / "whole"
    theirs.save_pretrained(whole)
    originals, prefix = stored(whole), theirs.base_model_prefix + "."
    # Opened anew: a model that was made float16 in memory has rounded its rotary angles too.
    wanted = logits(opener.from_pretrained(whole, dtype="auto").eval())
    for form, path in _forms(theirs, whole, prefix):
        model = load_model(path)
        written = folder / f"{form}-again"
        written.mkdir()
        for name, content in save_model(model).items():
            (written / name).write_bytes(content)
        tensors = load((written / "model.safetensors").read_bytes())
        assert tensors.keys() == originals.keys(), form
        assert all(torch.equal(tensors[name], originals[name]) for name in originals), form
        assert all(tensors[name].dtype == originals[name].dtype for name in originals), form
        again = opener.from_pretrained(written, dtype="auto").eval()
        assert torch.equal(logits(again), wanted), form


def _forms(theirs: Any, whole: Path, prefix: str) -> Iterable[tuple[str, Path]]:
    yield "whole", whole
    config = (whole / "config.json").read_text()
    shards = whole.with_name("shards")
    theirs.save_pretrained(shards, max_shard_size="12KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    yield "shards", shards
    tensors = stored(whole)
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    pickled = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    for form, save in (
        ("bare", lambda path: save_file(bare, path / "model.safetensors", metadata={"format": "pt"})),
        ("pickled", lambda path: torch.save(pickled, path / "pytorch_model.bin")),
    ):
        path = whole.with_name(form)
        path.mkdir()
        (path / "config.json").write_text(config)
        save(path)
        yield form, path
