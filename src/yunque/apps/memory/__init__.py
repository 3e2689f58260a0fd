"""Memory of conversations: kept by policy, sealed, summarized when they grow too long, searchable and erasable."""

from yunque.apps.memory.memory import Conversation, Kept, Memory
from yunque.apps.memory.policy import MemoryPolicy, read_policy
from yunque.apps.memory.search import Found
from yunque.apps.memory.window import (
    Summarize,
    Summary,
    Window,
    conversation_window,
    estimated_tokens,
)

__all__ = [
    "Conversation",
    "Found",
    "Kept",
    "Memory",
    "MemoryPolicy",
    "Summarize",
    "Summary",
    "Window",
    "conversation_window",
    "estimated_tokens",
    "read_policy",
]
