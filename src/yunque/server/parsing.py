"""From the bytes of a body to a checked request; whatever is wrong with it is an ApiError that names the field."""

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from yunque.server.errors import ApiError

_DEEPEST = 100
_LONGEST_NAME = 100
_EXACT = 2**53
RequestT = TypeVar("RequestT", bound=BaseModel)


def refuse(message: str, param: str | None = None, code: str | None = None) -> NoReturn:
    """Answer 400."""
    raise ApiError(400, message, param, code)


def check_media_type(content_type: str | None) -> None:
    """Raises ApiError 415 for a body that says it is something else than JSON in UTF-8; one that says nothing may
    be."""
    if content_type is None:
        return
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [
        value.strip('" ')
        for name, _, value in (each.partition("=") for each in parameters)
        if name == "charset"
    ]
    if kind != "application/json" or any(charset not in ("utf-8", "utf8") for charset in charsets):
        message = "send the body as JSON in UTF-8, with the header `Content-Type: application/json`"
        raise ApiError(415, message, code="unsupported_media_type")


def parse(cls: type[RequestT], body: bytes) -> RequestT:
    """`body` as a request; raises ApiError 400 that names the field."""
    values = decoded(body)
    # A parameter that is null is one that was not given.
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        _refuse_for(error, given)


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises ApiError 400 for anything else, and for JSON that means different things to
    different readers (a name twice, NaN, half of a surrogate pair)."""
    try:
        text = body.decode("utf-8")
        values = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_without_repetition
        )
        if "\\u" in text:
            # "\ud800" alone is a JSON string, but no text: it could be neither tokenized nor stored.
            json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        refuse("the body is not UTF-8 text", None, "invalid_json")
    except UnicodeEncodeError:
        refuse("the body holds half a surrogate pair, which is no text", None, "invalid_json")
    except _Refused as error:
        refuse(f"the body holds {error}", None, "invalid_json")
    except (ValueError, RecursionError):
        refuse("the body is not valid JSON", None, "invalid_json")
    if not isinstance(values, dict):
        refuse("the body must be a JSON object", None, "invalid_json")
    if _is_deeper(values, _DEEPEST):
        refuse(f"the body is nested more than {_DEEPEST} levels deep", None, "invalid_json")
    return values


class _Refused(Exception):
    """JSON that is well formed, and that we do not take."""


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"{text}, which is not a JSON number")


def _finite(text: str) -> float | int:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("a number that is too large")
    # To JSON Schema 5.0 is an integer, and some clients write 5 so.
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Refused("an object that has a name twice")
    return values


def _is_deeper(value: dict[str, Any], most: int) -> bool:
    level: list[Any] = [value]
    for _ in range(most):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_for(error: ValidationError, given: dict[str, Any]) -> NoReturn:
    """The one problem that says most: of a union's members, the one that got furthest."""
    problems = error.errors(include_url=False, include_context=True)
    places = [_place(each["loc"], given, each["type"] == "missing") for each in problems]
    place, problem = max(
        zip(places, problems, strict=True),
        key=lambda each: (len(each[0]), not each[1]["type"].endswith("_type")),
    )
    name = _written(place)
    if problem["type"] == "extra_forbidden":
        refuse(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    if problem["type"] == "missing":
        refuse(f"you must provide the parameter {name!r}", name, "missing_required_parameter")
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        name += "." + problem["ctx"]["discriminator"].strip("'")
        tags = problem["ctx"].get("expected_tags", "the names that it may have")
        refuse(f"{name}: must be one of {tags}", name, "invalid_value")
    if problem["type"] == "unsupported":
        refuse(f"{name!r}{problem['msg']}", name, "unsupported_parameter")
    message = problem["msg"].removeprefix("Value error, ")
    refuse(f"{name}: {message}" if name else message, name or None, "invalid_value")


def _place(location: Sequence[int | str], given: object, missing: bool) -> list[int | str]:
    """Where in the body that is: pydantic adds the names of the types that it tried, which no client knows."""
    place: list[int | str] = []
    value = given
    for number, part in enumerate(location):
        if isinstance(value, dict) and isinstance(part, str):
            if part not in value and not (missing and number == len(location) - 1):
                continue
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return place


def _written(place: Sequence[int | str]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
