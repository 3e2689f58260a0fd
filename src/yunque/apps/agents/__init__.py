"""Agents: models that plan, call tools within limits, and check what they answer; every step is kept."""

from yunque.apps.agents.agent import Agent, AgentAnswer, numbers_are_in_results
from yunque.apps.agents.limits import Limits, Spent
from yunque.apps.agents.reading import read_tool, read_tools, tool_mistakes
from yunque.apps.agents.runner import AgentRunner, Replay
from yunque.apps.agents.session import PendingCall, ToolRecord
from yunque.apps.agents.tools import AgentTool, CallContext, ToolError, ToolResult, function_tool

__all__ = [
    "Agent",
    "AgentAnswer",
    "AgentRunner",
    "AgentTool",
    "CallContext",
    "Limits",
    "PendingCall",
    "Replay",
    "Spent",
    "ToolError",
    "ToolRecord",
    "ToolResult",
    "function_tool",
    "numbers_are_in_results",
    "read_tool",
    "read_tools",
    "tool_mistakes",
]
