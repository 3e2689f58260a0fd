"""A scripted model as a YAML file: for trying an app, and its tools, without a model.

    rules:
      - when: "pedido (\\d+)"             # a regular expression, searched in the last message
        role: user                        # whose message that must be; any, if it is not said
        call: {look_up_order: {order: "\\1"}}   # \\1 is what the first group found; {number: "\\1"} as a number
      - when: "shipped"
        role: tool
        reply: "Your order is on its way."
    otherwise: "I don't know."

The first rule that fits is taken. Nothing is understood: it shows how an app behaves, not how good a model is.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from yunque.configuration import Settings
from yunque.generate.message import Message, Role
from yunque.llm.scripted import Calls, ScriptedModel
from yunque.settings_file import SettingsFile


class Rule(Settings):
    """What is replied to a last message in which `when` is found: a text, or calls of tools by name, or both."""

    when: str
    role: Role | None = None
    reply: str = ""
    call: dict[str, dict[str, Any]] = Field(default={})

    @field_validator("when")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.reply and not self.call:
            raise ValueError("needs a reply or a call")
        return self


class Script(Settings):
    """Rules, tried in their order, and what is said when none fits."""

    rules: list[Rule] = Field(default=[])
    otherwise: str

    def reply(self, messages: Sequence[Message]) -> str | Calls:
        """The reply to a conversation."""
        last = messages[-1] if messages else Message("user", "")
        for rule in self.rules:
            found = re.search(rule.when, last.content, re.IGNORECASE | re.DOTALL)
            if found is None or rule.role not in (None, last.role):
                continue
            text = _filled(rule.reply, found)
            if not rule.call:
                return text
            calls = ((name, json.dumps(_all_filled(given, found))) for name, given in rule.call.items())
            return Calls(tuple(calls), text)
        return self.otherwise


def read_script(path: Path, name: str) -> ScriptedModel:
    """The scripted model in a YAML file; raises UserError that names the line."""
    return ScriptedModel(SettingsFile(path).settings(Script).reply, name)


def _filled(text: str, found: re.Match[str]) -> str:
    """The text with `\\1`, `\\2`... replaced by what the groups found."""
    return re.sub(r"\\(\d)", lambda mark: _group(found, int(mark[1]), mark[0]), text)


def _group(found: re.Match[str], number: int, otherwise: str) -> str:
    return (found[number] or "") if number <= (found.re.groups) else otherwise


def _all_filled(value: Any, found: re.Match[str]) -> Any:
    if isinstance(value, str):
        return _filled(value, found)
    if isinstance(value, dict) and set(value) == {"number"} and isinstance(value["number"], str):
        return _number(_filled(value["number"], found))
    if isinstance(value, dict):
        return {name: _all_filled(inside, found) for name, inside in value.items()}
    if isinstance(value, list):
        return [_all_filled(inside, found) for inside in value]
    return value


def _number(text: str) -> float | str:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return text
