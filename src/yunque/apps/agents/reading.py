"""Tools as an app's YAML file lists them; what is wrong is told with the field that it stands in."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from yunque.apps.agents.tools import AgentTool, Effect, function_tool
from yunque.apps.chains.functions import beside, function_called
from yunque.apps.chains.mistakes import At, Mistakes, Place
from yunque.configuration import Settings
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.agents.agent import Agent
    from yunque.apps.agents.other_tools import Search

_KINDS = ("function", "openapi", "sql", "search", "agent")


class _Function(Settings):
    function: str
    name: str | None = None
    approval: bool = False
    effect: Effect | None = None
    local: bool = True
    timeout: float = Field(default=30.0, gt=0, le=3600)


class _OpenApi(Settings):
    openapi: str
    operations: list[str] = Field(min_length=1)
    base_url: str | None = None
    key_env: str | None = None
    personal_data: bool = False
    timeout: float = Field(default=20.0, gt=0, le=600)
    most_bytes: int = Field(default=200_000, ge=100)


class _Sql(Settings):
    sql: str
    tables: list[str] = Field(default=[])
    write: bool = False
    name: str = "sql"
    most_rows: int = Field(default=100, ge=1, le=10_000)
    timeout: float = Field(default=10.0, gt=0, le=600)


class _Search(Settings):
    search: Literal[True]
    name: str = "search"
    description: str | None = None
    k: int = Field(default=5, ge=1, le=20)


class _Agent(Settings):
    agent: str
    description: str
    name: str | None = None


@dataclass(frozen=True)
class _Around:
    """What tools are read with, and what comes of it beside them."""

    folder: Path
    functions: Mapping[str, Callable[..., Any]]
    search: "Search | None"
    agents: "Mapping[str, Agent] | None"
    opened: list[Path]
    mistakes: Mistakes = field(default_factory=Mistakes)


def read_tools(
    values: Any,
    where: str,
    folder: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    search: "Search | None" = None,
    agents: "Mapping[str, Agent] | None" = None,
    opened: list[Path] | None = None,
) -> list[AgentTool]:
    """The tools that a list of mappings describes, each with one of `function`, `openapi`, `sql`, `search`, `agent`.

    Files are looked for in `folder`; `search` is the search over the app's knowledge, `agents` are those that may be
    named. The functions' files and documents that were opened are put into `opened`, each as `folder / NAME`. Raises
    UserError with a line for each mistake, which names `where`, the tool's number and the field.
    """
    around = _Around(folder, functions or {}, search, agents, [] if opened is None else opened)
    tools = _tools(values, where, around)
    around.mistakes.end()
    return tools


def tool_mistakes(
    values: Any,
    where: str,
    folder: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    search: "Search | None" = None,
    agents: "Mapping[str, Agent] | None" = None,
    opened: list[Path] | None = None,
) -> list[tuple[Place, str]]:
    """All that is wrong with what `read_tools` would read: the place of each in the list, such as `(0, "function")`,
    and what is wrong there."""
    around = _Around(folder, functions or {}, search, agents, [] if opened is None else opened)
    _tools(values, where, around)
    return around.mistakes.places()


def read_tool(
    values: Any,
    where: str,
    folder: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    search: "Search | None" = None,
    agents: "Mapping[str, Agent] | None" = None,
    opened: list[Path] | None = None,
) -> list[AgentTool]:
    """What one mapping of such a list describes, which may be several tools. Raises UserError that names `where`,
    which is the tool's own place, and the field."""
    around = _Around(folder, functions or {}, search, agents, [] if opened is None else opened)
    tools = _tool(values, At((0,), where), around)
    around.mistakes.end()
    return tools


def _tools(values: Any, where: str, around: _Around) -> list[AgentTool]:
    tools: list[AgentTool] = []
    if not isinstance(values, Sequence) or isinstance(values, str):
        said = f"must be a list of tools, each with one of {', '.join(_KINDS)}"
        around.mistakes.add(At((), where), said)
        return tools
    for number, one in enumerate(values):
        at = At((number,), f"{where}.{number}")
        made = _tool(one, at, around)
        for tool in made:
            if any(tool.name == other.name for other in tools):
                said = f"a tool before it is called {tool.name!r} too: give it another name"
                around.mistakes.add(at, said)
        tools += made
    return tools


def _tool(values: Any, at: At, around: _Around) -> list[AgentTool]:
    """The tools of one mapping; none where it is wrong."""
    kinds = [kind for kind in _KINDS if isinstance(values, Mapping) and kind in values]
    if len(kinds) != 1:
        around.mistakes.add(at, f"a tool has one of {', '.join(_KINDS)}")
        return []
    read = {"function": _function, "openapi": _open_api, "sql": _sql, "search": _search, "agent": _agent}
    with around.mistakes.told(at):
        return read[kinds[0]](dict(values), at, around)
    return []


def _function(values: dict[str, Any], at: At, around: _Around) -> list[AgentTool]:
    one = around.mistakes.read(_Function, values, at)
    if one is None:
        return []
    place = at.below("function")
    with around.mistakes.told(place):
        function = function_called(one.function, place.told, around.folder, around.functions, around.opened)
        return [function_tool(function, one.name, one.approval, one.effect, one.local, one.timeout)]
    return []


def _open_api(values: dict[str, Any], at: At, around: _Around) -> list[AgentTool]:
    from yunque.apps.agents.http_tools import openapi_tools

    api = around.mistakes.read(_OpenApi, values, at)
    path = _beside(around, api.openapi, at.below("openapi")) if api else None
    if api is None or path is None:
        return []
    around.opened.append(path)
    return openapi_tools(
        path, api.operations, api.base_url, api.key_env, api.personal_data, api.timeout, api.most_bytes
    )


def _sql(values: dict[str, Any], at: At, around: _Around) -> list[AgentTool]:
    from yunque.apps.agents.sql_tools import sql_tools

    sql = around.mistakes.read(_Sql, values, at)
    if sql is None:
        return []
    # A database is not kept with the app, so it may be named by its whole path too.
    name = os.path.relpath(around.folder / sql.sql, around.folder)
    path = _beside(around, name, at.below("sql"))
    if path is None:
        return []
    return sql_tools(path, sql.tables, sql.write, sql.name, sql.most_rows, sql.timeout)


def _search(values: dict[str, Any], at: At, around: _Around) -> list[AgentTool]:
    from yunque.apps.agents.other_tools import search_tool

    looked = around.mistakes.read(_Search, values, at)
    if looked is None:
        return []
    if around.search is None:
        around.mistakes.add(at.below("search"), "the app has no knowledge to search")
        return []
    more = {} if looked.description is None else {"description": looked.description}
    return [search_tool(around.search, looked.name, k=looked.k, **more)]


def _agent(values: dict[str, Any], at: At, around: _Around) -> list[AgentTool]:
    from yunque.apps.agents.other_tools import agent_tool

    other = around.mistakes.read(_Agent, values, at)
    if other is None:
        return []
    if around.agents is None or other.agent not in around.agents:
        known = (
            "other agents are for programs, an app's file cannot name them"
            if around.agents is None
            else f"there are: {', '.join(around.agents) or 'none'}"
        )
        around.mistakes.add(at.below("agent"), f"there is no agent {other.agent!r} ({known})")
        return []
    return [agent_tool(around.agents[other.agent], other.description, other.name)]


def _beside(around: _Around, name: str, at: At) -> Path | None:
    """A file in the app's folder or below it."""
    with around.mistakes.told(at):
        path = beside(around.folder, name, at.told)
        if path.is_file():
            return path
        raise UserError(f"there is no file {name!r} beside the app")
    return None
