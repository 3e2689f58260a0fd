"""What a prompt's file says above its texts: inputs, the answer's form, examples, settings."""

import copy
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig

InputType = Literal["string", "integer", "number", "boolean", "array", "object"]
GIVEN = ("unknown", "language", "schema")
"""Names that every template may use beside its inputs."""
MOST_CHARACTERS = 2_000_000

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Jinja means something else by these.
_RESERVED = {
    "self", "loop", "caller", "varargs", "kwargs", "true", "false", "none", "True", "False", "None", "and", "or",
    "not", "in", "is", "if", "else", "for", "set", "range", "dict", "cycler", "joiner", "namespace",
}  # fmt: skip
_UNKNOWN = {"es": "No lo sé.", "en": "I don't know."}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


class Input(Settings):
    """A named input. It is required unless it has a default or says `required: false` (it is then null)."""

    type: InputType = "string"
    required: bool | None = None
    default: Any = None
    description: str = ""
    enum: list[Any] | None = Field(default=None, min_length=1)
    max_characters: int = Field(default=MOST_CHARACTERS, ge=1)

    @property
    def is_required(self) -> bool:
        """Whether it must be given."""
        return self.default is None if self.required is None else self.required

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.required and self.default is not None:
            raise ValueError("an input with a default is not required: leave one of the two out")
        if self.default is not None and (fault := self.fault(self.default)):
            raise ValueError(f"its default {fault}")
        return self

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, in a few words; None where nothing is."""
        if isinstance(value, bool) != (self.type == "boolean") or not isinstance(value, _TYPES[self.type]):
            return f"is of type {_type_of(value)}, not {self.type}"
        if isinstance(value, float) and not math.isfinite(value):
            return "is not a finite number"
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
            text.encode()
        except UnicodeEncodeError:
            return "is not UTF-8 text"
        except (TypeError, ValueError, RecursionError):
            return "holds what JSON cannot"
        if len(text) > self.max_characters:
            return f"has {len(text):,} characters, more than {self.max_characters:,}"
        if self.enum is not None and value not in self.enum:
            return f"is none of {', '.join(map(str, self.enum))}"
        return None


class Example(Settings):
    """Inputs with the answer that is wanted; one with a language is shown in that language only."""

    inputs: dict[str, Any]
    answer: Any
    language: str | None = None

    @property
    def text(self) -> str:
        """What a model would have answered."""
        return self.answer if isinstance(self.answer, str) else json.dumps(self.answer, ensure_ascii=False)


class PromptDefinition(Settings):
    """The fields of a prompt. `examples` are shown all, or the `shots` first (`by: fixed`) or most like the input
    (`by: similarity`); `task` is read by `yunque.apps.tasks`."""

    name: str
    description: str = ""
    languages: list[str] = Field(default=["es", "en"], min_length=1)
    inputs: dict[str, Input] = Field(default={})
    answer: dict[str, Any] | None = None
    unknown: dict[str, str] = Field(default={})
    generation: GenerationConfig = GenerationConfig(max_new_tokens=512)
    examples: list[Example] = Field(default=[])
    shots: int | None = Field(default=None, ge=0)
    by: Literal["fixed", "similarity"] = "fixed"
    task: dict[str, Any] | None = None

    @field_validator("inputs", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        """`[text, title]` are required texts; `{text: string}` gives the type alone."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        if isinstance(value, Mapping):
            return {
                name: {"type": said} if isinstance(said, str) else said or {} for name, said in value.items()
            }
        return value

    @field_validator("inputs")
    @classmethod
    def _names(cls, inputs: dict[str, Input]) -> dict[str, Input]:
        for name in inputs:
            if not _NAME.fullmatch(name) or name in GIVEN or name in _RESERVED:
                raise ValueError(
                    f"{name!r} cannot name an input: use letters, digits and _, no word of Jinja, "
                    f"and none of {', '.join(GIVEN)}"
                )
        return inputs

    @field_validator("languages")
    @classmethod
    def _codes(cls, languages: list[str]) -> list[str]:
        for language in languages:
            if not re.fullmatch(r"[a-z]{2}", language):
                raise ValueError(f"{language!r} is not the two letters of a language")
        return languages

    @field_validator("generation", mode="before")
    @classmethod
    def _room(cls, value: Any) -> Any:
        # 64 tokens, the default elsewhere, cut most answers.
        return {"max_new_tokens": 512, **value} if isinstance(value, Mapping) else value

    def unknown_answer(self, language: str) -> str:
        """What is said when the answer is not known."""
        return self.unknown.get(language) or _UNKNOWN.get(language) or next(iter(self.unknown.values()), "?")

    def checked(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """`values` with the defaults; raises UserError for one that is missing, unknown, or of another type."""
        known = ", ".join(self.inputs) or "none"
        for name in values:
            if name not in self.inputs:
                raise UserError(f"{where}: has no input {name!r} (its inputs: {known})")
        filled: dict[str, Any] = {}
        for name, expected in self.inputs.items():
            value = values.get(name, expected.default)
            if value is None:
                if expected.is_required:
                    raise UserError(f"{where}: the input {name!r} is missing (its inputs: {known})")
            elif fault := expected.fault(value):
                raise UserError(f"{where}: the input {name!r} {fault}")
            filled[name] = value
        return filled


_FILLED = {"x-enum": "array", "x-line": "string"}


def schema_for(schema: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with `x-enum: INPUT` filled in (one of the values of that input), and `x-line: INPUT` (the number of
    a line of that input). Raises UserError for a list without a value: nothing could be one of its values."""
    made: dict[str, Any] = copy.deepcopy(dict(schema))
    for part in _parts(made):
        name = part.pop("x-enum", "")
        if (options := values.get(name)) is not None:
            if not any(one.strip() if isinstance(one, str) else True for one in options):
                raise UserError(f"the input {name!r} is an empty list: give it at least one value")
            part["enum"] = [one for place, one in enumerate(options) if one not in options[:place]]
        if (text := values.get(part.pop("x-line", ""))) is not None:
            part |= {"type": "integer", "minimum": 1, "maximum": max(1, len(str(text).splitlines()))}
    return made


def check_filled(schema: Mapping[str, Any], inputs: Mapping[str, Input]) -> None:
    """Raises UserError where `x-enum` or `x-line` names no input, or one of another type."""
    for part in _parts(schema):
        for word, kind in _FILLED.items():
            if word in part and (getattr(inputs.get(str(part[word])), "type", None) != kind):
                raise UserError(
                    f"the JSON Schema's {word} must name an input of type {kind}, not {part[word]!r}"
                )


def _parts(schema: Any) -> list[dict[str, Any]]:
    """Every object in a schema."""
    waiting, found = [schema], list[dict[str, Any]]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            found.append(one)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


def _type_of(value: Any) -> str:
    names: dict[type, str] = {
        str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", dict: "object",
        list: "array", tuple: "array",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)
