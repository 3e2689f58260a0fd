"""Doing one step: its input put together, its function or prompt run, its result made plain JSON."""

from collections.abc import Mapping
from typing import Any

from yunque.apps.chains.chain import lookup
from yunque.apps.chains.context import StepContext
from yunque.apps.chains.steps import FunctionStep, PromptStep
from yunque.apps.chains.values import given_as, plain, typed
from yunque.apps.keeping.json_values import to_text


def fed(one: FunctionStep | PromptStep, values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What a step is given, by name; raises UserError where something is not there."""
    where = f"step {path}"
    if isinstance(one, PromptStep):
        return {name: lookup(values, reference, where) for name, reference in one.inputs.items()}
    first = lookup(values, one.reads or "previous", where)
    return {"": first, **{name: lookup(values, name, where) for name in one.named}}


def do_step(one: FunctionStep | PromptStep, given: Mapping[str, Any], context: StepContext) -> Any:
    """Run a step and return its result as a JSON value; raises what the step raises, UserError where what goes in
    or comes out is not of its type."""
    if isinstance(one, PromptStep):
        shown = {name: _shown(value, one.prompt.inputs[name].type) for name, value in given.items()}
        return plain(context.ask(one.model, one.prompt, shown, one.language).value, "its answer")
    types = {"": one.takes, **one.named}
    read = {name: typed(types[name], value, name or "what it is given") for name, value in given.items()}
    first = read.pop("")
    if one.context:
        read[one.context] = context
    return given_as(one.gives, one.function(first, **read))


def _shown(value: Any, kind: str) -> Any:
    """A value for an input of a prompt: where it wants a text, anything else is written as JSON."""
    return to_text(value) if kind == "string" and not isinstance(value, str) else value
