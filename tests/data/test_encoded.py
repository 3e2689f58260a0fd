"""Texts are encoded once: the second time they come from the cache, whatever happened to it."""

from pathlib import Path

import numpy as np
import pytest

from yunque.data import encoded as module
from yunque.data.encoded import EncodedTexts, encode_texts, encoded_texts
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace

TEXTS = ["El niño duerme.", "A ship comes home.", "ñandú " * 30]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def dataset(workspace: Workspace, texts: list[str], name: str = "rows") -> Artifact:
    rows = [
        InstructionRow(f"r{number}", "copy", "es", "t", text, "", "sí") for number, text in enumerate(texts)
    ]
    return write_instructions(workspace, name, {"train": rows})


def tokenizer(size: int = 300) -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, size)


class Counting:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        real = encode_texts

        def counted(*given: object) -> EncodedTexts:
            self.calls += 1
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "encode_texts", counted)


def same(one: EncodedTexts, other: EncodedTexts) -> None:
    assert one.row_ids == other.row_ids
    assert np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.starts, other.starts)


def test_the_second_time_texts_are_not_encoded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counting = dataset(workspace, TEXTS), Counting(monkeypatch)
    first = encoded_texts(workspace, rows, tokenizer())
    second = encoded_texts(workspace, rows, tokenizer())
    assert counting.calls == 1
    same(first, second)
    assert [tokenizer().decode(ids.tolist()) for ids in second.documents()] == [
        f"{text}\n\nsí" for text in TEXTS
    ]
    # The same content under another name is the same; other content, and another tokenizer, are not.
    encoded_texts(workspace, dataset(workspace, TEXTS, "again"), tokenizer())
    assert counting.calls == 1
    encoded_texts(workspace, dataset(workspace, [*TEXTS, "más"]), tokenizer())
    encoded_texts(workspace, rows, tokenizer(265))
    assert counting.calls == 3


@pytest.mark.parametrize("file", ["tokens.npy", "starts.npy", "rows.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "garbage"])
def test_a_damaged_cache_is_made_anew(workspace: Workspace, file: str, harm: str) -> None:
    rows = dataset(workspace, TEXTS)
    first = encoded_texts(workspace, rows, tokenizer())
    expected = EncodedTexts(list(first.row_ids), first.tokens.copy(), first.starts.copy())
    (path,) = (workspace.root / "cache").rglob(file)
    content = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(content[:-4] if harm == "cut" else b"\x00" * len(content))
    same(encoded_texts(workspace, rows, tokenizer()), expected)
    same(encoded_texts(workspace, rows, tokenizer()), expected)


def test_what_was_used_longest_ago_makes_room(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1)
    for number in range(3):
        encoded_texts(workspace, dataset(workspace, [f"texto {number}"]), tokenizer())
    assert len(list((workspace.root / "cache" / "encoded").iterdir())) == 1
    counting = Counting(monkeypatch)
    encoded_texts(workspace, dataset(workspace, ["texto 2"]), tokenizer())
    assert counting.calls == 0


def test_what_another_process_is_writing_is_left_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1)
    writing = workspace.root / "cache" / "encoded" / ".other.tmp"
    writing.mkdir(parents=True)
    (writing / "tokens.npy").write_bytes(b"half")
    for number in range(2):
        encoded_texts(workspace, dataset(workspace, [f"texto {number}"]), tokenizer())
    assert (writing / "tokens.npy").read_bytes() == b"half"


def test_rows_without_text_are_passed_over() -> None:
    encoded = encode_texts(tokenizer(), [("a", ""), ("b", "uno"), ("c", "")])
    assert encoded.row_ids == ["b"]
    assert len(list(encoded.documents())) == 1
    assert list(encode_texts(tokenizer(), []).documents()) == []
