"""Values between steps: JSON on the way, and what a function's annotations say on either side."""

from functools import lru_cache
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from yunque.apps.keeping.json_values import NotJson, to_text
from yunque.errors import UserError


def typed(kind: Any, value: Any, what: str) -> Any:
    """A JSON value as a value of a type; raises UserError."""
    try:
        return adapter_of(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{what} is not of its type ({_said(error)})") from None


def given_as(kind: Any, value: Any) -> Any:
    """What a function gave as a JSON value; raises UserError where it is not what the function says it gives."""
    try:
        adapter = adapter_of(kind)
        return plain(adapter.dump_python(adapter.validate_python(value), mode="json"), "what it gave")
    except ValidationError as error:
        raise UserError(f"what it gave is not of the type that it says ({_said(error)})") from None
    except PydanticSerializationError as error:
        raise UserError(f"what it gave cannot be kept as JSON ({error})") from None


def plain(value: Any, what: str) -> Any:
    """A value that is JSON; raises UserError."""
    try:
        to_text(value)
    except NotJson as error:
        raise UserError(f"{what} cannot be kept as JSON: {error}") from None
    return value


@lru_cache(maxsize=512)
def _cached(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def adapter_of(kind: Any) -> TypeAdapter[Any]:
    """What reads and writes values of a type; raises UserError for one that JSON cannot hold."""
    try:
        try:
            return _cached(kind)
        except TypeError:  # a type that cannot be hashed
            return TypeAdapter(kind)
    except PydanticUserError as error:
        raise UserError(
            f"{kind} is no type that can be kept as JSON ({str(error).splitlines()[0]})"
        ) from None


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
