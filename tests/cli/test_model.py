"""`yunque model`, as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from yunque.cli.main import run
from yunque.workspace import Artifact, Workspace


@pytest.fixture
def folder(tmp_path: Path, tiny_model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as a folder, and an empty workspace."""
    torch.set_num_threads(1)
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    made = tmp_path / "Niña"
    made.mkdir()
    for name, content in tiny_model_files.items():
        (made / name).write_bytes(content)
    return made


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run([*arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def complained(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run([*arguments])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and "Traceback" not in said.err
    return said.err


def test_in_through_and_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model/mini@1: llama" in told(capsys, "model", "import", str(folder), "--name", "mini")
    shown = told(capsys, "model", "show", "mini")
    assert "layer x 2" in shown and "self_attn.q_proj.weight" in shown and "opens: yes" in shown
    listed = json.loads(told(capsys, "model", "list", "--json"))
    assert listed[0]["ref"] == "model/mini@1" and listed[0]["context"] == 128
    assert "mini@1" in told(capsys, "model", "list")
    written = told(capsys, "model", "export", "mini", str(tmp_path / "out"), "--max-shard-size", "20KB")
    assert "model-00001-of-" in written and "config.json" in written
    facts = json.loads(
        told(capsys, "model", "export", "mini", str(tmp_path / "g"), "--format", "gguf", "--json")
    )
    (packed,) = [path for path in facts["files"] if path.endswith(".gguf")]
    assert "Q8_0" in told(capsys, "model", "show", packed)
    assert "model/again@1" in told(capsys, "model", "import", packed, "--name", "again")
    assert told(capsys, "generate", "again", "maleta", "--max-new-tokens", "3", "--seed", "1")


def test_show_counts_as_the_model_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from yunque.model import load_model

    facts = json.loads(told(capsys, "model", "show", str(folder), "--json"))
    parameters = sum(weight.numel() for weight in load_model(folder).parameters())
    assert facts["parameters"] == parameters == sum(part["parameters"] for part in facts["parts"])
    assert facts["bytes"] == 4 * parameters and facts["dtype"] == "float32"
    assert [part["count"] for part in facts["parts"]] == [1, 2, 1]
    assert facts["parts"][0]["role"] == "embedding" and facts["source"] is None


def test_show_tells_why_a_model_does_not_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "wizard"}))
    facts: dict[str, Any] = json.loads(told(capsys, "model", "show", str(folder), "--json"))
    assert facts["opens"].startswith("no: ") and "'wizard' is not known" in facts["opens"]


def test_a_name_of_the_workspace_goes_before_a_folder(
    folder: Path,
    put_tiny_model: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_tiny_model(Workspace.open(), "mini")
    (folder / "mini").mkdir()
    monkeypatch.chdir(folder)
    assert json.loads(told(capsys, "model", "show", "mini", "--json"))["model"] == "model/mini@1"
    assert "no model here" in complained(capsys, "model", "show", "./mini")


def test_nothing_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del folder
    assert "No models yet" in told(capsys, "model", "list")
    assert json.loads(told(capsys, "model", "list", "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["show", "nothing"], "no model 'nothing'"),
        (["show", ""], "cannot be a name"),
        (["import", "nothing"], "cannot be read"),
        (["import", ""], "name a folder"),
        (["export", "nothing", ""], "no model"),
        (["import", ".", "--tokenizer", "none"], "no model here"),
        (["import", "hf:a/b/c"], "hf:ORG/NAME"),
        (["export", "nothing", "out"], "no model 'nothing'"),
        (["export", "nothing", "out", "--format", "onnx"], "is not hf or gguf"),
        (["export", "nothing", "out", "--max-shard-size", "big"], "a size such as 8GB"),
        (["export", "nothing", "out", "--max-shard-size", "0"], "a size such as 8GB"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    match: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = folder / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    said = complained(capsys, "model", *arguments)
    assert any(part in said for part in match.split("|")), said
