"""A chain as YAML: `name` and `steps`; what is wrong is told with the field that it stands in."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from yunque.apps.chains.chain import Chain, faults_of
from yunque.apps.chains.functions import beside, function_called, object_in
from yunque.apps.chains.mistakes import At, Mistakes, Place
from yunque.apps.chains.steps import (
    NAME,
    RESERVED,
    FunctionStep,
    Retry,
    Step,
    ask,
    branch,
    label_of,
    map_over,
    step,
)
from yunque.configuration import Settings, read_yaml
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.prompts import Prompt

ReadPrompt = Callable[[str, str], "Prompt"]
"""The prompt of a name, and where the name stands."""
_KINDS = ("function", "prompt", "map", "branch")
_SCRIPTED = "scripted:"


class _Function(Settings):
    name: str | None = None
    function: str
    reads: str | None = None
    retry: Retry | None = None
    once: bool = False


class _Prompt(Settings):
    name: str
    prompt: str
    model: str | None = None
    inputs: dict[str, str] = Field(default={}, alias="with")
    answer: dict[str, Any] | None = None
    generation: dict[str, Any] | None = None
    language: str | None = None
    retry: Retry | None = None


class _Map(Settings):
    name: str
    map: str
    parallel: int = 4
    failures: Literal["stop", "leave_out"] = "stop"
    steps: list[Any]


class _Branch(Settings):
    name: str
    branch: str
    cases: dict[str | bool | int, list[Any]]
    default: list[Any] | None = None


class _Head(Settings):
    name: str
    description: Any = None
    model: str | None = None
    steps: list[Any] = Field(min_length=1)


@dataclass(frozen=True)
class _Around:
    """What the steps of a file are read with, and what comes of it beside them."""

    folder: Path | None
    functions: Mapping[str, Callable[..., Any]]
    read_prompt: ReadPrompt
    model: str | None
    mistakes: Mistakes
    opened: list[Path]
    before: list[str] = field(default_factory=lambda: list(RESERVED))
    """The names that a step may refer to: what is given, and the steps that were read before it."""
    places: dict[int, At] = field(default_factory=dict)
    """Where each step stands, by its identity."""
    nameless: list[At] = field(default_factory=list)
    """Steps that could not be read so far that others could refer to them."""


def read_chain(
    values: Mapping[str, Any],
    where: str,
    folder: Path | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    read_prompt: ReadPrompt | None = None,
    source: Mapping[str, Any] | None = None,
    opened: list[Path] | None = None,
) -> Chain:
    """The chain that `values` (`name`, `steps`, and a `model` for prompts that name none) describe.

    `folder` is where its Python and prompt files lie, `functions` are others that it may name, `read_prompt` finds
    prompts by other names (of the workspace). The files that were opened are put into `opened`, each as
    `folder / NAME`. Raises UserError with a line for each mistake, which names `where` and the field.
    """
    mistakes = Mistakes()
    read = _read(values, where, folder, functions, read_prompt, opened, mistakes)
    mistakes.end()
    assert read is not None
    return Chain(*read, source)


def chain_mistakes(
    values: Mapping[str, Any],
    where: str,
    folder: Path | None = None,
    read_prompt: ReadPrompt | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    opened: list[Path] | None = None,
) -> list[tuple[Place, str]]:
    """All that is wrong with what `read_chain` would read: the place of each, such as `("steps", 1, "model")`, and
    what is wrong there."""
    mistakes = Mistakes()
    _read(values, where, folder, functions, read_prompt, opened, mistakes)
    return mistakes.places()


def read_chain_file(path: Path, read_prompt: ReadPrompt | None = None) -> Chain:
    """The chain of a YAML file, or of a Python file (`FILE.py:NAME`, NAME is a Chain); raises UserError.

    The YAML file may be that of an app with steps. What else such a file says (guards, policy, memory) is the app's,
    and does not hold for its chain alone.
    """
    file, colon, name = str(path).rpartition(":")
    if colon and file.endswith(".py"):
        found = object_in(Path(file).resolve(), name, file)
        if not isinstance(found, Chain):
            raise UserError(f"{file}: {name} is no Chain")
        return Chain(found.name, found.steps, {"file": f"{Path(file).resolve()}:{name}"})
    if path.suffix == ".py":
        raise UserError(f"{path}: say which chain of it: {path}:NAME")
    source = {"file": str(path.resolve())}
    values = _without_app(read_yaml(path), str(path))
    return read_chain(values, str(path), path.resolve().parent, None, read_prompt, source)


def _without_app(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Of an app's file, which has guards, what its chain is made of; another file as it is."""
    if "guards" not in values:
        return values
    if not values.get("steps"):
        raise UserError(f"{where}: is an app without steps: ask it with yunque app run")
    from yunque.apps.definition import AppDefinition

    known = {of.alias or name for name, of in AppDefinition.model_fields.items()} - set(_Head.model_fields)
    return {name: value for name, value in values.items() if name not in known}


def _read(
    values: Mapping[str, Any],
    where: str,
    folder: Path | None,
    functions: Mapping[str, Callable[..., Any]] | None,
    read_prompt: ReadPrompt | None,
    opened: list[Path] | None,
    mistakes: Mistakes,
) -> tuple[str, list[Step]] | None:
    """The name and the steps; what is wrong is in `mistakes`."""
    root = At((), where)
    head = mistakes.read(_Head, dict(values), root)
    # A model that cannot be read is one mistake, not one of each step.
    model = head.model if head else str(values.get("model"))
    around = _Around(folder, functions or {}, read_prompt or _no_prompt, model, mistakes,
                     [] if opened is None else opened)  # fmt: skip
    listed = head.steps if head else values.get("steps")
    steps = _steps(listed if isinstance(listed, list) else [], root.below("steps"), around)
    if head is None or not steps:
        return None
    if not around.nameless:
        for one, said in faults_of(head.name, steps):
            at = around.places[id(one)] if one else root.below("name")
            mistakes.add(at, said.removeprefix(f"chain {head.name}, ").removeprefix(f"chain {head.name}: "))
    return head.name, steps


def _steps(values: Sequence[Any], where: At, around: _Around) -> list[Step]:
    """The steps of a list; in the place of one that cannot be read stands one that takes and gives anything."""
    steps: list[Step] = []
    for number, one in enumerate(values):
        at = where.below(number)
        name = _name_in(one)
        if isinstance(one, Mapping) and isinstance(one.get("name"), str) and name:
            at = at.called(name)
        read = _step(one, at, around)
        if read is None and name is None:
            around.nameless.append(at)
            continue
        if read is None:
            read = FunctionStep(str(name), _nothing, Any, Any, {}, None)
        steps.append(read)
        around.places[id(read)] = at
        around.before.append(read.name)
    return steps


def _name_in(values: Any) -> str | None:
    """What a step is called, as far as that can be told without reading it."""
    if not isinstance(values, Mapping):
        return None
    name = values.get("name") or str(values.get("function", "")).rpartition(":")[2]
    return name if isinstance(name, str) and NAME.fullmatch(name) else None


def _nothing(value: Any) -> Any:
    return value


def _step(values: Any, at: At, around: _Around) -> Step | None:
    if not isinstance(values, Mapping):
        around.mistakes.add(at, f"a step is a mapping with one of {', '.join(_KINDS)}")
        return None
    kinds = [kind for kind in _KINDS if kind in values]
    if len(kinds) != 1:
        said = f"has {' and '.join(kinds)}" if kinds else "has none of them"
        around.mistakes.add(at, f"a step has one of {', '.join(_KINDS)}; this one {said}")
        return None
    read = {"function": _function, "prompt": _prompt, "map": _map, "branch": _branch}[kinds[0]]
    with around.mistakes.told(at):
        return read(dict(values), at, around)
    return None


def _function(values: dict[str, Any], at: At, around: _Around) -> Step | None:
    read = around.mistakes.read(_Function, values, at)
    function = _called(read.function, at.below("function"), around) if read else None
    if read is None or function is None:
        return None
    return step(function, read.name, read.reads, read.retry, read.once)


def _called(name: str, at: At, around: _Around) -> Callable[..., Any] | None:
    with around.mistakes.told(at):
        return function_called(name, at.told, around.folder, around.functions, around.opened)
    return None


def _prompt(values: dict[str, Any], at: At, around: _Around) -> Step | None:
    read = around.mistakes.read(_Prompt, values, at)
    if read is None:
        return None
    model = read.model or around.model
    if model is None:
        around.mistakes.add(at, "names no model, and neither does the chain (model: NAME)")
    inputs = dict(read.inputs)
    prompt = None
    with around.mistakes.told(at.below("prompt")):
        if "\n" in read.prompt or "{{" in read.prompt:
            text, inputs = _inline(read, around.before)
            prompt = _prompt_in(text, read.prompt.lstrip().startswith("---"), at.below("prompt").told)
        elif read.answer is not None or read.generation is not None:
            raise UserError("answer and generation stand in the prompt's own file")
        else:
            prompt = _prompt_called(read.prompt, at.below("prompt").told, around)
    if prompt is None or model is None:
        return None
    return ask(read.name, prompt, _model_beside(model, around.folder), inputs, read.language, read.retry)


def _prompt_in(text: str, has_head: bool, where: str) -> "Prompt":
    """The prompt in a text; lines are told only where all of them were written by a person."""
    from yunque.apps.prompts import prompt_from_text

    try:
        return prompt_from_text(text, where)
    except UserError as error:
        said = r"line \1 of it: " if has_head else ""
        raise UserError(re.sub(rf"\A{re.escape(where)}:(\d+): ", said, str(error))) from None


def _prompt_called(name: str, where: str, around: _Around) -> "Prompt":
    """The prompt of a file beside the chain, or of another name."""
    from yunque.apps.prompts import read_prompt

    if around.folder is None or not _is_file(around.folder / os.path.normpath(name)):
        return around.read_prompt(name, where)
    path = beside(around.folder, name, where)
    around.opened.append(path)
    return read_prompt(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is too long for a name, or holds what no name may
        return False


def _model_beside(model: str, folder: Path | None) -> str:
    """A scripted model whose file lies beside the chain's, by its whole path; any other name as it is."""
    file = model.removeprefix(_SCRIPTED)
    if folder is None or file == model or not _is_file(folder / file):
        return model
    return f"{_SCRIPTED}{(folder / file).resolve()}"


def _map(values: dict[str, Any], at: At, around: _Around) -> Step | None:
    read = around.mistakes.read(_Map, values, at)
    if read is None:
        return None
    inner = _steps(read.steps, at.below("steps"), around)
    if read.steps and not inner:
        return None
    over = None if read.map == "previous" else read.map
    return map_over(*inner, name=read.name, over=over, parallel=read.parallel, failures=read.failures)


def _branch(values: dict[str, Any], at: At, around: _Around) -> Step | None:
    read = around.mistakes.read(_Branch, values, at)
    if read is None:
        return None
    cases = {
        label_of(label): _steps(inner, at.below("cases", label_of(label)), around)
        for label, inner in read.cases.items()
    }
    default = None if read.default is None else _steps(read.default, at.below("default"), around)
    is_function = ":" in read.branch or read.branch in around.functions
    chosen = _called(read.branch, at.below("branch"), around) if is_function else read.branch
    if chosen is None:
        return None
    return branch(chosen, cases, read.name, default)


def _inline(read: _Prompt, before: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A prompt written into the chain's own file as the text of a prompt's file, and what fills its inputs.

    Without front matter its inputs are the names in its templates: those of earlier steps stand for what these gave,
    and a single other one for what the step before gave.
    """
    text = read.prompt.lstrip()
    if text.startswith("---"):
        head, fence, body = text.removeprefix("---").partition("\n---")
        named = "" if re.search(r"(?m)^name:", head) else f"\nname: {_prompt_name(read.name)}"
        return f"---{named}{head}{fence}{body}", dict(read.inputs)
    if not re.search(r"(?m)^\[(?:system|user|assistant)\b[^\]]*\]\s*$", text):
        text = f"[user]\n{text}"
    inputs = {**{name: name for name in _names(text) if name in before}, **read.inputs}
    others = [name for name in _names(text) if name not in inputs]
    if len(others) == 1:
        inputs[others[0]] = "previous"
    fields: dict[str, Any] = {"name": _prompt_name(read.name), "inputs": [*inputs, *others[1:]] or ["text"]}
    fields |= {key: value for key in ("answer", "generation") if (value := getattr(read, key)) is not None}
    # JSON is YAML too, and has no surprises.
    head = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
    return f"---\n{head}\n---\n{text}", inputs


def _prompt_name(step: str) -> str:
    """A step's name as prompts may be called."""
    return re.sub(r"[^a-z0-9._-]", "-", step.lower()).lstrip("._-") or "prompt"


def _names(text: str) -> list[str]:
    """The names that templates use; none where they cannot be read (whoever reads the prompt tells why)."""
    from jinja2 import TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from yunque.apps.prompts.definition import GIVEN

    environment = ImmutableSandboxedEnvironment()
    try:
        return sorted(meta.find_undeclared_variables(environment.parse(text)) - set(GIVEN))
    except TemplateError:
        return []


def _no_prompt(name: str, where: str) -> "Prompt":
    raise UserError(f"{where}: there is no prompt file {name!r} beside the chain")
