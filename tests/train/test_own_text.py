"""Text that a model writes itself: the same at every call, and after a stop."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from yunque.errors import UserError
from yunque.model import CausalModel, load_model, new_model
from yunque.model.checkpoint import parse_configuration
from yunque.tokenizer import Tokenizer
from yunque.train import own_text
from yunque.train.own_text import own_documents

TOKENS = 5_000


@pytest.fixture
def model(tmp_path: Path, tiny_model_files: Mapping[str, bytes]) -> CausalModel:
    for name, content in tiny_model_files.items():
        (tmp_path / name).write_bytes(content)
    torch.set_num_threads(1)
    return load_model(tmp_path, torch.float32, CausalModel)


@pytest.fixture
def tokenizer(tmp_path: Path, model: CausalModel) -> Tokenizer:
    del model
    return Tokenizer.load(tmp_path / "tokenizer.json")


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_a_model_writes_the_same_text_again(tmp_path: Path, model: CausalModel, tokenizer: Tokenizer) -> None:
    keys, documents = own_documents(folder(tmp_path, "a"), model, tokenizer, TOKENS, seed=1)
    assert sum(map(len, documents)) >= TOKENS and len(keys) == len(documents)
    assert own_documents(folder(tmp_path, "b"), model, tokenizer, TOKENS, seed=1) == (keys, documents)
    # The control: another seed gives another text.
    assert own_documents(folder(tmp_path, "c"), model, tokenizer, TOKENS, seed=2)[1] != documents
    # Marks of the chat format and the end never stand in a text.
    never = {*tokenizer.mark_ids, *tokenizer.end_ids}
    assert all(never.isdisjoint(ids) for ids in documents)
    assert model.training is False


def test_writing_goes_on_after_a_stop_with_the_same_text(
    tmp_path: Path, model: CausalModel, tokenizer: Tokenizer
) -> None:
    whole = own_documents(folder(tmp_path, "whole"), model, tokenizer, TOKENS, seed=3)
    lines = (tmp_path / "whole" / "own_text.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) >= 2
    cut = folder(tmp_path, "cut")
    (cut / "own_text.jsonl").write_text(lines[0] + lines[1][: len(lines[1]) // 2])
    assert own_documents(cut, model, tokenizer, TOKENS, seed=3) == whole
    assert (cut / "own_text.jsonl").read_text() == "".join(lines)
    # What is there is not written a second time.
    (cut / "own_text.jsonl").write_text(json.dumps([[7] * TOKENS]) + "\n")
    assert own_documents(cut, model, tokenizer, TOKENS, seed=3)[1] == [[7] * TOKENS]


def test_an_encoder_decoder_is_told_that_it_writes_no_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    fields = {"model_type": "t5", "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
    config = parse_configuration({**fields, "num_heads": 2, "decoder_start_token_id": 0}, "here")
    with pytest.raises(UserError, match="replay_data"):
        own_documents(tmp_path, new_model(config, torch.Generator()), tokenizer, 10, 0)


def muted(model: CausalModel, tokenizer: Tokenizer) -> CausalModel:
    """A model that ends every text before its first token."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        scores = torch.full((*hidden.shape[:-1], model.config.vocab_size), -1e9)
        scores[..., tokenizer.end_id] = 0.0
        return scores

    model.logits = logits
    return model


def test_a_model_that_writes_nothing_by_itself_is_told(
    tmp_path: Path, model: CausalModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UserError, match=r"writes nothing by itself.*replay_data"):
        own_documents(folder(tmp_path, "mute"), muted(model, tokenizer), tokenizer, TOKENS, seed=0)
    # After a stop it is told at once.
    assert len((tmp_path / "mute" / "own_text.jsonl").read_text().splitlines()) == 8


def test_a_damaged_line_ends_what_is_read_back(
    tmp_path: Path, model: CausalModel, tokenizer: Tokenizer
) -> None:
    whole = own_documents(folder(tmp_path, "whole"), model, tokenizer, TOKENS, seed=3)
    content = (tmp_path / "whole" / "own_text.jsonl").read_bytes()
    first, second, _ = content.split(b"\n", 2)
    for number, damaged in enumerate((b"\0" * len(second), b"[[1.5]]", b"7", b"[[1], {}]", b"\xff")):
        holed = folder(tmp_path, f"holed-{number}")
        (holed / "own_text.jsonl").write_bytes(first + b"\n" + damaged + b"\n" + second + b"\n")
        assert own_documents(holed, model, tokenizer, TOKENS, seed=3) == whole
        assert (holed / "own_text.jsonl").read_bytes() == content


def test_what_is_kept_is_not_lost_where_the_process_dies_at_its_start(
    tmp_path: Path, model: CausalModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder(tmp_path, "kept")
    own_documents(place, model, tokenizer, 10, seed=3)
    content = (place / "own_text.jsonl").read_text()
    assert content

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(own_text, "_written", die)
    with pytest.raises(KeyboardInterrupt):
        own_documents(place, model, tokenizer, TOKENS, seed=3)
    assert (place / "own_text.jsonl").read_text() == content


def test_of_several_processes_one_writes_the_text(
    tmp_path: Path, model: CausalModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process does not touch the file: it is given what the first one made."""
    kept = own_documents(folder(tmp_path, "first"), model, tokenizer, TOKENS, seed=1)
    made = [json.loads(line) for line in (tmp_path / "first" / "own_text.jsonl").read_text().splitlines()]
    monkeypatch.setattr(own_text, "first_makes", lambda _, kind: TypeAdapter(kind).validate_python(made))
    other = folder(tmp_path, "other")
    assert own_documents(other, model, tokenizer, TOKENS, seed=1) == kept
    assert list(other.iterdir()) == []
