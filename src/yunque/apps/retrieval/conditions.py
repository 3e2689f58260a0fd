"""Conditions on metadata as a person types them: year>=2020, file=a.md, kind=law|decree."""

import re
from collections.abc import Sequence
from typing import Any

from yunque.apps.retrieval.stores import Between, Value
from yunque.errors import UserError

_CONDITION = re.compile(r"([^=<>]+?)\s*(>=|<=|=)\s*(.*)", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def parse_conditions(texts: Sequence[str]) -> dict[str, Any]:
    """The conditions, which must all hold; raises UserError. What looks like a number or a truth value fits both that
    and the same text: nobody knows how a file wrote it."""
    found: dict[str, Any] = {}
    for text in texts:
        match = _CONDITION.fullmatch(text.strip())
        if not match:
            raise UserError(f"--where: {text!r} is not FIELD=VALUE, FIELD=A|B, FIELD>=VALUE or FIELD<=VALUE")
        name, sign, value = match[1].strip(), match[2], match[3].strip()
        before = found.get(name)
        if sign == "=":
            if before is not None:
                raise UserError(
                    f"--where: there are two conditions on {name}: write {name}=A|B for one of several"
                )
            found[name] = [one for part in value.split("|") for one in _values(part.strip())]
            continue
        end = float(value) if _NUMBER.fullmatch(value) else value
        if before is None:
            before = Between()
        low, high = (before.low, before.high) if isinstance(before, Between) else (0, 0)
        if not isinstance(before, Between) or (low if sign == ">=" else high) is not None:
            raise UserError(f"--where: there are two conditions on {name} that say the same")
        found[name] = Between(end, high) if sign == ">=" else Between(low, end)
    return found


def _values(text: str) -> list[Value]:
    if text in ("true", "false"):
        return [text, text == "true"]
    return [text, float(text)] if _NUMBER.fullmatch(text) else [text]
