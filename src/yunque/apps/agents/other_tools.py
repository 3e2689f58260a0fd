"""Search over an index, and other agents, as tools."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from yunque.apps.agents.session import Paused
from yunque.apps.agents.tools import AgentTool, CallContext, ToolError, ToolResult

if TYPE_CHECKING:
    from yunque.apps.agents.agent import Agent

Search = Callable[[str, int], Sequence[Any]]
"""The k passages nearest to some words, best first: each a text, a mapping, or with `text` and where it is from."""
_MOST = 20
_HOUR = 3600.0


def search_tool(
    search: Search,
    name: str = "search",
    description: str = "Search the documents. Gives passages with the file and place that they are from.",
    k: int = 5,
) -> AgentTool:
    """A search over an index as a tool; what a passage says is data like every result."""

    def run(arguments: dict[str, Any], call: CallContext) -> Any:
        del call
        found = [_shown(one) for one in search(arguments["query"], arguments.get("k", k))]
        return found or "nothing was found"

    parameters = {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "minLength": 1,
                "maxLength": 1000,
                "description": "Words to look for.",
            },
            "k": {
                "type": "integer",
                "minimum": 1,
                "maximum": _MOST,
                "description": f"How many; {k} if not said.",
            },
        },
        "required": ["query"],
        "additionalProperties": False,
    }
    return AgentTool(name, description, parameters, run)


def agent_tool(agent: "Agent", description: str, name: str | None = None) -> AgentTool:
    """Another agent as a tool. It has what is left of this one's limits, and what it uses counts for both; where it
    needs a person's approval, both wait."""

    def run(arguments: dict[str, Any], call: CallContext) -> Any:
        from dataclasses import replace

        bounded = replace(agent, limits=agent.limits.within(call.left))
        answer = call.runner.run(
            bounded, arguments["task"], approve=call.approve, id=f"{call.run}.{call.call}", parent=call.run
        )
        if answer.pending is not None:
            raise Paused(answer.pending)
        if answer.status == "failed":
            raise ToolError(answer.text)
        told = {"answer": answer.text, "finished": answer.status == "answered"}
        return ToolResult(
            told if answer.checked is None else {**told, "checked": answer.checked}, answer.spent
        )

    parameters = {
        "type": "object",
        "properties": {
            "task": {"type": "string", "minLength": 1, "maxLength": 4000, "description": "What it is to do."}
        },
        "required": ["task"],
        "additionalProperties": False,
    }
    # Made again after a kill it goes on with its own run, so nothing is done twice.
    return AgentTool(
        name or agent.name, description, parameters, run, effect="keyed", timeout=_HOUR, ends_itself=True
    )


def _shown(found: Any) -> Any:
    passage = getattr(found, "passage", found)
    if hasattr(passage, "text"):
        fields = {
            name: getattr(passage, name)
            for name in ("file", "locator", "heading", "id")
            if hasattr(passage, name)
        }
        return {**{name: value for name, value in fields.items() if value}, "text": passage.text}
    return found
