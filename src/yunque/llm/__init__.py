"""One face for every model: local ones, remote ones, and several of them as one."""

from yunque.llm.face import (
    Chunk,
    Completion,
    ContextOverflow,
    FinishReason,
    LanguageModel,
    Message,
    ModelUnavailable,
    Role,
    Usage,
)
from yunque.llm.open import open_model
from yunque.llm.scripted import ScriptedModel

__all__ = [
    "Chunk",
    "Completion",
    "ContextOverflow",
    "FinishReason",
    "LanguageModel",
    "Message",
    "ModelUnavailable",
    "Role",
    "ScriptedModel",
    "Usage",
    "open_model",
]
