"""Values that are kept are JSON: what a step gave before a kill is what the next one gets after it."""

import hashlib
import json
import math
from typing import Any

Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class NotJson(Exception):
    """A value that JSON cannot hold; says where in it, and what is there."""


def to_text(value: Any) -> str:
    """A JSON value as text; raises NotJson."""
    _check(value, "", 0)
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair: no database takes it but as an escape.
        return json.dumps(value, separators=(",", ":"))
    return text


def canonical(value: Any) -> str:
    """Equal values have equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _check(value: Any, place: str, depth: int) -> None:
    if depth > 100:
        raise NotJson(f"{place[:100] or 'it'} is nested more than 100 deep")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise NotJson(f"{place or 'it'} has the key {name!r}, which is no text")
            _check(inner, f"{place}.{name}" if place else name, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check(inner, f"{place}[{number}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise NotJson(f"{place or 'it'} is {value}, which is no JSON number")
    elif value is not None and not isinstance(value, str | int | float | bool):
        raise NotJson(f"{place or 'it'} is of type {type(value).__name__}, which is no JSON value")
