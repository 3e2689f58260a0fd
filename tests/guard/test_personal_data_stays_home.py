"""Personal data in a question reaches neither the log nor a remote model, and comes back in the answer."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from yunque.apps.kept import add_app
from yunque.guard import open_app
from yunque.llm import Message, ScriptedModel
from yunque.workspace import Workspace, read_calls

SECRETS = {"mail": "lucia.perez@correo.example", "nif": "12345678Z", "card": "4111 1111 1111 1111"}
QUESTION = f"Translate: my mail is {SECRETS['mail']}, my NIF {SECRETS['nif']}, my card {SECRETS['card']}."


def _translates(messages: Sequence[Message]) -> str:
    return messages[-1].content.removeprefix("To Spanish: ").replace("my mail is", "mi correo es")


def _app_file(tmp_path: Path, checks: list[str]) -> Path:
    values = {
        "name": "t",
        "prompt": {"user": {"en": "To Spanish: {{ question }}"}},
        "guards": [{"check": check, "stages": ["input", "output"]} for check in checks],
    }
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def _bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_it_is_put_back_for_the_user_and_nowhere_else(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    add_app(workspace, _app_file(tmp_path, ["personal_data"]))
    remote = ScriptedModel(_translates, name="far", local=False)
    answer = open_app(workspace, "t", remote).answer(QUESTION)
    assert "mi correo es" in answer.text
    sent = " ".join(message.content for message in remote.asked[0])
    kept = _bytes_of(workspace.root)
    for secret in SECRETS.values():
        assert secret in answer.text
        assert secret not in sent
        assert secret.encode() not in kept
    (call,) = read_calls(workspace.catalog.connection(), number=answer.call_id)
    assert "my mail is" in call.question
    assert any(verdict["outcome"] == "redact" for verdict in call.details["verdicts"])


def test_the_log_is_clean_even_when_the_app_does_not_list_the_check(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    add_app(workspace, _app_file(tmp_path, ["length"]))
    local = ScriptedModel(_translates)
    open_app(workspace, "t", local).answer(QUESTION)
    # The policy asks for the check where the list of guards does not.
    assert SECRETS["mail"] not in local.asked[0][-1].content
    for secret in SECRETS.values():
        assert secret.encode() not in _bytes_of(workspace.root)


@pytest.mark.parametrize("leaked", ["Write to ana.gomez@otra.example", "Su NIF es 87654321X"])
def test_other_peoples_data_does_not_come_out_of_a_model(tmp_path: Path, leaked: str) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    add_app(workspace, _app_file(tmp_path, ["personal_data"]))
    answer = open_app(workspace, "t", ScriptedModel([leaked])).answer("Who should I write to?")
    assert leaked.split()[-1] not in answer.text
    assert answer.verdicts[-1].outcome == "redact"
