"""Text that a model writes itself: the same at every call, and after a stop."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from yunque.errors import UserError
from yunque.model import CausalModel, load_model, new_model
from yunque.model.checkpoint import parse_configuration
from yunque.tokenizer import Tokenizer
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
