"""JSON out of what a model wrote: one value, read strictly, with care for what stands around it."""

import json
import math
import re
from typing import Any

MOST_CHARACTERS = 4_000_000
MOST_LEVELS = 200

_THOUGHTS = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([A-Za-z0-9_+-]*)[ \t]*\n(.*?)\n?^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE
)
_BRACKETS = re.compile(r"[\[\]{}]")
_JSON_NAMES = ("", "json", "jsonc", "json5")


class NotJson(ValueError):
    """A text that holds no JSON value, or none that is surely meant; the message says why."""


class _Double(ValueError):
    """An object with two members of one name."""


def read_json(text: str, cut: bool = False) -> Any:
    """The one JSON value in `text`: alone, in a code fence, or with prose around it.

    Refused: NaN and Infinity, two members of one name, more than MOST_LEVELS levels, text that UTF-8 cannot hold, two
    values, and a value that may be a part of something larger that broke off. `cut` says that the text broke off: a
    bare number might have gone on. Nothing is mended. Raises NotJson.
    """
    if len(text) > MOST_CHARACTERS:
        raise NotJson(f"the answer has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    plain = _THOUGHTS.sub("", text.removeprefix("\ufeff")).strip()
    if not plain:
        raise NotJson("the answer is empty")
    try:
        value = _strict(plain)
    except NotJson as fault:
        reason: Exception = fault
    except (ValueError, RecursionError) as fault:
        reason = fault
    else:
        if cut and not isinstance(value, dict | list | str):
            raise NotJson("the answer broke off")
        return value
    if isinstance(reason, NotJson | _Double):
        raise NotJson(str(reason))
    fenced = [found[3] for found in _FENCE.finditer(plain) if found[2].lower() in _JSON_NAMES]
    if len(fenced) == 1:
        return _alone(fenced[0].strip())
    values = _embedded(plain)
    if len(values) == 1:
        return values[0]
    if len(values) > 1:
        raise NotJson(f"the answer holds {len(values)} JSON values: write one only")
    if cut:
        raise NotJson("the answer broke off before its JSON ended")
    raise NotJson(f"the answer is not JSON ({_brief(reason)})")


def _alone(text: str) -> Any:
    try:
        return _strict(text)
    except RecursionError:
        raise NotJson("the JSON is nested too deeply") from None
    except ValueError as error:
        raise NotJson(f"what is in the code fence is not JSON ({_brief(error)})") from None


def _embedded(text: str) -> list[Any]:
    """Objects and arrays in prose; none where brackets outside of them do not close, for then one may be a piece of
    a larger value."""
    decoder = _decoder()
    values: list[Any] = []
    place = depth = 0
    while found := _BRACKETS.search(text, place):
        place = found.end()
        if found[0] in "]}":
            depth -= 1
            if depth < 0:
                return []
            continue
        if depth == 0:
            try:
                value, end = decoder.raw_decode(text, found.start())
                _check(value)
            except _Double as error:
                raise NotJson(str(error)) from None
            except RecursionError:
                raise NotJson("the JSON is nested too deeply") from None
            except NotJson:
                raise
            except ValueError:
                depth += 1
                continue
            values.append(value)
            place = end
        else:
            depth += 1
    return values if depth == 0 else []


def _strict(text: str) -> Any:
    value = _decoder().decode(text)
    _check(value)
    return value


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_single)


def _no_constant(name: str) -> Any:
    raise NotJson(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"the number {text[:40]} is too large")
    return number


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _Double(f"the name {double[:80]!r} stands twice in one object")
    return made


def _check(value: Any) -> None:
    """Not too many levels, and nothing that UTF-8 cannot hold (half of a surrogate pair)."""
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        one, level = waiting.pop()
        if level > MOST_LEVELS:
            raise NotJson(f"the JSON has more than {MOST_LEVELS} levels")
        if isinstance(one, dict):
            waiting += [(inner, level + 1) for inner in one.values()]
            waiting += [(name, level) for name in one]
        elif isinstance(one, list):
            waiting += [(inner, level + 1) for inner in one]
        elif isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                raise NotJson("a text in the JSON is not UTF-8") from None


def _brief(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
