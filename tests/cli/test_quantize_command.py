"""`yunque quantize`, as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source
from yunque.errors import UserError
from yunque.workspace import Workspace

TEXT = "Cada pasajero puede llevar una maleta de 23 kg. Each passenger may take one suitcase. ¿Qué opina?\n"


@pytest.fixture
def yunque(tmp_path, monkeypatch, put_tiny_model):
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    put_tiny_model(Workspace.open())

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def rows(split: str, **fields: Any) -> list[Row]:
    source = Source("f.md", "0" * 64, "line 1")
    return [Row(f"{split}{n}", f"{n}: {TEXT * 3}", "es", source, "g", fields) for n in range(4)]


def add_data(
    name: str = "docs", splits: tuple[str, ...] = ("train", "validation", "test"), **fields: Any
) -> None:
    splitted = {split: rows(split, **fields) for split in splits}
    write_dataset(Workspace.open(), name, splitted, card={}, parents=[], config={})


@pytest.mark.parametrize("kind", ["int8", "int4", "float16", "bfloat16"])
def test_a_model_without_data_is_quantized_and_perplexity_is_not_claimed(yunque, kind: str) -> None:
    made = json.loads(yunque("quantize", "mini", "--to", kind, "--json"))
    figures = made["figures"]
    assert made["ref"] == f"model/mini-{kind}@1" and made["parents"] == ["model/mini@1"]
    assert figures["perplexity_before"] is None and figures["measured_on"] == []
    assert figures["bytes_after"] < figures["bytes_before"]
    assert 0 < figures["output_error"] < 0.5
    assert figures["layers"] == 15 and len(figures["worst_layers"]) == 8
    errors = [layer["output_error"] for layer in figures["worst_layers"]]
    assert errors == sorted(errors, reverse=True)
    artifact = Workspace.open().get(made["ref"], "model")
    lines = Workspace.open().file(artifact, "quantization.jsonl").read_text().splitlines()
    assert len(lines) == 15
    assert "tokenizer.json" in artifact.files
    answer = json.loads(yunque("generate", made["ref"], "Cada", "--max-new-tokens", "4", "--json"))
    assert answer["completion_tokens"] <= 4


def test_perplexity_is_that_of_the_text_that_was_named(yunque, tmp_path: Path) -> None:
    text = tmp_path / "té.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    made = json.loads(yunque("quantize", "mini", "--text", str(text), "--json"))["figures"]
    assert made["measured_on"] == [str(text)]
    assert made["perplexity_after"] == pytest.approx(made["perplexity_before"], rel=0.01)
    assert made["perplexity_change"] == made["perplexity_after"] / made["perplexity_before"] - 1 != 0
    shown = yunque("quantize", "mini", "--text", str(text))
    assert "perplexity on" in shown and "layers.0.feed_forward.down" in shown


def test_int4_is_rounded_for_training_rows_and_measured_on_others(yunque) -> None:
    add_data()
    add_data("whole", ("rows",))
    made = json.loads(yunque("quantize", "mini", "--to", "int4", "--data", "docs", "--json"))
    assert made["config"]["rounded_for"] == "training rows" and made["config"]["group_size"] == 64
    assert made["figures"]["measured_on"] == ["dataset/docs@1"]
    alone = json.loads(yunque("quantize", "mini", "--to", "int4", "--data", "whole", "--json"))
    assert alone["config"]["rounded_for"] == "own text"
    assert alone["figures"]["perplexity_before"] > 1


def test_an_encoder_decoder_is_measured_on_pairs_only(yunque) -> None:
    import torch

    from yunque.model import new_model, save_model
    from yunque.model.checkpoint import parse_configuration

    workspace = Workspace.open()
    tokenizer = workspace.file(workspace.get("mini", "model"), "tokenizer.json")
    fields = {"model_type": "t5", "vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1}
    model = new_model(parse_configuration(fields | {"num_heads": 4}, "t5"), torch.Generator().manual_seed(0))
    workspace.put("model", "t5", {**save_model(model), "tokenizer.json": tokenizer})
    add_data()
    add_data("pairs", source="una maleta", target="one suitcase")
    for kind in ("int8", "int4"):
        pairs = json.loads(yunque("quantize", "t5", "--to", kind, "--data", "pairs", "--json"))["figures"]
        assert pairs["perplexity_after"] == pytest.approx(pairs["perplexity_before"], rel=0.05)
        plain = json.loads(yunque("quantize", "t5", "--to", kind, "--data", "docs", "--json"))["figures"]
        assert plain["perplexity_before"] is None and plain["output_error"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "no model 'nothing'"),
        (["mini", "--to", "int3"], "int8, int4, float16, bfloat16"),
        (["mini", "--to", "int4", "--group-size", "48"], "32, 64 or 128"),
        (["mini", "--group-size", "64"], "--group-size is for --to int4"),
        (["mini", "--data", "nothing"], "no dataset 'nothing'"),
        (["mini", "--text", "nothing.txt"], "nothing.txt: cannot be read"),
        (["mini", "--text", "{empty}"], "holds no text"),
        (["mini", "--text", "{bytes}"], "is not UTF-8"),
        (["mini", "--text", "{empty}", "--data", "x"], "exclude each other"),
        (["mini", "--name", "Ñandú!"], "name"),
        (["mini-int8"], "quantized already"),
    ],
)
def test_mistakes_are_one_clear_sentence(yunque, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    if arguments == ["mini-int8"]:
        yunque("quantize", "mini")
    places = {name: str(tmp_path / name) for name in ("empty", "bytes")}
    with pytest.raises(UserError, match=sentence):
        yunque("quantize", *[argument.format(**places) for argument in arguments])
