"""BERT beside `transformers`, and its vectors of texts beside `sentence-transformers`."""

import json
import random
from pathlib import Path

import parity
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertModel, PreTrainedTokenizerFast

from yunque.errors import UserError
from yunque.model import CausalModel, Encoder, load_model, record_attention, save_model

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
TEXTS = ["el yunque no habla", "the anvil", "hierro hierro the no the anvil", "agua"]


def checkpoint(pooler: bool = True, **changes) -> BertModel:
    """A tiny random model of `transformers`."""
    return parity.random_weights(BertModel(BertConfig(**{**SHAPE, **changes}), add_pooling_layer=pooler))


def opened(theirs, folder: Path, **changes) -> Encoder:
    return load_model(parity.saved(theirs, folder, **changes), kind=Encoder)


@torch.no_grad()
def assert_same_vectors(ours: Encoder, theirs: BertModel) -> None:
    """Vectors of tokens, whole and padded; a row padded on the left is read as if it stood alone."""
    rows = parity.ragged(ours.config.vocab_size)
    ids_BT, mask_BT = parity.padded(rows, "right")
    wanted = theirs(ids_BT, attention_mask=mask_BT).last_hidden_state
    for side in ("right", "left"):
        sided, mask = parity.padded(rows, side)
        parity.assert_same(ours.hidden(sided, mask)[mask.bool()], wanted[mask_BT.bool()])
    parity.assert_same(ours.hidden(ids_BT), theirs(ids_BT).last_hidden_state)


@pytest.mark.parametrize("seed", range(6))
def test_a_bert_of_any_shape_gives_the_vectors_of_transformers(seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    heads = pick.choice([1, 2, 3, 5])
    theirs = checkpoint(
        pooler=pick.random() < 0.5,
        vocab_size=pick.randint(20, 150),
        num_attention_heads=heads,
        hidden_size=heads * pick.choice([4, 8, 11]),
        num_hidden_layers=pick.randint(1, 4),
        intermediate_size=pick.choice([7, 60]),
        hidden_act=pick.choice(["gelu", "gelu_new", "relu", "silu"]),
        layer_norm_eps=pick.choice([1e-12, 1e-5, 1e-3]),
        max_position_embeddings=pick.choice([13, 40]),
        type_vocab_size=pick.choice([1, 2]),
    )
    ours = opened(theirs, tmp_path)
    assert_same_vectors(ours, theirs)

    def loss(ids_BT):
        ids_BT = ids_BT.clamp(min=1)  # theirs gives the token of padding no gradient
        return ours.hidden(ids_BT).pow(3).mean(), theirs(ids_BT).last_hidden_state.pow(3).mean()

    if ours.pooler is None:
        parity.assert_same_gradients(ours, theirs, loss)


def test_the_pooler_has_no_gradient_and_all_else_has_that_of_transformers(tmp_path: Path) -> None:
    theirs = checkpoint()
    ours = opened(theirs, tmp_path)
    ours.pooler = theirs.pooler = None
    with torch.no_grad():
        ours.layers[0].feed_forward.up.weight[0, 0] += 1e-2

    def loss(ids_BT):
        ids_BT = ids_BT.clamp(min=1)  # theirs gives the token of padding no gradient
        return ours.hidden(ids_BT).pow(3).mean(), theirs(ids_BT).last_hidden_state.pow(3).mean()

    with pytest.raises(AssertionError):
        parity.assert_same_gradients(ours, theirs, loss)


@pytest.mark.parametrize(
    "wrong",
    [{"layer_norm_eps": 1e-3}, {"hidden_act": "gelu_new"}, {"num_attention_heads": 2}],
    ids=str,
)
def test_each_field_counts(wrong: dict, tmp_path: Path) -> None:
    theirs = checkpoint(layer_norm_eps=1e-12)
    assert_same_vectors(opened(theirs, tmp_path), theirs)
    with pytest.raises(AssertionError):
        assert_same_vectors(opened(theirs, tmp_path, **wrong), theirs)


def test_what_is_left_out_is_noticed(tmp_path: Path) -> None:
    theirs = checkpoint()
    for part in ("types", "positions"):
        ours = opened(theirs, tmp_path)
        getattr(ours, part).weight.zero_()
        with pytest.raises(AssertionError):
            assert_same_vectors(ours, theirs)
    ours = opened(theirs, tmp_path)
    ours.layers[1].attention.key.bias.zero_()
    # A bias on keys alone moves all scores of a query alike: the softmax does not see it.
    assert_same_vectors(ours, theirs)
    ours.layers[1].attention.query.bias.zero_()
    with pytest.raises(AssertionError):
        assert_same_vectors(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pooler", [True, False])
def test_a_checkpoint_comes_back_bit_for_bit(pooler: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = checkpoint(pooler).to(dtype)
    ids = torch.arange(9)[None]
    parity.assert_round_trip(theirs, tmp_path, AutoModel, lambda model: model(ids).last_hidden_state)


def test_the_head_of_another_task_is_left_aside(tmp_path: Path) -> None:
    theirs = parity.random_weights(AutoModelForMaskedLM.from_config(BertConfig(**SHAPE)))
    ours = opened(theirs, tmp_path)
    assert_same_vectors(ours, theirs.bert)
    assert ours.pooler is None


def test_names_of_older_checkpoints_are_read(tmp_path: Path) -> None:
    theirs = checkpoint()
    folder = parity.saved(theirs, tmp_path)
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("gamma") for name in old)
    save_file(old, folder / "model.safetensors")
    assert_same_vectors(load_model(folder, kind=Encoder), theirs)


def sentence_folder(folder: Path, pooling: str) -> SentenceTransformer:
    """A tiny model as sentence-transformers writes it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner = folder / "inner"
    checkpoint().save_pretrained(inner)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(inner)
    modules = [Transformer(str(inner)), Pooling(SHAPE["hidden_size"], pooling), Normalize()]
    made = SentenceTransformer(modules=modules, device="cpu")
    made.save(str(folder / "whole"))
    return made


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
def test_vectors_of_texts_are_those_of_sentence_transformers(pooling: str, tmp_path: Path) -> None:
    theirs = sentence_folder(tmp_path, pooling)
    ours = load_model(tmp_path / "whole", kind=Encoder)
    wanted = theirs.encode(TEXTS, convert_to_tensor=True)
    features = theirs.tokenize(TEXTS)
    ids_BT, mask_BT = features["input_ids"], features["attention_mask"]
    found = ours.embed(ids_BT, mask_BT)
    assert_close(found, wanted)
    assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)))
    # Negative controls: padding that counts, and another way of pooling.
    with pytest.raises(AssertionError):
        assert_close(ours.embed(ids_BT), wanted)
    other = ours.config.model_copy(update={"pooling": "max" if pooling == "cls" else "cls"})
    ours.config = other
    with pytest.raises(AssertionError):
        assert_close(ours.embed(ids_BT, mask_BT), wanted)


def test_the_pooling_survives_without_the_folder_that_said_it(tmp_path: Path) -> None:
    sentence_folder(tmp_path, "cls")
    whole = tmp_path / "whole"
    files = {"config.json": whole / "config.json", "model.safetensors": whole / "model.safetensors"}
    assert load_model(files).config.pooling == "mean"
    for name in ("modules.json", "1_Pooling/config.json"):
        files[name] = whole / name
    assert load_model(files).config.pooling == "cls"
    assert json.loads(save_model(load_model(whole))["config.json"])["pooling"] == "cls"


def test_a_row_of_padding_alone_gives_no_nan(tmp_path: Path) -> None:
    ours = opened(checkpoint(), tmp_path)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    for pooling in ("mean", "cls", "max"):
        ours.config = ours.config.model_copy(update={"pooling": pooling})
        assert torch.isfinite(ours.embed(torch.ones(2, 3, dtype=torch.long), mask)).all()


def test_attention_of_an_encoder_can_be_watched(tmp_path: Path) -> None:
    ours = opened(checkpoint(), tmp_path)
    with record_attention(ours) as records:
        ours.hidden(torch.arange(6)[None])
    assert [record.weights_BNTS.shape for record in records] == [(1, 4, 6, 6)] * 3
    assert (records[0].weights_BNTS.triu(1) > 0).any(), "an encoder looks ahead"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 5}, "heads"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
    ],
    ids=str,
)
def test_a_bert_that_cannot_be_is_told_in_one_sentence(changes: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        opened(checkpoint(), tmp_path, **changes)


def test_what_cannot_follow_is_told_in_one_sentence(tmp_path: Path) -> None:
    parity.saved(checkpoint(), tmp_path)
    with pytest.raises(UserError, match="CausalModel"):
        load_model(tmp_path, kind=CausalModel)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(UserError, match="lasttoken"):
        load_model(tmp_path)
    for wrong in ('{"pooling_mode": [["mean"]]}', '{"pooling_mode": {"mean": 1}}', "{}", '["mean"]', "{"):
        (tmp_path / "1_Pooling" / "config.json").write_text(wrong)
        with pytest.raises(UserError, match="1_Pooling"):
            load_model(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert load_model(tmp_path).config.pooling == "mean"
    for wrong in ("5", "[", '{"a": 1}'):
        (tmp_path / "modules.json").write_text(wrong)
        with pytest.raises(UserError, match=r"modules\.json"):
            load_model(tmp_path)
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    with pytest.raises(UserError, match="Dense"):
        load_model(tmp_path)
