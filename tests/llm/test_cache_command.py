"""`yunque cache`: what is kept, and forgetting a person."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yunque.cli.cache import app
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ScriptedModel
from yunque.llm.cache import CachedModel
from yunque.llm.routing import open_cache
from yunque.workspace import Workspace

EMAIL = "ana.perez@example.com"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "w"))
    return Workspace.open(tmp_path / "w")


def told(*arguments: str) -> dict[str, int]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def fill(workspace: Workspace) -> None:
    for subject, text in (("key/ana", "hola"), ("", f"escribe a {EMAIL}"), ("", "adiós")):
        model = CachedModel(ScriptedModel(lambda _: "vale", "m"), open_cache(workspace), "k", subject)
        model.chat([Message("user", text)], GenerationConfig(max_new_tokens=9))


def test_answers_about_a_person_are_forgotten_by_what_they_are_called(workspace: Workspace) -> None:
    fill(workspace)
    assert told("show")["answers"] == 3
    assert told("forget", "key/ana") == {"forgotten": 1}
    assert told("forget", EMAIL) == {"forgotten": 1}
    assert told("forget", "nobody@example.com") == {"forgotten": 0}
    assert told("show")["answers"] == 1
    assert told("clear") == {"erased": 1}
    assert told("show") == {"answers": 0, "bytes": 0, "oldest": "", "newest": ""}


def test_who_was_forgotten_does_not_stand_in_the_record(workspace: Workspace) -> None:
    fill(workspace)
    told("forget", EMAIL)
    assert not any(
        EMAIL.encode() in path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()
    )


def test_nobody_is_nobody(workspace: Workspace) -> None:
    del workspace
    with pytest.raises(UserError, match="whose"):
        CliRunner().invoke(app, ["forget", " "], catch_exceptions=False)
