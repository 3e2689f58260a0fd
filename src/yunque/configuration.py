"""Configuration of a command: defaults in a pydantic model, then a YAML file, then `a.b=c` overrides."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from yunque.errors import UserError


class Settings(BaseModel):
    """Base of every configuration: unknown fields and inf and nan are refused, values never change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises UserError that names the file and line."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UserError(f"{path}{line}: not valid YAML ({problem})") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: must hold a mapping of fields, not a {type(loaded).__name__}")
    return loaded


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r}: write it as field.subfield=value")
    *folders, last = key.split(".")
    for folder in folders:
        values = values.setdefault(folder, {})
        if not isinstance(values, dict):
            raise UserError(f"override {text!r}: {folder} is not a group of fields")
    try:
        values[last] = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise UserError(f"override {text!r}: the value is not valid YAML") from None


def validated(cls: type[SettingsT], values: dict[str, Any], where: str) -> SettingsT:
    """`values` as a `cls`; raises UserError naming `where` and every wrong field."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(map(problem_text, error.errors()))}") from None


def problem_text(problem: Any) -> str:
    """What is wrong, with its field where it is about one, without pydantic's words around our own."""
    place = ".".join(str(part) for part in problem["loc"])
    said: str = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said


def resolve(
    cls: type[SettingsT],
    file: Path | None = None,
    overrides: Iterable[str] = (),
    **options: Any,
) -> SettingsT:
    """Defaults of `cls`, overlaid by `file`, by `options` that are not None, and by `overrides`."""
    values = read_yaml(file) if file else {}
    values.update({name: value for name, value in options.items() if value is not None})
    for text in overrides:
        _override(values, text)
    return validated(cls, values, str(file) if file else "configuration")
