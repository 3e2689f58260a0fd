"""One face for every model: local ones, remote ones, and several of them as one."""

from yunque.generate.message import Message, Role, ToolCall
from yunque.llm.face import (
    Chunk,
    Completion,
    ContextOverflow,
    Cost,
    EmbeddingModel,
    Embeddings,
    FinishReason,
    LanguageModel,
    ModelUnavailable,
    Prompt,
    ScoringModel,
    TokenLogprob,
    ToolCallPart,
    Usage,
)
from yunque.llm.open import open_model
from yunque.llm.scripted import ScriptedModel

__all__ = [
    "Chunk",
    "Completion",
    "ContextOverflow",
    "Cost",
    "EmbeddingModel",
    "Embeddings",
    "FinishReason",
    "LanguageModel",
    "Message",
    "ModelUnavailable",
    "Prompt",
    "Role",
    "ScoringModel",
    "ScriptedModel",
    "TokenLogprob",
    "ToolCall",
    "ToolCallPart",
    "Usage",
    "open_model",
]
