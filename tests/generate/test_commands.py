"""The commands of tokenizer, model and generation, from data to text."""

import json

import pytest
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source
from yunque.errors import UserError
from yunque.workspace import Workspace

SHAPE = [
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.layers=1",
    "model.heads=2",
    "model.context=48",
]


@pytest.fixture
def yunque(tmp_path, monkeypatch):
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))

    def call(*arguments: str, stdin: str | None = None) -> str:
        result = CliRunner().invoke(app, arguments, input=stdin)
        if isinstance(result.exception, UserError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def add_data() -> None:
    def rows(split: str) -> list[Row]:
        source = Source("f.md", "0" * 64, "line 1")
        return [
            Row(f"{split}{n}", f"El perro {n} duerme en la casa número {n}.", "es", source, "g")
            for n in range(40)
        ]

    splits = {split: rows(split) for split in ("train", "validation", "test")}
    write_dataset(Workspace.open(), "docs", splits, card={}, parents=[], config={})


def test_from_data_to_text(yunque) -> None:
    add_data()
    made = json.loads(yunque("tokenizer", "train", "--data", "docs", "--vocab-size", "300", "--json"))
    assert made["ref"] == "tokenizer/tokenizer@1"

    shown = json.loads(yunque("tokenizer", "show", "tokenizer", "--json", stdin="El niño\n"))
    assert shown["round_trip"] and shown["count"] == len(shown["tokens"])
    assert bytes.fromhex("".join(token["bytes"] for token in shown["tokens"])).decode() == "El niño\n"
    drawn = yunque("tokenizer", "show", "tokenizer", "--text", "El niño <|end|>\n")
    assert "·" in drawn and "⏎" in drawn and str(shown["tokens"][0]["id"]) in drawn

    plan = json.loads(yunque("train", *SHAPE, "--steps", "3", "--plan", "--json"))
    assert plan["steps"] == 3 and plan["expected_seconds"] > 0
    assert not list(Workspace.open().list("model"))

    model = json.loads(yunque("train", *SHAPE, "--steps", "3", "--name", "m", "--json"))
    assert model["ref"] == "model/m@1" and model["config"]["model"]["context"] == 48

    small = json.loads(yunque("quantize", "m", "--json"))
    assert small["ref"] == "model/m-int8@1"
    assert small["figures"]["bytes_after"] < small["figures"]["bytes_before"]
    assert "perplexity" in yunque("quantize", "m")

    for name in ("m", "m-int8"):
        answer = json.loads(yunque("generate", name, "El perro", "--max-new-tokens", "5", "--json"))
        assert answer["completion_tokens"] <= 5 and answer["finish_reason"] in ("stop", "length")
        plain = yunque("generate", name, "--max-new-tokens", "5", stdin="El perro")
        assert plain == answer["text"] + "\n"
    yunque("generate", "m", "hola", "--chat", "--max-new-tokens", "2", "--temperature", "1", "--seed", "1")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "yunque tokenizer train"),
        (["train", "--steps", "1", "--seconds", "1"], "exclude each other"),
        (["train", "model.layers=0"], "model.layers"),
        (["tokenizer", "train"], "--data"),
        (["tokenizer", "train", "--data", "nothing"], "no dataset 'nothing'"),
        (["generate", "nothing", "x"], "no model 'nothing'"),
        (["generate", "nothing", "x", "--temperature", "9"], "temperature"),
        (["quantize", "nothing"], "no model 'nothing'"),
    ],
)
def test_mistakes_are_one_clear_sentence(yunque, arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        yunque(*arguments)
