from pathlib import Path

import pytest
import yaml

from yunque.apps.definition import read_definition
from yunque.apps.kept import add_app
from yunque.errors import UserError
from yunque.guard import open_app
from yunque.workspace import Workspace

_GOOD = {
    "name": "a",
    "prompt": {"user": {"en": "Say: {{ question }}"}},
    "guards": [{"check": "length", "stages": ["input"]}],
}


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": "red"}, "colour"),
        ({"prompt": {"user": {"fr": "x"}}}, "prompt.user.fr"),
        ({"prompt": {"user": {"en": "{{ question"}}}, "prompt.user.en"),
        ({"prompt": {"user": {"en": "{{ secrets }}"}}}, "secrets"),
        ({"guards": [{"check": "luck", "stages": ["input"]}]}, "guards.0.check"),
        ({"guards": []}, "guards"),
        ({"generation": {"temperature": 9}}, "generation.temperature"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = _file(tmp_path, yaml.safe_dump({**_GOOD, **change}))
    with pytest.raises(UserError, match=r"a\.yaml") as caught:
        read_definition(path)
    assert told in str(caught.value)


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.yaml:3"):
        read_definition(_file(tmp_path, "name: a\nprompt: [\n"))


def test_an_app_on_an_index_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, yaml.safe_dump({**_GOOD, "knowledge": {"index": "nowhere"}}))
    with pytest.raises(UserError, match="nowhere"):
        add_app(Workspace.open(tmp_path / "ws"), path)


def test_an_app_without_knowledge_says_that_it_needs_a_model(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    add_app(workspace, _file(tmp_path, yaml.safe_dump(_GOOD)))
    with pytest.raises(UserError, match="needs a model"):
        open_app(workspace, "a").answer("Hello there")
