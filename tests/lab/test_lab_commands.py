"""`yunque lab` as a user has it: pictures, JSON, mistakes in one sentence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.cli.main import app, run
from yunque.workspace import Workspace


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_tiny_model):
    """Calls `yunque lab ...` in a folder of its own, where the model `mini` is."""
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    put_tiny_model(Workspace.open(), "mini")

    def call(*arguments: str):
        result = CliRunner().invoke(app, ["lab", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return call


COMMANDS = {
    "bits": ("3.141592",),
    "positions": ("--positions", "9", "--size", "8"),
    "temperature": ("mini", "¿Qué opina la niña?"),
    "embeddings": ("mini", "maleta", "niña"),
    "attention": ("mini", "La niña lleva $5"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_picture_is_made_and_its_name_told(command: str, lab) -> None:
    result = lab(command, *COMMANDS[command])
    assert f"picture: lab-{command}.png" in result.stderr
    assert Path(f"lab-{command}.png").read_bytes().startswith(b"\x89PNG")
    assert result.stdout.strip()
    lab(command, *COMMANDS[command], "--out", "Mapa año.svg")
    assert "<svg" in Path("Mapa año.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_json_draws_only_when_asked_to(command: str, lab) -> None:
    facts = json.loads(lab(command, *COMMANDS[command], "--json").stdout)
    assert facts["picture"] is None
    assert list(Path.cwd().iterdir()) == []
    facts = json.loads(lab(command, *COMMANDS[command], "--json", "--out", "a.png").stdout)
    assert facts["picture"] == "a.png"
    assert Path("a.png").is_file()


def test_the_bits_of_the_classroom_are_on_the_screen(lab) -> None:
    shown = lab("bits", "3.141592").stdout
    assert "0 10000000 10010010000111111011000" in shown
    assert "0 10000 1001001000" in shown


@pytest.mark.parametrize(
    "arguments", [("-2.5",), ("--", "-2.5"), ("-2,5",), ("−2.5",), ("-2.5", "--largest", "4")]
)
def test_a_negative_number_is_a_number_and_no_option(arguments: tuple[str, ...], lab) -> None:
    formats = json.loads(lab("bits", "--json", *arguments).stdout)["formats"]
    assert (formats[0]["sign"], formats[0]["value"]) == ("1", -2.5)


def test_a_decimal_comma_is_told(lab) -> None:
    assert "decimal mark" in lab("bits", "3,141592").stderr


def test_the_values_in_json_are_exact_and_nothing_is_not_a_number(lab) -> None:
    said = lab("bits", "--json", "1e39").stdout
    assert "NaN" not in said
    assert "Infinity" not in said
    single, half, *_ = json.loads(said)["formats"]
    assert (single["what"], single["value"], half["error"]) == ("infinity", None, None)


def test_cut_tokens_are_told(lab) -> None:
    shown = lab("temperature", "mini", "La niña", "--temperatures", "0,0.7", "--top-k", "2").stdout
    assert "T = 0:" in shown
    assert "greedy" in shown
    assert "cut" in shown
    facts = json.loads(lab("temperature", "mini", "La niña", "--top-k", "2", "--json").stdout)
    assert [one["tokens_kept"] for one in facts["temperatures"]] == [2] * 4


def test_one_head_is_drawn_on_the_screen(lab) -> None:
    shown = lab("attention", "mini", "La niña", "--layer", "1", "--head", "1").stdout
    assert "layer 1, head 1" in shown
    assert "█" in shown


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["bits", "tres"], "'tres' is not a number"),
        (["bits", "1", "--out", "a.pdf"], "ends in .png or .svg"),
        (["bits", "1", "--out", "nowhere/a.png"], "there is no folder nowhere"),
        (["bits", "1", "--largest", "0"], "above 0"),
        (["positions", "--kind", "learned"], "sinusoid, rotary"),
        (["positions", "--size", "7"], "odd"),
        (["attention", "nobody", "hola"], "no model 'nobody'"),
        (["attention", "mini", " "], "the text is empty"),
        (["attention", "mini", "palabra " * 200], "at most 128"),
        (["attention", "mini", "hola", "--layer", "7"], "numbered from 0 to 1"),
        (["attention", "./nowhere", "hola"], "no config.json"),
        (["temperature", "mini", ""], "the prompt is empty"),
        (["temperature", "mini", "hola", "--temperatures", "a"], "not numbers"),
        (["temperature", "mini", "hola", "--temperatures", "3"], "temperature"),
        (["embeddings", "mini", ""], "a word is empty"),
        (["embeddings", "mini", "a", "--sentences"], "is no encoder"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, lab, capsys: pytest.CaptureFixture[str]
) -> None:
    del lab
    with pytest.raises(SystemExit) as stopped:
        run(["lab", *arguments])
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert list(Path.cwd().iterdir()) == []
