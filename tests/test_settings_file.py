from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.settings_file import SettingsFile


class Check(Settings):
    check: Literal["length", "echo"]
    stages: list[str] = Field(min_length=1)


class Recipe(Settings):
    name: str
    model: str | Check | None = None
    checks: list[Check] = Field(default=[])


def _file(tmp_path: Path, text: str) -> SettingsFile:
    path = tmp_path / "receta.yaml"
    path.write_text(text, encoding="utf-8")
    return SettingsFile(path)


def test_a_right_file_is_its_settings(tmp_path: Path) -> None:
    file = _file(tmp_path, "name: año\nchecks:\n  - {check: echo, stages: [input]}\n")
    assert file.settings(Recipe) == Recipe(name="año", checks=[Check(check="echo", stages=["input"])])


def test_every_mistake_is_told_with_its_line_in_order(tmp_path: Path) -> None:
    text = "modell: mini\nchecks:\n  - check: echo\n    stages: []\n\n  - {check: luck, stages: [input]}\n"
    with pytest.raises(UserError) as caught:
        _file(tmp_path, text).settings(Recipe)
    lines = [line.split(":")[1:3] for line in str(caught.value).splitlines()]
    assert [[int(line), field.strip()] for line, field in lines] == [
        [1, "name"],
        [1, "modell"],
        [4, "checks.0.stages"],
        [6, "checks.1.check"],
    ]
    assert "did you mean model?" in str(caught.value)


def test_a_field_of_a_union_has_its_line_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"receta\.yaml:3: model"):
        _file(tmp_path, "name: a\nmodel:\n  check: luck\n  stages: [input]\n").settings(Recipe)


def test_a_field_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"receta\.yaml:3: name is there twice \(line 1 too\)"):
        _file(tmp_path, "name: a\nmodel: b\nname: c\n")


def test_an_empty_file_lacks_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"receta\.yaml:1: name: is missing"):
        _file(tmp_path, "").settings(Recipe)


def test_a_mistake_that_only_others_can_see_has_its_line(tmp_path: Path) -> None:
    file = _file(tmp_path, "name: a\nchecks:\n  - check: echo\n    stages: [input]\n")
    assert "receta.yaml:4: checks.0.stages.0: wrong" in str(file.mistake(("checks", 0, "stages", 0), "wrong"))
    assert "receta.yaml:1: model: wrong" in str(file.mistake(("model",), "wrong"))
