"""The messages of a conversation as OpenAI writes them, checked, and as a model is asked them."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from yunque.llm import Message, ToolCall
from yunque.server.parsing import refuse


class _Open(BaseModel):
    """Fields that nobody knows are passed over: clients send back what they were sent."""

    model_config = ConfigDict(extra="allow", strict=True)


class TextPart(_Open):
    """A part of a message: only text is understood."""

    type: Literal["text", "input_text", "output_text"]
    text: str


Content = str | Annotated[list[TextPart], Field(min_length=1)]


class SystemMessage(_Open):
    """What a model is told about its task."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Open):
    """What a person says."""

    role: Literal["user"]
    content: Content


class CalledFunction(_Open):
    """The function that was called; its arguments are JSON text."""

    name: str
    arguments: str


class CallMade(_Open):
    """A call that a model made before."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(_Open):
    """What the model said before."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[CallMade] | None = None


class ToolMessage(_Open):
    """What a function gave back."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def conversation(
    messages: Sequence[SystemMessage | UserMessage | AssistantMessage | ToolMessage],
) -> list[Message]:
    """The messages as a model is asked them; raises ApiError for a result of a call that nobody made."""
    made: set[str] = set()
    asked: list[Message] = []
    for number, message in enumerate(messages):
        text = text_of(message.content)
        if isinstance(message, AssistantMessage):
            calls = tuple(
                ToolCall(call.id, call.function.name, call.function.arguments)
                for call in message.tool_calls or ()
            )
            made |= {call.id for call in calls}
            asked.append(Message("assistant", text, calls))
        elif isinstance(message, ToolMessage):
            if message.tool_call_id not in made:
                where = f"messages[{number}].tool_call_id"
                refuse(f"{where}: no message before it makes a call of this id", where, "invalid_value")
            asked.append(Message("tool", text, tool_call_id=message.tool_call_id))
        else:
            asked.append(Message("user" if message.role == "user" else "system", text))
    return asked


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """The text of a message; parts are lines."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)
