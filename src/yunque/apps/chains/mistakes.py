"""Mistakes in what a file says, each with its place: reading goes on behind one, so that all of them are told."""

import difflib
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeVar

from pydantic import ValidationError

from yunque.configuration import Settings
from yunque.errors import UserError

Place = tuple[str | int, ...]
"""The way from the top to a field: names and numbers."""
SettingsT = TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class At:
    """Where something stands: its place, and how a person is told of it."""

    place: Place
    told: str

    def below(self, *parts: str | int) -> "At":
        """A field inside of it."""
        if not parts:
            return self
        return At(
            (*self.place, *parts), f"{self.told}{'.' if self.place else ': '}{'.'.join(map(str, parts))}"
        )

    def called(self, name: str) -> "At":
        """The same, told with a name too."""
        return At(self.place, f"{self.told} ({name})")


class Mistakes:
    """What was found wrong so far."""

    def __init__(self) -> None:
        self._found: list[tuple[At, str]] = []

    def add(self, at: At, message: str) -> None:
        """One more; `message` does not repeat the place."""
        self._found.append((at, message))

    def told(self, at: At) -> "_Told":
        """A UserError in here is a mistake at this place, and goes no further."""
        return _Told(self, at)

    def read(self, cls: type[SettingsT], values: Any, at: At) -> SettingsT | None:
        """Values as a `cls`; None where some are wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            for problem in error.errors():
                place = tuple(takewhile(lambda part: part != "[key]", problem["loc"]))
                self.add(at.below(*place), _said(problem, cls))
            return None

    def places(self) -> list[tuple[Place, str]]:
        """Place and message of each, in the order of the file's reading."""
        return list(dict.fromkeys((at.place, message) for at, message in self._found))

    def end(self) -> None:
        """Raise a UserError with a line for each, if there are any."""
        if self._found:
            raise UserError("\n".join(dict.fromkeys(f"{at.told}: {message}" for at, message in self._found)))

    def __bool__(self) -> bool:
        return bool(self._found)


class _Told:
    def __init__(self, mistakes: Mistakes, at: At) -> None:
        self._mistakes, self._at = mistakes, at

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, UserError):
            return False
        self._mistakes.add(self._at, str(error).removeprefix(f"{self._at.told}: "))
        return True


def _said(problem: Any, cls: type[Settings]) -> str:
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"] != "extra_forbidden":
        return str(problem["msg"]).removeprefix("Value error, ")
    names = [field.alias or name for name, field in cls.model_fields.items()]
    near = difflib.get_close_matches(str(problem["loc"][-1]), names, 1) if len(problem["loc"]) == 1 else []
    return f"there is no such field (did you mean {near[0]}?)" if near else "there is no such field"
