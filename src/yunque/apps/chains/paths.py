"""Where a step stands in a run: `summaries[3]/shorten` is a step of the map `summaries`, done for its item 3.

A branch is `route[long]/shorten`, and `route[]` what it decided.
"""

import re
from collections.abc import Sequence

from yunque.apps.chains.chain import Chain
from yunque.apps.chains.steps import BranchStep, MapStep, Step
from yunque.errors import UserError

_SEGMENT = re.compile(r"([^\W\d_][\w-]*)(?:\[([^\[\]/]*)\])?")
Segment = tuple[str, str | None]
"""A step's name, and which item or case of it; None stands for the step as a whole."""


def start_of(chain: Chain, text: str) -> list[Segment]:
    """The place in a chain that `text` names: a path, or the name of a step wherever it stands.

    Raises UserError naming the places that there are.
    """
    if found := _named(chain.steps, text):
        return found
    segments = _parsed(text)
    if not segments or not _stands(chain.steps, segments):
        places = ", ".join(_places(chain.steps))
        raise UserError(f"chain {chain.name}: has no step {text!r} to go on from (there are: {places})")
    return segments


def comes_before(chain: Chain, path: str, start: Sequence[Segment]) -> bool:
    """Whether what a run has at `path` stays as it is when the run is done again from `start` on."""
    return _earlier(chain.steps, _parsed(path), start)


def _earlier(steps: Sequence[Step], path: Sequence[Segment], start: Sequence[Segment]) -> bool:
    order = [one.name for one in steps]
    (name, key), (from_name, from_key) = path[0], start[0]
    if name not in order:
        return False
    if from_name not in order:
        return True  # another case of a branch: what is done again is not in it
    if name != from_name:
        return order.index(name) < order.index(from_name)
    one = steps[order.index(name)]
    if key is None:
        return False
    if len(start) == 1:
        return from_key is not None and key not in ("", from_key) and isinstance(one, MapStep)
    if key == "" or (from_key is not None and key != from_key and isinstance(one, MapStep)):
        return True
    return len(path) > 1 and _earlier(_inside(one, key), path[1:], start[1:])


def _inside(one: Step, key: str | None) -> Sequence[Step]:
    """The steps inside of a map, or of a case of a branch (of all of them, where none is named)."""
    if isinstance(one, MapStep):
        return one.steps
    if isinstance(one, BranchStep):
        if key is None:
            return [step for inner in [*one.cases.values(), one.default or ()] for step in inner]
        return one.cases.get(key, one.default or ())  # "*" is the default
    return ()


def _named(steps: Sequence[Step], name: str) -> list[Segment]:
    for one in steps:
        if one.name == name:
            return [(name, None)]
        if inner := _named(_inside(one, None), name):
            return [(one.name, None), *inner]
    return []


def _stands(steps: Sequence[Step], path: Sequence[Segment]) -> bool:
    name, key = path[0]
    one = next((step for step in steps if step.name == name), None)
    if one is None or (key is not None and not isinstance(one, MapStep | BranchStep)):
        return False
    return len(path) == 1 or _stands(_inside(one, key), path[1:])


def _places(steps: Sequence[Step], before: str = "") -> list[str]:
    told: list[str] = []
    for one in steps:
        told.append(before + one.name)
        told += _places(_inside(one, None), f"{before}{one.name}/")
    return told


def _parsed(text: str) -> list[Segment]:
    found = [_SEGMENT.fullmatch(part) for part in text.split("/")]
    return [(match[1], match[2]) for match in found if match] if all(found) else []
