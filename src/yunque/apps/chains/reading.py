"""A chain as YAML: `name` and `steps`; what is wrong is told with the field that it stands in."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from yunque.apps.chains.chain import Chain
from yunque.apps.chains.functions import function_called, object_in
from yunque.apps.chains.steps import NAME, RESERVED, Retry, Step, ask, branch, map_over, step
from yunque.configuration import Settings, read_yaml, validated
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.prompts import Prompt

ReadPrompt = Callable[[str, str], "Prompt"]
"""The prompt of a name, and where the name stands."""
_KINDS = ("function", "prompt", "map", "branch")


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
    """What the steps of a file are read with."""

    folder: Path | None
    functions: Mapping[str, Callable[..., Any]]
    read_prompt: ReadPrompt
    model: str | None
    before: list[str] = field(default_factory=lambda: list(RESERVED))
    """The names that a step may refer to: what is given, and the steps that were read before it."""


def read_chain(
    values: Mapping[str, Any],
    where: str,
    folder: Path | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    read_prompt: ReadPrompt | None = None,
    source: Mapping[str, Any] | None = None,
) -> Chain:
    """The chain that `values` (`name`, `steps`, and a `model` for prompts that name none) describe.

    `folder` is where its Python and prompt files lie, `functions` are others that it may name, `read_prompt` finds
    prompts by other names (of the workspace). Raises UserError that names `where` and the field.
    """
    head = validated(_Head, dict(values), where)
    around = _Around(folder, functions or {}, read_prompt or _no_prompt, head.model)
    steps = _steps(head.steps, f"{where}: steps", around)
    try:
        return Chain(head.name, steps, source)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_chain_file(path: Path, read_prompt: ReadPrompt | None = None) -> Chain:
    """The chain of a YAML file, or of a Python file (`FILE.py:NAME`, NAME is a Chain); raises UserError."""
    file, colon, name = str(path).rpartition(":")
    if colon and file.endswith(".py"):
        found = object_in(Path(file).resolve(), name, file)
        if not isinstance(found, Chain):
            raise UserError(f"{file}: {name} is no Chain")
        return Chain(found.name, found.steps, {"file": f"{Path(file).resolve()}:{name}"})
    if path.suffix == ".py":
        raise UserError(f"{path}: say which chain of it: {path}:NAME")
    source = {"file": str(path.resolve())}
    return read_chain(read_yaml(path), str(path), path.resolve().parent, None, read_prompt, source)


def _steps(values: Sequence[Any], where: str, around: _Around) -> list[Step]:
    steps: list[Step] = []
    for number, one in enumerate(values):
        steps.append(_step(one, f"{where}.{number}", around))
        around.before.append(steps[-1].name)
    return steps


def _step(values: Any, where: str, around: _Around) -> Step:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: a step is a mapping with one of {', '.join(_KINDS)}")
    name = values.get("name")
    if isinstance(name, str) and NAME.fullmatch(name):
        where = f"{where} ({name})"
    kinds = [kind for kind in _KINDS if kind in values]
    if len(kinds) != 1:
        said = f"has {' and '.join(kinds)}" if kinds else "has none of them"
        raise UserError(f"{where}: a step has one of {', '.join(_KINDS)}; this one {said}")
    read = {"function": _function, "prompt": _prompt, "map": _map, "branch": _branch}[kinds[0]]
    try:
        return read(dict(values), where, around)
    except UserError as error:
        if str(error).startswith(where.split(":")[0]):
            raise
        raise UserError(f"{where}: {error}") from None


def _function(values: dict[str, Any], where: str, around: _Around) -> Step:
    read = validated(_Function, values, where)
    function = function_called(read.function, f"{where}.function", around.folder, around.functions)
    return step(function, read.name, read.reads, read.retry, read.once)


def _prompt(values: dict[str, Any], where: str, around: _Around) -> Step:
    from yunque.apps.prompts import prompt_from_text, read_prompt

    read = validated(_Prompt, values, where)
    model = read.model or around.model
    if model is None:
        raise UserError(f"{where}: names no model, and neither does the chain (model: NAME)")
    inputs = dict(read.inputs)
    if "\n" in read.prompt or "{{" in read.prompt:
        text, inputs = _inline(read, around.before)
        prompt = prompt_from_text(text, f"{where}.prompt")
    elif read.answer is not None or read.generation is not None:
        raise UserError(f"{where}: answer and generation stand in the prompt's own file")
    elif around.folder is not None and (around.folder / read.prompt).is_file():
        prompt = read_prompt(around.folder / read.prompt)
    else:
        prompt = around.read_prompt(read.prompt, f"{where}.prompt")
    return ask(read.name, prompt, model, inputs, read.language, read.retry)


def _map(values: dict[str, Any], where: str, around: _Around) -> Step:
    read = validated(_Map, values, where)
    inner = _steps(read.steps, f"{where}.steps", around)
    over = None if read.map == "previous" else read.map
    return map_over(*inner, name=read.name, over=over, parallel=read.parallel, failures=read.failures)


def _branch(values: dict[str, Any], where: str, around: _Around) -> Step:
    read = validated(_Branch, values, where)
    cases = {label: _steps(inner, f"{where}.cases.{label}", around) for label, inner in read.cases.items()}
    default = None if read.default is None else _steps(read.default, f"{where}.default", around)
    chosen = (
        function_called(read.branch, f"{where}.branch", around.folder, around.functions)
        if ":" in read.branch or read.branch in around.functions
        else read.branch
    )
    return branch(chosen, cases, read.name, default)  # type: ignore[arg-type]


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
