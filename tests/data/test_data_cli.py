"""`yunque data` as it is typed."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.cli.data import app
from yunque.errors import UserError

runner = CliRunner()


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))


@pytest.fixture
def corpus(documents: Path) -> Path:
    for number in range(8):
        (documents / f"{number}.md").write_text(
            f"# Título {number}\n\nEl texto {number} de ana{number}@correo.es."
        )
    return documents


def test_add_show_anonymize_split_list(corpus: Path) -> None:
    added = runner.invoke(app, ["add", str(corpus), "--name", "notas", "--keep-personal-data", "--json"])
    assert added.exit_code == 0
    assert json.loads(added.stdout)["card"]["personal_data"] == {"found": {"EMAIL": 8}, "replaced": False}
    clean = json.loads(runner.invoke(app, ["anonymize", "notas", "--json"]).stdout)
    assert clean["card"]["personal_data"] == {"found": {"EMAIL": 8}, "replaced": True}
    divided = json.loads(
        runner.invoke(
            app, ["split", "notas", "--train", "0.5", "--validation", "0.25", "--test", "0.25", "--json"]
        ).stdout
    )
    assert sum(counts["rows"] for counts in divided["card"]["splits"].values()) == 8
    shown = json.loads(runner.invoke(app, ["show", "notas@2", "--rows", "2", "--json"]).stdout)
    assert [row["source"]["locator"] for row in shown["rows"]] == ["Título 0", "Título 1"]
    assert "[EMAIL-" in shown["rows"][0]["text"]
    listed = json.loads(runner.invoke(app, ["list", "--json"]).stdout)
    assert [(one["ref"], one["rows"]) for one in listed] == [("dataset/notas@3", 8)]
    drawn = runner.invoke(app, ["show", "notas"])
    assert "split train" in drawn.stdout
    assert "8 EMAIL (replaced by pseudonyms)" in drawn.stdout


def test_skipped_files_are_named_and_the_exit_code_says_so(corpus: Path) -> None:
    (corpus / "roto.pdf").write_bytes(b"no")
    result = runner.invoke(app, ["add", str(corpus), "--name", "notas"])
    assert result.exit_code == 1
    assert "skipped roto.pdf: is not a PDF" in result.stderr.replace("\n", " ")
    assert "roto.pdf" not in result.stdout
    assert "Files read: 8" in result.stdout


def test_settings_come_from_a_file_and_from_options(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("line_characters: 5\n")
    result = runner.invoke(
        app, ["add", str(corpus), "-n", "x", "-c", str(tmp_path / "s.yaml"), "--set", "nada=1"]
    )
    assert isinstance(result.exception, UserError)
    assert "nada" in str(result.exception)


def test_nothing_readable_is_a_mistake_of_the_user(documents: Path) -> None:
    result = runner.invoke(app, ["add", str(documents), "--name", "nada"])
    assert isinstance(result.exception, UserError)


def test_the_command_line_imports_nothing_heavy() -> None:
    import subprocess

    heavy = ("numpy", "pypdf", "docx", "torch", "phonenumbers", "yunque.data.prepare")
    code = f"import sys, yunque.cli.data; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
