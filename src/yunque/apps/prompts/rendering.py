"""Fills templates in a process apart, which is ended when one takes too long."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yunque.line_process import LineProcess, TooLong

SECONDS = 5.0
_PROCESS = LineProcess(Path(__file__).with_name("template_process.py"), b"[]", SECONDS)


class TemplateFault(Exception):
    """A template that could not be filled; `number` is its place in what was asked, `line` one of its own."""

    def __init__(self, message: str, number: int = 0, line: int | None = None) -> None:
        super().__init__(message)
        self.number = number
        self.line = line


def fill(asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The texts that templates make with their variables; raises TemplateFault."""
    return [answer["text"] for answer in _answers(asked)]


def examine(templates: Sequence[str]) -> list[dict[str, int]]:
    """The names that each template takes from outside, with a line; raises TemplateFault."""
    return [answer["names"] for answer in _answers([(template, None) for template in templates])]


def _answers(asked: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[dict[str, Any]]:
    try:
        answers: list[dict[str, Any]] = json.loads(_PROCESS.ask(json.dumps(asked).encode()))
    except TooLong:
        raise TemplateFault(f"takes more than {_PROCESS.seconds:g} seconds or too much memory") from None
    except OSError:
        raise TemplateFault("cannot be filled: the process that does it does not start") from None
    for number, answer in enumerate(answers):
        if "error" in answer:
            raise TemplateFault(answer["error"], number, answer.get("line"))
    return answers
