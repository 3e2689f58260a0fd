"""JSON Schemas as the grammar library takes them: what it would misread is put in its words, what it or nobody can
promise is refused, and examples of what strings look like are collected for closing a text."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import jsonschema_rs

from yunque.errors import UserError

Schema = dict[str, Any]

_LARGEST = 100_000
_LONGEST_EXAMPLE = 1000
_LONGEST_TEXT = 10_000
_LARGEST_STEP = 10_000
_LABEL = "[A-Za-z0-9]{1,30}(?:-[A-Za-z0-9]{1,15}){0,2}"
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,20}"
_DATE = (
    "(?:[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    "|(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
# The library's own patterns of these let through what is none: the 30th of February, a name of 300 letters.
_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,2}}@{_LABEL}(?:\.{_LABEL}){{0,2}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,3}}",
    "uri": r"[a-z]{1,10}://[a-z0-9]{1,40}(?:\.[a-z0-9]{1,20}){0,4}(?::[1-9][0-9]{0,3})?"
    r"(?:/[A-Za-z0-9._~-]{0,60}){0,12}(?:\?[A-Za-z0-9._~=&-]{0,200})?(?:#[A-Za-z0-9._~-]{0,60})?",
}
# Each is an example too: the end of one may end a string that was begun.
_EXAMPLES = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "email": "a@a",
    "hostname": "a",
    "uri": "a://a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "duration": "P0D",
}
# Formats of the standard that no grammar is written for.
_UNPROMISED = {
    *("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template"),
    *("json-pointer", "relative-json-pointer", "regex"),
}
# Their values are data, or names and then schemas.
_DATA = {"const", "enum", "default", "examples", "example"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_HOLD_SCHEMAS = {"items", "prefixItems", "additionalItems", "additionalProperties", "anyOf", "oneOf", "allOf"}
# No spaces but one after a comma or colon: a model that writes nonsense could go on with spaces for ever.
_SPACES = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def prepare_schema(schema: Schema | bool | None) -> Schema:
    """The schema to give to the grammar library; None is an object of any shape.

    Formats become exact patterns (dates of the years 1000 to 9999); formats that are in no standard are comments, as
    JSON Schema has it. Raises UserError for a schema that is none, is too large, or holds a format that nobody can
    promise.
    """
    if schema is None:
        schema = {"type": "object"}
    if schema is False:
        raise UserError("format: the JSON Schema is false, which no text fulfils")
    whole: Schema = {} if schema is True else schema
    try:
        size = len(json.dumps(whole))
        if size > _LARGEST:
            raise UserError(f"format: the JSON Schema has {size:,} characters, more than {_LARGEST:,}")
        jsonschema_rs.meta.validate(whole)
        prepared: Schema = _rewritten(whole)
    except jsonschema_rs.ValidationError as error:
        place = "/".join(str(part) for part in error.instance_path)
        raise UserError(
            f"format: the JSON Schema is not one: {place or 'its root'}: {error.message}"
        ) from None
    except (RecursionError, ValueError, TypeError) as error:
        raise UserError(f"format: the JSON Schema cannot be read ({_first_line(error)})") from None
    return {**prepared, "x-guidance": _SPACES}


def _rewritten(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_rewritten(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: Schema = {}
    _check_sizes(schema)
    for key, value in schema.items():
        if key == "x-guidance" or (key == "uniqueItems" and value is False):
            continue
        if key in _HOLD_SCHEMAS:
            made[key] = _rewritten(value)
        elif key == "patternProperties" and isinstance(value, dict):
            made[key] = {without_controls(pattern): _rewritten(one) for pattern, one in value.items()}
        elif key in _NAMED and isinstance(value, dict):
            made[key] = {name: _rewritten(one) for name, one in value.items()}
        elif key == "pattern" and isinstance(value, str):
            made[key] = without_controls(check_pattern(value))
        elif key != "format" or not isinstance(value, str):
            made[key] = value
        elif value in _UNPROMISED:
            raise UserError(f"format: the string format {value!r} of the JSON Schema cannot be promised")
        elif value not in _PATTERNS and value in _EXAMPLES:
            made[key] = value
    exact = _PATTERNS.get(str(schema.get("format")))
    if exact and "pattern" in made:
        made["allOf"] = [*made.get("allOf", []), {"pattern": f"^{exact}$"}]
    elif exact:
        made["pattern"] = f"^{exact}$"
    return made


def _check_sizes(schema: Schema) -> None:
    """Refuse what would take the grammar library minutes."""
    for key in ("minLength", "minItems", "minProperties"):
        if schema.get(key, 0) > _LONGEST_TEXT:
            raise UserError(f"format: {key} is {schema[key]:,}, more than {_LONGEST_TEXT:,}")
    step = Decimal(str(schema.get("multipleOf", 1))).normalize()
    if int("".join(map(str, step.as_tuple().digits))) > _LARGEST_STEP:
        raise UserError(f"format: multiples of {schema['multipleOf']} cannot be followed")


def check_pattern(pattern: str) -> str:
    """The pattern; raises UserError where what it matches has thousands of characters at the least."""
    try:
        least: int = _parsed(pattern).getwidth()[0]
    except (re.error, RecursionError, OverflowError, ValueError):
        least = 0
    if least > _LONGEST_TEXT:
        raise UserError(
            f"format: what {pattern[:60]!r} matches has more than {_LONGEST_TEXT:,} characters at the least"
        )
    return pattern


def without_controls(pattern: str) -> str:
    """The pattern without control characters in what `[^...]` stands for.

    llguidance 1.9.1 lets every escape through in a JSON string where all control characters may come: `[^"]` would
    take `\\"`.
    """
    made = ""
    inside = False
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        taken = 2 if letter == "\\" else 1
        if letter == "[" and not inside:
            inside = True
            if pattern.startswith("[^", place):
                taken = 2
            # A bracket that comes first is one of the class.
            taken += pattern.startswith("]", place + taken)
        elif letter == "]":
            inside = False
        part = pattern[place : place + taken]
        made += part.replace("[^", r"[^\x00-\x1f", 1) if part.startswith("[^") else part
        place += taken
    return made


def string_examples(schema: Any) -> Iterator[str]:
    """Short strings such as the schema's formats and patterns describe."""
    if isinstance(schema, list):
        for one in schema:
            yield from string_examples(one)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "format" and isinstance(value, str):
                yield _EXAMPLES.get(value, "")
            elif key == "pattern" and isinstance(value, str):
                yield shortest_match(value) or ""
            elif key == "patternProperties" and isinstance(value, dict):
                yield from (shortest_match(pattern) or "" for pattern in value)
            if key not in _DATA:
                yield from string_examples(value)


def schema_strings(schema: Any) -> Iterator[str]:
    """Every name and value that a text of this schema may have to hold, among others."""
    if isinstance(schema, str):
        yield schema
    elif isinstance(schema, list):
        for one in schema:
            yield from schema_strings(one)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in _NAMED and isinstance(value, dict):
                yield from value
                yield from schema_strings(list(value.values()))
            elif key in ("const", "enum", "required") or isinstance(value, dict | list):
                yield from schema_strings(value)


def shortest_match(pattern: str) -> str | None:
    """A short text that a regular expression matches, by Python's reading of it; None where it cannot read it."""
    try:
        return _shortest(_parsed(pattern))
    except (re.error, RecursionError, OverflowError, ValueError):
        return None


def _parsed(pattern: str) -> Any:
    # Python has no public way to its reading of a pattern (`sre_parse` is deprecated). What is read here is a hint
    # only, for the search of a short text: the grammar library decides what matches.
    return re._parser.parse(pattern)  # type: ignore[attr-defined]  # typeshed leaves it out


def _shortest(parsed: Any) -> str:
    return "".join(_shortest_of(str(kind), value) for kind, value in parsed)


def _shortest_of(kind: str, value: Any) -> str:
    if kind == "LITERAL":
        return chr(value)
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        least, _, repeated = value
        return "" if least > _LONGEST_EXAMPLE else _shortest(repeated) * int(least)
    if kind == "BRANCH":
        return min(map(_shortest, value[1]), key=len)
    if kind == "SUBPATTERN":
        return _shortest(value[-1])
    if kind in ("IN", "NOT_LITERAL", "CATEGORY", "ANY"):
        return _member(kind, value)
    return ""


def _member(kind: str, value: Any) -> str:
    """A character of a class, one of the plainest that are in it."""
    if kind == "ANY":
        return "a"
    plain = "a0A_ -.,@:/"
    if kind == "NOT_LITERAL":
        return next(letter for letter in plain if ord(letter) != value)
    items = value if kind == "IN" else [(kind, value)]
    inverted = str(items[0][0]) == "NEGATE"
    others: list[str] = [chr(item[1]) for item in items if str(item[0]) == "LITERAL"]
    others += [chr(item[1][0]) for item in items if str(item[0]) == "RANGE"]
    letters: list[str] = [*plain, *others]
    for letter in letters:
        if any(_holds(str(name), told, letter) for name, told in items if str(name) != "NEGATE") != inverted:
            return letter
    return ""


def _holds(kind: str, value: Any, letter: str) -> bool:
    if kind == "LITERAL":
        return ord(letter) == int(value)
    if kind == "RANGE":
        return bool(value[0] <= ord(letter) <= value[1])
    name = str(value)
    found = {
        "DIGIT": letter.isdigit(),
        "SPACE": letter.isspace(),
        "WORD": letter.isalnum() or letter == "_",
    }
    wanted = next((holds for word, holds in found.items() if name.endswith(word)), False)
    return wanted != ("NOT" in name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
