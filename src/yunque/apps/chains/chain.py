"""A chain: steps one after the other, whose types fit; what is wrong with it is told when it is made."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union

from yunque.apps.chains.accepting import element_of, field_of, fits, shown
from yunque.apps.chains.steps import BranchStep, FunctionStep, MapStep, PromptStep, Step
from yunque.errors import UserError

_NAME = re.compile(r"\w[\w. -]{0,99}")
Fault = tuple[Step | None, str]
"""What is wrong with a step, or with the whole chain."""


class Chain:
    """Steps under a name. `takes` and `gives` are the types of its input and its result; `source` tells where it can
    be read again, for a run that goes on later. Raises UserError naming the steps that do not fit."""

    def __init__(self, name: str, steps: Sequence[Step], source: Mapping[str, Any] | None = None) -> None:
        self.name, self.steps, self.source = name, tuple(steps), dict(source or {})
        faults, self.takes, self.gives = _examined(name, self.steps)
        if faults:
            raise UserError("\n".join(said for _, said in faults))

    @property
    def outline(self) -> list[Any]:
        """The names of its steps as a tree: what a run that goes on must find again."""
        return _outline(self.steps)


def faults_of(name: str, steps: Sequence[Step]) -> list[Fault]:
    """All that is wrong with a chain of these steps; nothing where it can be made."""
    return _examined(name, steps)[0]


def every_step(steps: Sequence[Step]) -> Iterator[Step]:
    """All steps, those inside of maps and branches too."""
    for one in steps:
        yield one
        if isinstance(one, MapStep):
            yield from every_step(one.steps)
        elif isinstance(one, BranchStep):
            for inner in [*one.cases.values(), one.default or ()]:
                yield from every_step(inner)


def lookup(values: Mapping[str, Any], reference: str, where: str) -> Any:
    """What `NAME.field.field` refers to among values; raises UserError naming what is not there."""
    name, *fields = reference.split(".")
    if name not in values:
        raise UserError(f"{where}: nothing is called {name!r} here (there are: {', '.join(values)})")
    value = values[name]
    for place, part in enumerate(fields):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(f"{where}: {'.'.join([name, *fields[:place]])} has no {part!r}")
    return value


def _examined(name: str, steps: Sequence[Step]) -> tuple[list[Fault], Any, Any]:
    """What is wrong with a chain, and the types of what it takes and gives."""
    found: list[Fault] = []
    if not _NAME.fullmatch(name):
        found.append((None, f"{name!r} cannot be the name of a chain: use letters, digits, '.', '_' and '-'"))
    if not steps:
        return [*found, (None, f"chain {name}: has no steps")], Any, Any
    seen: set[str] = set()
    for one in every_step(steps):
        if one.name in seen:
            said = f"chain {name}: two steps are called {one.name!r}; each needs a name of its own"
            found.append((one, said))
        seen.add(one.name)
    takes = _takes(steps[0])
    return found, takes, _check(steps, takes, {"input": takes}, f"chain {name}", found)


def _outline(steps: Sequence[Step]) -> list[Any]:
    told: list[Any] = []
    for one in steps:
        if isinstance(one, MapStep):
            told.append({one.name: _outline(one.steps)})
        elif isinstance(one, BranchStep):
            cases = {label: _outline(inner) for label, inner in sorted(one.cases.items())}
            told.append({one.name: {**cases, "*": _outline(one.default or ())}})
        else:
            told.append(one.name)
    return told


def _takes(first: Step) -> Any:
    """The type of what a chain that begins with this step is given."""
    if isinstance(first, FunctionStep) and first.reads is None:
        return first.takes
    if isinstance(first, MapStep) and first.over is None:
        return list[_takes(first.steps[0])]  # type: ignore[misc]  # a type made while it runs
    return Any


def _check(
    steps: Sequence[Step], given: Any, known: Mapping[str, Any], where: str, found: list[Fault]
) -> Any:
    """Check that each step takes what it is given, and add what is wrong to `found`; returns the type of what the
    last one gives."""
    names, before = dict(known), "the chain's input" if len(known) == 1 else "what comes in"
    for one in steps:
        names["previous"] = given
        try:
            given = _checked(one, given, names, where, before, found)
        except UserError as error:
            found.append((one, str(error)))
            given = one.gives if isinstance(one, FunctionStep) else Any
        names[one.name] = given
        before = f"what {one.name} gives"
    return given


def _checked(
    one: Step, given: Any, names: Mapping[str, Any], where: str, before: str, found: list[Fault]
) -> Any:
    at = f"{where}, step {one.name}"
    if isinstance(one, FunctionStep):
        _check_function(one, given, names, at, before)
        return one.gives
    if isinstance(one, PromptStep):
        for reference in one.inputs.values():
            _referred(reference, names, at)
        return _given_by_prompt(one)
    if isinstance(one, MapStep):
        listed = _referred(one.over, names, at) if one.over else given
        item = element_of(listed)
        if item is None:
            raise UserError(f"{at}: goes over a list, but {one.over or before} is {shown(listed)}")
        inner = {**names, "item": item}
        return list[_check(one.steps, item, inner, at, found)]  # type: ignore[misc]  # as above
    if isinstance(one.choose, str):
        _referred(one.choose, names, at)
    else:
        _check_function(one.choose, given, names, at, before)
        if not fits(one.choose.gives, str | int | bool):
            raise UserError(f"{at}: its function must give the name of a case, not {shown(one.choose.gives)}")
    ways = [_check(inner, given, names, f"{at}, case {label}", found) for label, inner in one.cases.items()]
    if one.default is not None:
        ways.append(_check(one.default, given, names, f"{at}, the default case", found))
    return Union[tuple(ways)]  # noqa: UP007


def _check_function(one: FunctionStep, given: Any, names: Mapping[str, Any], at: str, before: str) -> None:
    if one.reads:
        given, before = _referred(one.reads, names, at), one.reads
    if not fits(given, one.takes):
        raise UserError(f"{at}: takes {shown(one.takes)}, but {before} is {shown(given)}")
    for name, wanted in one.named.items():
        if name not in names:
            raise UserError(
                f"{at}: its parameter {name!r} is not the name of an earlier step (there are: {', '.join(names)})"
            )
        if not fits(names[name], wanted):
            raise UserError(
                f"{at}: its parameter {name} is {shown(wanted)}, but {name} is {shown(names[name])}"
            )


def _referred(reference: str, names: Mapping[str, Any], at: str) -> Any:
    """The type of what is referred to."""
    name, *fields = reference.split(".")
    if name not in names:
        raise UserError(f"{at}: refers to {reference!r}, but nothing before it is called {name!r} (there are:"
                        f" {', '.join(names)})")  # fmt: skip
    given = names[name]
    for part in fields:
        inner = element_of(given) if part.isdecimal() else field_of(given, part)
        if inner is None:
            raise UserError(f"{at}: refers to {reference!r}, but {shown(given)} has no {part!r}")
        given = inner
    return given


def _given_by_prompt(one: PromptStep) -> Any:
    if one.prompt.answer is None:
        return str
    kinds = {
        "object": dict[str, Any],
        "array": list[Any],
        "string": str,
        "integer": int,
        "number": float,
        "boolean": bool,
    }
    return kinds.get(str(one.prompt.answer.get("type")), Any)
