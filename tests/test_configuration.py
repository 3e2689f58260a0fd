"""Configuration: defaults, then a file, then options, then overrides; every mistake named."""

from pathlib import Path

import pytest

from yunque.configuration import Settings, resolve
from yunque.errors import UserError


class _Shape(Settings):
    layers: int = 2
    heads: int = 4


class _Run(Settings):
    name: str = "mini"
    rate: float = 1e-3
    shape: _Shape = _Shape()


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: filed\nrate: 0.1\nshape:\n  layers: 3\n")
    found = resolve(_Run, file, ["shape.heads=8", "rate=0.3"], name="typed", rate=0.2)
    assert found == _Run(name="typed", rate=0.3, shape=_Shape(layers=3, heads=8))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("shape.layer=3", "shape.layer: Extra inputs"),
        ("rate=fast", "rate: Input should be a valid number"),
        ("name.x=1", "name: Input should be a valid string"),
        ("rate=.inf", "rate: Input should be a finite number"),
        ("rate=.nan", "rate: Input should be a finite number"),
        ("rate", "write it as field.subfield=value"),
        ("rate=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        resolve(_Run, None, [override])


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: x\nshape: [1,\n")
    with pytest.raises(UserError, match=r"run\.yaml:3: not valid YAML"):
        resolve(_Run, file)
    file.write_text("- a\n")
    with pytest.raises(UserError, match="must hold a mapping"):
        resolve(_Run, file)
    with pytest.raises(UserError, match="cannot be read"):
        resolve(_Run, tmp_path / "absent.yaml")
