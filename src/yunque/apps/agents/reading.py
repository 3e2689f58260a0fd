"""Tools as an app's YAML file lists them; what is wrong is told with the field that it stands in."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from yunque.apps.agents.tools import AgentTool, Effect, function_tool
from yunque.apps.chains.functions import function_called
from yunque.configuration import Settings, validated
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


def read_tools(
    values: Any,
    where: str,
    folder: Path,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    search: "Search | None" = None,
    agents: "Mapping[str, Agent] | None" = None,
) -> list[AgentTool]:
    """The tools that a list of mappings describes, each with one of `function`, `openapi`, `sql`, `search`, `agent`.

    Files are looked for in `folder`; `search` is the search over the app's knowledge, `agents` are those that may be
    named. Raises UserError that names `where`, the tool's number and the field.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise UserError(f"{where}: must be a list of tools, each with one of {', '.join(_KINDS)}")
    tools: list[AgentTool] = []
    for number, one in enumerate(values):
        place = f"{where}.{number}"
        kinds = [kind for kind in _KINDS if isinstance(one, Mapping) and kind in one]
        if len(kinds) != 1:
            raise UserError(f"{place}: a tool has one of {', '.join(_KINDS)}")
        try:
            made = _made(kinds[0], dict(one), place, folder, functions or {}, search, agents or {})
        except UserError as error:
            raise (error if str(error).startswith(place) else UserError(f"{place}: {error}")) from None
        for tool in made:
            if any(tool.name == other.name for other in tools):
                raise UserError(
                    f"{place}: a tool before it is called {tool.name!r} too: give it another name"
                )
        tools += made
    return tools


def _made(
    kind: str,
    values: dict[str, Any],
    where: str,
    folder: Path,
    functions: Mapping[str, Callable[..., Any]],
    search: "Search | None",
    agents: "Mapping[str, Agent]",
) -> list[AgentTool]:
    if kind == "function":
        one = validated(_Function, values, where)
        function = function_called(one.function, f"{where}.function", folder, functions)
        return [function_tool(function, one.name, one.approval, one.effect, one.local, one.timeout)]
    if kind == "openapi":
        from yunque.apps.agents.http_tools import openapi_tools

        api = validated(_OpenApi, values, where)
        return openapi_tools(
            _beside(folder, api.openapi, f"{where}.openapi"),
            *(api.operations, api.base_url, api.key_env, api.personal_data, api.timeout, api.most_bytes),
        )
    if kind == "sql":
        from yunque.apps.agents.sql_tools import sql_tools

        sql = validated(_Sql, values, where)
        path = _beside(folder, sql.sql, f"{where}.sql")
        return sql_tools(path, sql.tables, sql.write, sql.name, sql.most_rows, sql.timeout)
    from yunque.apps.agents.other_tools import agent_tool, search_tool

    if kind == "search":
        looked = validated(_Search, values, where)
        if search is None:
            raise UserError(f"{where}.search: the app has no knowledge to search")
        more = {} if looked.description is None else {"description": looked.description}
        return [search_tool(search, looked.name, k=looked.k, **more)]
    other = validated(_Agent, values, where)
    if other.agent not in agents:
        raise UserError(
            f"{where}.agent: there is no agent {other.agent!r} (there are: {', '.join(agents) or 'none'})"
        )
    return [agent_tool(agents[other.agent], other.description, other.name)]


def _beside(folder: Path, name: str, where: str) -> Path:
    """A file in the app's folder or below it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name!r} lies outside of {folder}")
    if not path.is_file():
        raise UserError(f"{where}: there is no file {name!r} beside the app")
    return path
