import json
from pathlib import Path

import pytest
from foreign_tokenizers import write_foreign
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.errors import UserError
from yunque.tokenizer import Tokenizer, costs, open_tokenizer, sample_texts, tokenizer_of
from yunque.workspace import Workspace


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def yunque(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["tokenizer", *arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_cost_is_counted_as_one_would_by_hand() -> None:
    tokenizer = Tokenizer.train(["hola hola adiós"] * 5, 300)
    found = costs({"ours": tokenizer}, {"a": "hola hola", "b": "¡…!", "c": ""})
    assert [(one.words, one.bytes) for one in found] == [(2, 9), (0, 6), (0, 0)]
    assert found[0].tokens == len(tokenizer.encode("hola hola"))
    assert found[0].tokens_per_word == found[0].tokens / 2
    assert found[0].bytes_per_token == 9 / found[0].tokens
    assert (found[1].tokens_per_word, found[2].bytes_per_token) == (None, None)
    assert all(one.round_trip for one in found)


def test_a_language_that_a_tokenizer_has_learned_is_cheaper() -> None:
    texts = sample_texts()
    assert list(texts) == ["Spanish", "English", "code"]
    by_language = {name: Tokenizer.train([text], 600) for name, text in texts.items()}
    found = {(one.tokenizer, one.text): one.tokens for one in costs(by_language, texts)}
    for learned in texts:
        assert all(found[learned, learned] < found[other, learned] for other in texts if other != learned)


def test_a_foreign_tokenizer_is_kept_with_what_was_told_beside_it(here: Path) -> None:
    folder = write_foreign(here / "theirs", pad_token="<|endoftext|>")
    made = json.loads(yunque("import", str(folder), "--name", "theirs", "--json"))
    assert made["ref"] == "tokenizer/theirs@1"
    assert made["figures"]["vocab_size"] == 405
    assert yunque("import", str(folder), "--name", "theirs").startswith("tokenizer/theirs@1: 405 tokens")
    workspace = Workspace.open()
    kept, original = tokenizer_of(workspace, workspace.get("theirs")), Tokenizer.load(folder)
    talk = [("user", "niña"), ("assistant", "sí")]
    assert kept.encode_chat(talk, True) == original.encode_chat(talk, True)
    assert (kept.end_id, kept.pad_id) == (402, 400)
    listed = json.loads(yunque("list", "--json"))
    assert [one["ref"] for one in listed] == ["tokenizer/theirs@1"]
    assert "theirs" in yunque("list")


def test_compare_takes_names_and_paths_and_texts_and_files(here: Path) -> None:
    folder = write_foreign(here / "theirs")
    yunque("import", str(folder), "--name", "theirs")
    (here / "niño.txt").write_text("El niño viaja.", encoding="utf-8")
    texts = ("--text", "niño.txt", "--text", "hola, ¿qué tal?", "--text", "")
    found = json.loads(yunque("compare", "theirs", "./theirs", *texts, "--json"))
    assert [one["tokenizer"] for one in found] == ["tokenizer/theirs@1", "./theirs"] * 3
    assert [one["text"] for one in found[::2]] == ["niño.txt", "hola, ¿qué tal?", ""]
    assert all(a["tokens"] == b["tokens"] for a, b in zip(found[::2], found[1::2], strict=True))
    drawn = yunque("compare", "theirs")
    assert all(word in drawn for word in ("Spanish", "English", "code", "tokens per word"))
    shown = json.loads(yunque("show", "theirs/tokenizer.json", "--text", "Él <|im_end|>", "--json"))
    assert shown["round_trip"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("compare", "nobody"), "no tokenizer 'nobody'"),
        (("compare", "./nobody"), "no such file or folder"),
        (("show", "./empty", "--text", "x"), "no tokenizer there"),
        (("import", "nowhere", "--name", "x"), "no such file or folder"),
        (("import", "bad.tiktoken", "--name", "x"), "line 1"),
        (("compare", "theirs/tokenizer.json", "--text", "bad.txt"), "UTF-8"),
    ],
)
def test_mistakes_are_one_sentence(here: Path, arguments: tuple[str, ...], sentence: str) -> None:
    write_foreign(here / "theirs")
    (here / "empty").mkdir()
    (here / "bad.tiktoken").write_text("¡hola!")
    (here / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=sentence) as caught:
        yunque(*arguments)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_workspace_goes_before_a_folder(here: Path) -> None:
    folder = write_foreign(here / "theirs")
    assert open_tokenizer("theirs")[0] == "theirs"
    yunque("import", str(folder), "--name", "theirs")
    assert open_tokenizer("theirs")[0] == "tokenizer/theirs@1"
    assert open_tokenizer("./theirs")[0] == "./theirs"
