"""T5 v1.0, T5 v1.1, FLAN-T5 and mT5 beside `transformers`.

Shapes: B batch, T positions of the target, S positions of the source, V vocab_size.
"""

import json
import random
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForSeq2SeqLM
from transformers.models.t5.modeling_t5 import T5Attention

from yunque.errors import UserError
from yunque.model import load_model, save_model
from yunque.model.families.t5 import T5, T5Config
from yunque.model.positions import distance_buckets

SHAPE = {
    "vocab_size": 99,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 11,
    "decoder_start_token_id": 0,
}
V1_0 = {"feed_forward_proj": "relu"}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SOURCES, TARGETS = (17, 6, 11), (9, 7, 4)


def checkpoint(kind: str = "T5", own_head: bool = False, **changes) -> Any:
    """A tiny random model of `transformers`, which ties the two tables of every fresh one."""
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = AutoModelForSeq2SeqLM.from_config(config)
    if own_head:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    parity.random_weights(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.mul_(20)
            elif name.endswith(".q.weight"):
                # In place of the scale that T5 does without: a softmax of huge scores would make rounding large.
                weight.mul_(config.d_kv**-0.5)
            elif name == "shared.weight" and getattr(config, "scale_decoder_outputs", False):
                # Scores are made small by the scale: keep them apart.
                weight.mul_(8)
    return model


def opened(theirs: Any, folder: Path, **changes) -> T5:
    return load_model(parity.saved(theirs, folder, **changes), kind=T5)


def batch(vocab_size: int, lengths: tuple[int, ...], side: str, seed: int) -> tuple[Tensor, Tensor]:
    return parity.padded(parity.ragged(vocab_size, lengths, seed), side)


@torch.no_grad()
def assert_same_logits(ours: T5, theirs: Any) -> None:
    """Ragged sources and targets padded on either side, without masks, and targets in pieces through a cache."""
    for sides in (("right", "right"), ("left", "left"), ("left", "right"), ("right", "left")):
        source_BS, mask_BS = batch(ours.config.vocab_size, SOURCES, sides[0], 1)
        target_BT, mask_BT = batch(ours.config.vocab_size, TARGETS, sides[1], 2)
        real = mask_BT.bool()
        wanted_BTV = theirs(source_BS, mask_BS, target_BT, mask_BT).logits
        parity.assert_same(ours(source_BS, target_BT, mask_BS, mask_BT)[real], wanted_BTV[real])
        _assert_same_pieces(ours, theirs, (source_BS, mask_BS), (target_BT, mask_BT))
    parity.assert_same(
        ours(source_BS, target_BT), theirs(input_ids=source_BS, decoder_input_ids=target_BT).logits
    )


def _assert_same_pieces(
    ours: T5, theirs: Any, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> None:
    (source_BS, mask_BS), (target_BT, mask_BT) = source, target
    cache, past = ours.new_cache(*target_BT.shape), None
    memory_BSD, encoded = ours.encode(source_BS, mask_BS), theirs.encoder(source_BS, mask_BS)
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 9)):
        hidden_BTD = ours.decode(target_BT[:, start:end], memory_BSD, mask_BS, cache, mask_BT[:, :end])
        wanted = theirs(
            attention_mask=mask_BS,
            decoder_input_ids=target_BT[:, start:end],
            decoder_attention_mask=mask_BT[:, :end],
            encoder_outputs=encoded,
            past_key_values=past,
            use_cache=True,
        )
        past, real = wanted.past_key_values, mask_BT[:, start:end].bool()
        assert_close(ours.logits(hidden_BTD)[real], wanted.logits[real])
    assert cache.length == target_BT.shape[1]


@torch.no_grad()
def assert_pairs_stand_alone(ours: T5, theirs: Any) -> None:
    """A pair in a padded batch has the scores that `transformers` gives to that pair alone."""
    size = ours.config.vocab_size
    sources, targets = parity.ragged(size, SOURCES, 1), parity.ragged(size, TARGETS, 2)
    for side in ("left", "right"):
        (source_BS, mask_BS), (target_BT, mask_BT) = (
            parity.padded(sources, side),
            parity.padded(targets, side),
        )
        scores_BTV = ours(source_BS, target_BT, mask_BS, mask_BT)
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            wanted = theirs(input_ids=source[None], decoder_input_ids=target[None]).logits[0]
            parity.assert_same(scores_BTV[number][mask_BT[number].bool()], wanted)


def assert_same_gradients(ours: T5, theirs: Any) -> None:
    def losses(ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        source_BS, mask_BS = batch(ours.config.vocab_size, SOURCES[:2], "right", 1)
        decoder_ids_BT = torch.cat((torch.zeros_like(ids_BT[:, :1]), ids_BT[:, :-1]), dim=1)
        scores_BTV = ours(source_BS, decoder_ids_BT, mask_BS)
        loss = nn.functional.cross_entropy(scores_BTV.flatten(0, 1), ids_BT.flatten())
        return loss, theirs(source_BS, mask_BS, labels=ids_BT).loss

    parity.assert_same_gradients(ours, theirs, losses)


def random_shape(seed: int) -> dict[str, Any]:
    """A shape that nobody picked by hand."""
    pick = random.Random(seed)
    buckets = pick.choice([4, 5, 8, 9, 32])
    gated = pick.choice(["", "gated-"])
    return {
        "vocab_size": pick.randint(20, 150),
        "d_model": pick.randint(6, 40),
        "d_kv": pick.randint(1, 12),
        "d_ff": pick.randint(5, 90),
        "num_layers": pick.randint(1, 4),
        "num_decoder_layers": pick.choice([None, 1, 2, 4]),
        "num_heads": pick.randint(1, 6),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": pick.choice([buckets // 2 + 1, buckets, 40, 128]),
        "layer_norm_epsilon": pick.choice([1e-6, 1e-5, 1e-3]),
        "feed_forward_proj": gated + pick.choice(["relu", "gelu", "silu", "gelu_new", "tanh"]),
        "tie_word_embeddings": pick.random() < 0.5,
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_t5_of_any_shape_gives_the_scores_of_transformers(seed: int, tmp_path: Path) -> None:
    kind = "MT5" if seed % 4 == 3 else "T5"
    theirs = checkpoint(kind, own_head=random.Random(seed).random() < 0.5, **random_shape(seed))
    ours = opened(theirs, tmp_path)
    assert_same_logits(ours, theirs)
    assert_pairs_stand_alone(ours, theirs)
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("version", [V1_0, V1_1], ids=["v1.0", "v1.1"])
def test_each_thing_that_makes_a_t5_is_noticed_when_it_is_wrong(version: dict, tmp_path: Path) -> None:
    theirs = checkpoint(own_head=version is V1_1, **version)
    assert_same_logits(opened(theirs, tmp_path), theirs)
    wrong_fields: list[dict[str, Any]] = [
        {"layer_norm_epsilon": 1e-5},
        {"relative_attention_max_distance": 128},
        {"scale_decoder_outputs": version is V1_1},
        {"dense_act_fn": "gelu"},
    ]
    for fields in wrong_fields:
        with pytest.raises(AssertionError):
            assert_same_logits(opened(theirs, tmp_path / str(fields), **fields), theirs)
    for spoil in (_scale_attention, _unshare_positions, _look_one_way, _change_head):
        ours = opened(theirs, tmp_path)
        spoil(ours)
        with pytest.raises(AssertionError):
            assert_same_logits(ours, theirs)


def _scale_attention(model: T5) -> None:
    for layer in model.decoder.layers:
        layer.attention.scale = layer.attention.head_dim**-0.5


def _unshare_positions(model: T5) -> None:
    """The last layer of the decoder gets biases of its own."""

    def swap(layer: nn.Module, arguments: tuple) -> None:
        del layer
        _, shared = arguments
        shared.bias = shared.bias.flip(1)
        shared._masks.clear()

    model.decoder.layers[-1].register_forward_pre_hook(swap)


def _look_one_way(model: T5) -> None:
    model.encoder.both_ways = False


def _change_head(model: T5) -> None:
    table = model.embedding.weight if model.head is not None else model.embedding.weight.roll(1, 0)
    model.head = nn.Linear(*reversed(table.shape), bias=False)
    model.head.weight = nn.Parameter(table.clone())


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (4, 3), (9, 20), (64, 1000), (8, 11)])
def test_every_distance_falls_in_the_bucket_of_transformers(
    buckets: int, farthest: int, both_ways: bool
) -> None:
    distances = torch.arange(-1500, 1501)
    theirs = T5Attention._relative_position_bucket(distances, both_ways, buckets, farthest)
    assert torch.equal(distance_buckets(distances, buckets, farthest, both_ways), theirs)
    assert not torch.equal(distance_buckets(distances, buckets + 2, farthest, both_ways), theirs)


def test_gradients_that_differ_are_noticed(tmp_path: Path) -> None:
    theirs = checkpoint(**V1_1)
    ours = opened(theirs, tmp_path)
    with torch.no_grad():
        ours.encoder.positions.weight[0, 0] += 1e-2
    with pytest.raises(AssertionError):
        assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("own_head", [True, False])
@pytest.mark.parametrize("version", [V1_0, V1_1], ids=["v1.0", "v1.1"])
def test_a_checkpoint_comes_back_bit_for_bit(
    version: dict, own_head: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs = checkpoint(own_head=own_head, **version).to(dtype)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(
        theirs, tmp_path, AutoModelForSeq2SeqLM, lambda model: model(ids, decoder_input_ids=ids).logits
    )
    for form in ("whole", "pickled"):
        model = load_model(tmp_path / form, kind=T5)
        assert (model.head is not None) == own_head
        assert next(model.parameters()).dtype == dtype


def test_an_old_configuration_says_with_its_ties_whether_scores_are_scaled(tmp_path: Path) -> None:
    # Writers before transformers 5 had no `scale_decoder_outputs`, and v1.1 had `tie_word_embeddings` false.
    theirs = checkpoint(own_head=True, **V1_1)
    parity.saved(theirs, tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    for name in ("scale_decoder_outputs", "dense_act_fn", "is_gated_act", "num_decoder_layers"):
        del fields[name]
    path.write_text(json.dumps(fields | {"tie_word_embeddings": False, "num_decoder_layers": 2}))
    ours = load_model(tmp_path, kind=T5)
    assert_same_logits(ours, theirs)
    # Our own file says it outright.
    written = json.loads(save_model(ours)["config.json"])
    assert (written["tie_word_embeddings"], written["scale_decoder_outputs"]) == (False, False)
    del fields["tie_word_embeddings"]
    path.write_text(json.dumps(fields | {"num_decoder_layers": 2}))
    with pytest.raises(AssertionError):
        assert_same_logits(load_model(tmp_path, kind=T5), theirs)


@pytest.mark.parametrize(
    ("name", "own_head"),
    [("encoder.embed_tokens", True), ("decoder.embed_tokens", False), ("lm_head", False)],
)
def test_one_table_under_any_of_its_names_is_enough(name: str, own_head: bool, tmp_path: Path) -> None:
    theirs = checkpoint(own_head=own_head)
    parity.saved(theirs, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{name}.weight"] = tensors.pop("shared.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path, kind=T5), theirs)


def test_two_tables_that_should_be_one_are_refused(tmp_path: Path) -> None:
    parity.saved(checkpoint(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"encoder\.embed_tokens\.weight"):
        load_model(tmp_path)


def test_a_table_of_the_first_checkpoints_that_nothing_reads_is_passed_over(tmp_path: Path) -> None:
    theirs = checkpoint()
    parity.saved(theirs, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file({**tensors, unused: torch.ones(8, 4)}, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path, kind=T5), theirs)


def test_numbers_that_float16_cannot_hold_stay_finite(tmp_path: Path) -> None:
    theirs = checkpoint(**V1_1)
    ours = opened(theirs, tmp_path).half()
    ids = torch.arange(1, 9)[None]
    plain = ours(ids, ids)
    ours.encoder.layers[0].gated_feed_forward.down.weight.mul_(20000)
    ours.decoder.layers[0].gated_feed_forward.down.weight.mul_(20000)
    far = ours(ids, ids)
    assert torch.isfinite(far).all() and not torch.equal(far, plain)


def test_a_row_of_padding_alone_does_not_spoil_the_others(tmp_path: Path) -> None:
    ours = opened(checkpoint(), tmp_path)
    source_BS, mask_BS = batch(99, SOURCES, "right", 1)
    target_BT = torch.stack(parity.ragged(99, (5, 5, 5), 2))
    before_BTV = ours(source_BS, target_BT, mask_BS)
    mask_BS[1] = 0
    after_BTV = ours(source_BS, target_BT, mask_BS)
    assert torch.isfinite(after_BTV).all()
    assert torch.equal(before_BTV[0], after_BTV[0])
    assert not torch.equal(before_BTV[1], after_BTV[1])


def test_a_cache_that_is_reordered_goes_on_from_the_chosen_rows(tmp_path: Path) -> None:
    ours = opened(checkpoint(), tmp_path)
    source_BS, mask_BS = batch(99, SOURCES, "right", 1)
    target_BT = torch.stack(parity.ragged(99, (6, 6, 6), 2))
    rows = torch.tensor([2, 0, 0, 1])
    cache, memory_BSD = ours.new_cache(3, 6), ours.encode(source_BS, mask_BS)
    ours.decode(target_BT[:, :5], memory_BSD, mask_BS, cache)
    cache.reorder(rows)
    last = ours.decode(target_BT[rows, 5:], memory_BSD[rows], mask_BS[rows], cache)
    whole = ours.decode(target_BT, memory_BSD, mask_BS)[:, 5:]
    assert_close(last, whole[rows])
    with pytest.raises(AssertionError):
        assert_close(last, whole[[0, 1, 2, 2]])


def test_fresh_weights_are_as_large_as_those_of_transformers() -> None:
    shape = {**SHAPE, "d_model": 64, "d_kv": 16, "d_ff": 128, "relative_attention_num_buckets": 512}
    shape["relative_attention_max_distance"] = 2000
    theirs = AutoModelForSeq2SeqLM.from_config(transformers.T5Config(**shape, **V1_1))
    ours = T5(T5Config(**shape, **(V1_1 | {"tie_word_embeddings": True})), torch.Generator().manual_seed(0))
    wanted, found = theirs.state_dict(), 0
    for name, tensor in parity.checkpoint_tensors(ours).items():
        if tensor.dim() == 2:
            found += 1
            assert_close(tensor.std(), wanted[name].std(), rtol=0.12, atol=0.0)
        else:
            assert torch.equal(tensor, wanted[name])
    assert found > 30


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"feed_forward_proj": "gated-swoosh", "dense_act_fn": None}, "dense_act_fn"),
        ({"feed_forward_proj": "open-gelu"}, "gated-"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets"),
        ({"relative_attention_max_distance": 4}, "relative_attention_max_distance"),
        ({"d_kv": 0}, "d_kv"),
        ({"num_layers": 10**12}, "num_layers"),
        ({"num_layers": 2.0}, "num_layers"),
        ({"num_decoder_layers": 9}, "missing"),
        ({"is_decoder": True}, "is_decoder"),
        ({"is_gated_act": True}, "missing"),
        ({"d_model": 25}, "by config.json"),
    ],
    ids=str,
)
def test_a_t5_that_cannot_be_is_told_in_one_sentence(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as raised:
        opened(checkpoint(), tmp_path, **changes)
    assert "\n" not in str(raised.value)
