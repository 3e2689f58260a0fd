"""The steps that a chain is made of: functions, prompts, maps and branches."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Union, get_type_hints

from pydantic import Field

from yunque.apps.chains.context import StepContext
from yunque.apps.chains.values import adapter_of
from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.llm.face import LanguageModel, ModelUnavailable

if TYPE_CHECKING:
    from yunque.apps.prompts import Prompt

NAME = re.compile(r"[^\W\d_][\w-]{0,63}")
RESERVED = ("input", "previous", "item")
PASSING: tuple[type[Exception], ...] = (ModelUnavailable, TimeoutError, ConnectionError)
"""Errors that may be gone the next time."""


class Retry(Settings):
    """How often a step is tried, and how long is waited before the next time (seconds): `wait`, then `factor` times
    that, at most `longest`, each shortened by a random part of up to a half."""

    attempts: int = Field(default=3, ge=1, le=100)
    wait: float = Field(default=0.5, ge=0)
    factor: float = Field(default=2.0, ge=1)
    longest: float = Field(default=30.0, ge=0)
    on: tuple[str, ...] = ()

    def applies(self, error: Exception) -> bool:
        """Whether it is tried again after this error; `on` names classes of exceptions, and means what may pass."""
        if not self.on:
            return isinstance(error, PASSING)
        return any(kind.__name__ in self.on for kind in type(error).__mro__)

    def pause(self, attempt: int, chance: float) -> float:
        """Seconds to wait after attempt number `attempt`; `chance` is a random number from 0 to 1."""
        whole = min(self.longest, self.wait * self.factor ** min(attempt - 1, 60))
        return whole * (1 - chance / 2)


@dataclass(frozen=True)
class FunctionStep:
    """A typed function. Its first parameter is what the step before gave; others carry the names of earlier steps."""

    name: str
    function: Callable[..., Any]
    takes: Any
    gives: Any
    named: Mapping[str, Any]
    context: str | None
    reads: str | None = None
    retry: Retry | None = None
    once: bool = False


@dataclass(frozen=True)
class PromptStep:
    """A prompt and the model that is asked with it; `inputs` says what each input of the prompt is filled with."""

    name: str
    prompt: "Prompt"
    model: str | LanguageModel
    inputs: Mapping[str, str] = field(default_factory=dict)
    language: str | None = None
    retry: Retry | None = None
    once: bool = False


@dataclass(frozen=True)
class MapStep:
    """Steps done for each item of a list, `parallel` items at a time."""

    name: str
    steps: tuple["Step", ...]
    over: str | None = None
    parallel: int = 4
    failures: Literal["stop", "leave_out"] = "stop"


@dataclass(frozen=True)
class BranchStep:
    """One of several ways on; `choose` gives the name of the case, or refers to a value that is one."""

    name: str
    choose: FunctionStep | str
    cases: Mapping[str, tuple["Step", ...]]
    default: tuple["Step", ...] | None = None


Step = Union[FunctionStep, PromptStep, MapStep, BranchStep]  # noqa: UP007


def step(
    function: Callable[..., Any],
    name: str | None = None,
    reads: str | None = None,
    retry: Retry | None = None,
    once: bool = False,
) -> FunctionStep:
    """A function as a step.

    `reads` names what its first parameter is given, where that is not what the step before gave. With `once` it is
    not run again after a kill in the middle of it: a person has to say so. Raises UserError for a function whose
    parameters or result have no type.
    """
    called = name or str(getattr(function, "__name__", "")).replace("<lambda>", "")
    checked = _checked_name(called, "a step that is a function")
    where = f"step {checked}"
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{where}: its function is async; give one that waits for its result")
    if once and retry is not None:
        raise UserError(f"{where}: a step that runs once is not tried again: leave out once or retry")
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"{where}: the types of its function cannot be read ({error})") from None
    context, values = None, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"{where}: a step takes parameters by name: no *{parameter.name}")
        if parameter.name not in hints:
            raise UserError(f"{where}: its parameter {parameter.name} has no type")
        if hints[parameter.name] is StepContext:
            context = parameter.name
        else:
            values.append(parameter)
    if "return" not in hints:
        raise UserError(f"{where}: does not say the type of what it gives (-> ...)")
    if not values:
        raise UserError(f"{where}: takes nothing: its first parameter is what the step before it gave")
    for kind in (hints["return"], *(hints[one.name] for one in values)):
        try:
            adapter_of(kind)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    named = {one.name: hints[one.name] for one in values[1:] if one.default is one.empty}
    return FunctionStep(
        *(checked, function, hints[values[0].name], hints["return"], named, context, reads, retry, once)
    )


def ask(
    name: str,
    prompt: "Prompt",
    model: str | LanguageModel,
    inputs: Mapping[str, str] | None = None,
    language: str | None = None,
    retry: Retry | None = None,
) -> PromptStep:
    """A prompt as a step. `inputs` fills its inputs with references (`extract.title`, `item`, `input`); without it
    the one input that must be given is what the step before gave. Raises UserError where that does not come out."""
    _checked_name(name, "a step that is a prompt")
    filled = dict(inputs or {})
    needed = [key for key, one in prompt.inputs.items() if one.is_required]
    if not filled and len(needed) == 1:
        filled = {needed[0]: "previous"}
    if missing := [key for key in needed if key not in filled]:
        raise UserError(
            f"step {name}: says nothing for the prompt's input {missing[0]!r} (with: {{{missing[0]}: ...}})"
        )
    if unknown := [key for key in filled if key not in prompt.inputs]:
        raise UserError(
            f"step {name}: the prompt has no input {unknown[0]!r} (it has: {', '.join(prompt.inputs) or 'none'})"
        )
    return PromptStep(name, prompt, model, filled, language, retry)


def map_over(
    *steps: Step,
    name: str,
    over: str | None = None,
    parallel: int = 4,
    failures: Literal["stop", "leave_out"] = "stop",
) -> MapStep:
    """Steps done for each item of a list: of what the step before gave, or of what `over` refers to.

    An item that fails stops the run when those under way have ended; with `leave_out` it is left out of the result.
    """
    _checked_name(name, "a map")
    if not steps:
        raise UserError(f"step {name}: a map without steps does nothing")
    if not 1 <= parallel <= 256:
        raise UserError(f"step {name}: parallel is {parallel}; it must be from 1 to 256")
    return MapStep(name, steps, over, parallel, failures)


def branch(
    choose: Callable[..., Any] | str,
    cases: Mapping[str, Sequence[Step]],
    name: str,
    default: Sequence[Step] | None = None,
) -> BranchStep:
    """One of several ways on. `choose` is a function that gives the name of a case, or refers to a value that is one
    (`extract.language`). A case without steps passes on what came in. Without `default` another name is an error."""
    _checked_name(name, "a branch")
    if not cases:
        raise UserError(f"step {name}: a branch needs cases")
    labels = [label_of(label) for label in cases]
    if wrong := [label for label in labels if not re.fullmatch(r"[^\[\]/*]{1,64}", label)]:
        raise UserError(
            f"step {name}: {wrong[0]!r} cannot be the name of a case: leave out brackets, '/' and '*'"
        )
    chosen = choose if isinstance(choose, str) else step(choose, name="choose")
    return BranchStep(
        name,
        chosen,
        {label_of(label): tuple(steps) for label, steps in cases.items()},
        None if default is None else tuple(default),
    )


def label_of(value: Any) -> str:
    """The name of the case that a value chooses."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _checked_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(
            f"{name!r} cannot be the name of {what}: use letters, digits, '_' and '-', the first a letter, and none"
            f" of {', '.join(RESERVED)}"
        )
    return name
