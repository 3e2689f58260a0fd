"""A YAML file of settings, every mistake in which is told with its line."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from yunque.configuration import problem_text, read_yaml
from yunque.errors import UserError

SettingsT = TypeVar("SettingsT", bound=BaseModel)
Place = tuple[str | int, ...]
"""The way from the top of a file to one of its fields: names and numbers."""


class SettingsFile:
    """The values of a YAML file, and the line of each."""

    def __init__(self, path: Path) -> None:
        """Raises UserError that names the file, and the line where it is no YAML or says a thing twice."""
        self.path = path
        self.values = read_yaml(path)
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        self._lines: dict[Place, int] = {}
        for place, line in _lines_of(node, (), set()) if node else ():
            if place in self._lines:
                raise UserError(
                    f"{path}:{line}: {_dotted(place)} is there twice (line {self._lines[place]} too)"
                )
            self._lines[place] = line

    def settings(self, cls: type[SettingsT]) -> SettingsT:
        """The file as a `cls`; raises UserError with a line for every mistake."""
        try:
            return cls.model_validate(self.values)
        except ValidationError as error:
            told = [(self.line(_real(found["loc"], self.values)), found) for found in error.errors()]
            lines = [
                f"{self.path}:{line}: {_said(found, cls)}"
                for line, found in sorted(told, key=lambda each: each[0])
            ]
            raise UserError("\n".join(dict.fromkeys(lines))) from None

    def line(self, place: Sequence[str | int]) -> int:
        """The line of a field; of one that is not there, that of what should hold it."""
        here = tuple(place)
        while here and here not in self._lines:
            here = here[:-1]
        return self._lines.get(here, 1)

    def mistake(self, place: Sequence[str | int], message: str) -> UserError:
        """What is wrong with a field, with its line."""
        return UserError(f"{self.path}:{self.line(place)}: {_dotted(place)}: {message}")


def _lines_of(node: yaml.Node, place: Place, seen: set[int]) -> Iterator[tuple[Place, int]]:
    if id(node) in seen:
        return  # an alias: what it stands for was gone through, and may be in itself
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                inside = (*place, key.value)
                yield inside, key.start_mark.line + 1
                yield from _lines_of(value, inside, seen)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*place, number), value.start_mark.line + 1
            yield from _lines_of(value, (*place, number), seen)


def _real(place: Sequence[str | int], values: Any) -> Place:
    """The place without the names of union members that pydantic puts into it."""
    here: list[str | int] = []
    for part in place:
        try:
            values = None if isinstance(values, str) else values[part]
        except (KeyError, IndexError, TypeError):
            if part != place[-1]:
                continue
        here.append(part)
    return tuple(here)


def _said(problem: Any, cls: type[BaseModel]) -> str:
    """What is wrong; of a field that does not exist, also what it was perhaps meant to be."""
    if problem["type"] == "missing":
        return f"{_dotted(problem['loc'])}: is missing"
    if problem["type"] != "extra_forbidden":
        return problem_text(problem)
    near = difflib.get_close_matches(str(problem["loc"][-1]), sorted(_field_names(cls, set())), 1)
    return f"{_dotted(problem['loc'])}: there is no such field" + (
        f" (did you mean {near[0]}?)" if near else ""
    )


def _field_names(cls: type[BaseModel], seen: set[type[BaseModel]]) -> set[str]:
    """The names of all fields of settings, and of those inside."""
    seen.add(cls)
    names: set[str] = set()
    for name, field in cls.model_fields.items():
        names.add(field.alias or name)
        for inside in _models_in(field.annotation):
            if inside not in seen:
                names |= _field_names(inside, seen)
    return names


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _dotted(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place))
