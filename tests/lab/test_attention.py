"""What is shown is the attention that the model computes: rows, masks, and transformers' own numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.lab.attention import AttentionView, draw_attention, group_records, habit_of, look
from yunque.lab.opening import Opened, open_to_look
from yunque.model import AttentionRecord, known_model_types, load_model, record_attention
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace

TEXT = "La niña lleva su maleta al avión."
SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture
def mini(tmp_path: Path, put_tiny_model) -> Opened:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace, "mini")
    return open_to_look(workspace, "mini")


def test_rows_sum_to_one_and_nothing_later_is_seen(mini: Opened) -> None:
    (part,) = look(mini, TEXT).parts
    assert part.part == "self"
    assert len(part.layers) == 2
    assert part.heads == 2
    T = len(mini.ids(TEXT))
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    for weights_NTS in part.layers:
        assert weights_NTS.shape == (2, T, T)
        assert_close(weights_NTS.sum(-1), torch.ones(2, T))
        assert (weights_NTS[:, later] == 0).all()
        # Negative control: below the diagonal there is something.
        assert (weights_NTS[:, ~later] > 0).all()
    assert part.lookers[0] == "<|end|>"
    assert "".join(part.lookers[1:]).replace("·", " ").replace("<C3><A9>", "é").startswith("La ni")


def oracle(model_type: str) -> transformers.PreTrainedModel:
    """A tiny model of transformers with random weights and attention that can be read."""
    torch.manual_seed(4)
    torch.set_num_threads(1)
    small = dict(SHAPE)
    if model_type in ("llama", "mistral", "qwen2", "qwen3"):
        small |= {"num_key_value_heads": 2, "intermediate_size": 48, "initializer_range": 0.4}
    if model_type == "qwen3":
        small |= {"head_dim": 8}
    if model_type == "falcon":
        small |= {"new_decoder_architecture": True, "num_kv_heads": 2, "initializer_range": 0.4}
    if model_type == "bert":
        small |= {"intermediate_size": 48, "initializer_range": 0.4}
    if model_type == "gpt2":
        small = {"vocab_size": 300, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.4}
    if model_type == "t5":
        small = {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4}
        small |= {
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "initializer_factor": 3.0,
        }
    config = transformers.AutoConfig.for_model(model_type, **small, attn_implementation="eager")
    auto = {"t5": transformers.AutoModelForSeq2SeqLM, "bert": transformers.AutoModel}
    made = auto.get(model_type, transformers.AutoModelForCausalLM).from_config(config)
    return made.eval()


def saved(model: transformers.PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


FAMILIES = [
    name
    for name in ("llama", "mistral", "gpt2", "qwen2", "qwen3", "falcon", "bert")
    if name in known_model_types()
]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_weights_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    theirs = oracle(model_type)
    ours = load_model(saved(theirs, tmp_path / model_type))
    ids = torch.randint(5, 300, (1, 11), generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), record_attention(ours) as records:
        ours.hidden(ids)
        expected = theirs(ids, output_attentions=True).attentions
    (part,) = group_records(records, [str(id) for id in range(11)])
    check(part.layers, expected)


def check(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs) == 3
    for weights_NTS, expected_BNTS in zip(ours, theirs, strict=True):
        assert_close(weights_NTS, expected_BNTS[0], rtol=1e-4, atol=1e-5)
        # Heads in another order, or uniform ones, would be seen.
        with pytest.raises(AssertionError):
            assert_close(weights_NTS, expected_BNTS[0].flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("t5" not in known_model_types(), reason="the family t5 is not there")
def test_an_encoder_decoder_has_three_parts_and_they_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = oracle("t5")
    ours = load_model(saved(theirs, tmp_path / "t5"))
    draw = torch.Generator().manual_seed(6)
    source, target = (torch.randint(5, 300, (1, size), generator=draw) for size in (9, 5))
    with torch.no_grad(), record_attention(ours) as records:
        ours.decode(target, ours.encode(source))
        expected = theirs(input_ids=source, decoder_input_ids=target, output_attentions=True)
    parts = {one.part: one for one in group_records(records, ["s"] * 9, ["t"] * 5)}
    assert set(parts) == {"encoder", "decoder", "cross"}
    check(parts["encoder"].layers, expected.encoder_attentions)
    check(parts["decoder"].layers, expected.decoder_attentions)
    check(parts["cross"].layers, expected.cross_attentions)
    assert parts["cross"].lookers == ("t",) * 5
    assert parts["cross"].looked_at == ("s",) * 9


def test_a_view_is_narrowed_to_a_layer_and_a_head(mini: Opened) -> None:
    view = look(mini, TEXT)
    one = view.select(layer=1, head=0)
    assert_close(one.parts[0].layers[0][0], view.parts[0].layers[1][0])
    with pytest.raises(UserError, match="numbered from 0 to 1"):
        view.select(layer=2)
    with pytest.raises(UserError, match="numbered from 0 to 1"):
        view.select(head=5)
    with pytest.raises(UserError, match="it has: self"):
        view.select(part="cross")


@pytest.mark.parametrize(
    "text, target, said",
    [
        ("", None, "empty"),
        (" \n", None, "empty"),
        ("palabra " * 200, None, "at most 128"),
        ("a", "b", "no decoder"),
    ],
)
def test_what_cannot_be_looked_at_is_told(mini: Opened, text: str, target: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        look(mini, text, target)


def test_a_folder_is_a_model_too(tiny_model_files: Mapping[str, bytes], tmp_path: Path) -> None:
    for name, data in tiny_model_files.items():
        (tmp_path / name).write_bytes(data)
    opened = open_to_look(Workspace.open(tmp_path / "ws"), str(tmp_path))
    assert isinstance(opened.tokenizer, Tokenizer)
    assert look(opened, "ñ").parts[0].heads == 2
    with pytest.raises(UserError, match=r"config\.json"):
        open_to_look(Workspace.open(tmp_path / "ws"), "./nothing-here")


def test_habits_tell_where_a_head_looks() -> None:
    back = torch.eye(6).roll(-1, 1)
    back[0] = torch.eye(6)[0]
    before = habit_of(back)
    assert (before.before, before.itself, before.first) == (1, 0, pytest.approx(1 / 5))
    itself = habit_of(torch.eye(6))
    assert (itself.itself, itself.entropy_bits) == (1, 0)
    wide = habit_of(torch.full((4, 8), 1 / 8), own_text=False)
    assert wide.itself is None
    assert wide.entropy_bits == pytest.approx(3)


@pytest.mark.parametrize("layers, heads, tokens", [(12, 12, 10), (1, 1, 1), (1, 1, 60), (2, 3, 40)])
def test_every_size_can_be_drawn(layers: int, heads: int, tokens: int) -> None:
    weights = torch.rand(1, heads, tokens, tokens).softmax(-1)
    records = [AttentionRecord(f"layers.{layer}.attention", weights) for layer in range(layers)]
    names = [f"$ñ_{number}" for number in range(tokens)]
    view = AttentionView("m", group_records(records, names))
    width, height = draw_attention(view).get_size_inches()
    assert max(width, height) < 30
    assert json.dumps(view.as_dict())
