"""Tools of an agent: typed functions, described to a model by their hints and docstrings."""

import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from yunque.apps.agents.limits import Limits, Spent
from yunque.errors import UserError
from yunque.generate.config import Tool

if TYPE_CHECKING:
    import jsonschema_rs

Effect = Literal["none", "keyed", "once"]
"""What a call changes: nothing; something, at most once for the key that it is given; something, each time."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_KEY = "idempotency_key"


class ToolError(Exception):
    """What a tool tells the model when it could not do it; the agent goes on."""


@dataclass(frozen=True)
class ToolResult:
    """What a tool gave, and what models took for it (another agent's)."""

    value: Any
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class CallContext:
    """A call at work. `key` is the same if the same call of the same run is made again, after a kill too: who changes
    something outside should do it once for a key. `seconds` is what is left for it, `left` what the run may
    still use."""

    run: str
    call: str
    key: str
    seconds: float
    left: Limits
    approve: Callable[..., bool] | None = None
    allowed: bool = False
    runner: Any = None


@dataclass(frozen=True)
class AgentTool:
    """Something that a model may call.

    `approval`: a person has to agree first, always or where the function of the arguments says so. `local`: it gets
    personal data in the clear; any other sees only marks. `timeout` is in seconds; one that `ends_itself` keeps to
    the `seconds` of its context, and is waited for.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any], CallContext], Any]
    approval: bool | Callable[[dict[str, Any]], bool] = False
    effect: Effect = "none"
    local: bool = True
    timeout: float = 30.0
    ends_itself: bool = False
    validator: "jsonschema_rs.Validator | None" = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} cannot be the name of a tool: use up to 64 letters, digits, '_' and '-'"
            )
        if not 0 < self.timeout <= 3600:
            raise UserError(f"tool {self.name}: timeout is {self.timeout}; it must be from 0 to 3600 seconds")
        from yunque.apps.structured import check_schema

        try:
            object.__setattr__(self, "validator", check_schema(self.parameters))
        except UserError as error:
            raise UserError(f"tool {self.name}: {error}") from None

    def shown(self) -> Tool:
        """As a model is told of it."""
        return Tool(name=self.name, description=self.description, parameters=self.parameters)

    def fault(self, arguments: Any) -> str | None:
        """What is wrong with arguments, in a sentence for the model; None where nothing is."""
        assert self.validator is not None
        if not isinstance(arguments, dict):
            return "the arguments must be a JSON object"
        faults = []
        for error in self.validator.iter_errors(arguments):
            place = ".".join(map(str, error.instance_path))
            faults.append(f"{place}: {error.message}" if place else error.message)
        return "; ".join(faults[:5])[:1000] or None

    def needs_approval(self, arguments: dict[str, Any]) -> bool:
        """Whether a person has to agree to this call."""
        return self.approval(arguments) if callable(self.approval) else self.approval


def function_tool(
    function: Callable[..., Any],
    name: str | None = None,
    approval: bool | Callable[[dict[str, Any]], bool] = False,
    effect: Effect | None = None,
    local: bool = True,
    timeout: float = 30.0,
) -> AgentTool:
    """A typed function as a tool; its docstring tells what it does, and what its parameters are (`Args:`, `:param`).

    A parameter `idempotency_key`, or one of type CallContext, is filled in by the agent and not shown to the model; a
    function that takes the key is taken to act once for it (`effect="keyed"`). Without that, what needs approval is
    taken to act each time (`"once"`: it is not run again after a kill in the middle). Raises UserError for a function
    without types.
    """
    called = name or str(getattr(function, "__name__", ""))
    try:
        hints = get_type_hints(function, include_extras=True)
        signature = inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"tool {called}: the types of its function cannot be read ({error})") from None
    said, told = _documented(inspect.getdoc(function) or "")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"tool {called}: its function is async; give one that waits for its result")
    fields, context = _fields(called, signature, hints, told)
    try:
        with warnings.catch_warnings():
            # A parameter may be called as something that pydantic's classes have.
            warnings.simplefilter("ignore")
            model = create_model(called or "tool", __config__=ConfigDict(extra="forbid"), **fields)
        schema = _plain_schema(model.model_json_schema())
    except (PydanticUserError, NameError) as error:
        raise UserError(
            f"tool {called}: its types cannot be told to a model ({str(error).splitlines()[0]})"
        ) from None
    takes_key = _KEY in signature.parameters

    def run(arguments: dict[str, Any], call: CallContext) -> Any:
        try:
            read = model.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            raise ToolError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        values = {field: getattr(read, field) for field in fields}
        if takes_key:
            values[_KEY] = call.key
        if context:
            values[context] = call
        return function(**values)

    guessed: Effect = "keyed" if takes_key else "once" if approval else "none"
    return AgentTool(called, said, schema, run, approval, effect or guessed, local, timeout)


def _fields(
    called: str, signature: inspect.Signature, hints: Mapping[str, Any], told: Mapping[str, str]
) -> tuple[dict[str, Any], str | None]:
    """The parameters that a model fills in, as pydantic takes them, and the one for the context of the call."""
    fields: dict[str, Any] = {}
    context = None
    for parameter in signature.parameters.values():
        if parameter.name == _KEY:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserError(f"tool {called}: its parameters are given by name: no {parameter}")
        if parameter.name not in hints:
            raise UserError(f"tool {called}: its parameter {parameter.name} has no type")
        if hints[parameter.name] is CallContext:
            context = parameter.name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], Field(default, description=told.get(parameter.name)))
    return fields, context


def plain_result(value: Any) -> ToolResult:
    """What a tool gave as a JSON value; raises ToolError."""
    result = value if isinstance(value, ToolResult) else ToolResult(value)
    try:
        return replace(result, value=to_jsonable_python(result.value, inf_nan_mode="constants"))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ToolError(f"its result cannot be told ({error})") from None


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter."""
    parameters = {
        name: " ".join(said.split()) for name, said in re.findall(r":param (\w+):\s*([^\n]+)", text)
    }
    found = re.search(
        r"(?ms)^\s*(?:Args|Arguments|Parameters|Parámetros|Argumentos):\s*\n(.*?)(?=^\S|\Z)", text
    )
    if found:
        lines = re.findall(r"^\s+(\w+)\s*(?:\([^)]*\))?:\s*(.+)$", found[1], re.MULTILINE)
        parameters |= {name: said.strip() for name, said in lines}
    head = re.split(
        r"\n\s*(?::param|:return|(?:Args|Arguments|Parameters|Returns|Raises|Parámetros|Argumentos):)", text
    )[0]
    return " ".join(head.split())[:1000], parameters


def _plain_schema(schema: Any) -> Any:
    """Without the titles that pydantic gives everything: a model reads every word."""
    if isinstance(schema, Mapping):
        return {
            key: {name: _plain_schema(one) for name, one in value.items()}
            if key in ("properties", "$defs") and isinstance(value, Mapping)
            else _plain_schema(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_plain_schema(one) for one in schema] if isinstance(schema, list) else schema
