"""A remote model that never sees personal data: marks stand for it on the way out, and it is put back on return."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from yunque.data.personal import Redaction
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Chunk, Completion, LanguageModel, Message, Prompt, ToolCall


def without_personal_data(model: LanguageModel) -> LanguageModel:
    """The model itself where nothing leaves this machine, else one that is shown marks only."""
    return model if model.local else _Marked(model)


def redacted(messages: Sequence[Message], redaction: Redaction) -> list[Message]:
    """A conversation with marks in the place of personal data, in calls of tools too."""
    return [
        replace(
            message,
            content=redaction.redact(message.content),
            tool_calls=tuple(
                ToolCall(call.id, call.name, redaction.redact(call.arguments)) for call in message.tool_calls
            ),
        )
        for message in messages
    ]


class _Marked:
    """See `without_personal_data`. A stream is told when it is whole: a mark may be cut in two by its pieces."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.name, self.local = model.name, False

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        redaction = Redaction()
        return _restored(self._model.chat(redacted(messages, redaction), config), redaction)

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        if not isinstance(prompt, str):
            raise TypeError("tokens cannot be looked through for personal data: give the text")
        redaction = Redaction()
        return _restored(self._model.complete(redaction.redact(prompt), config), redaction)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation, in one piece."""
        yield _as_chunk(self.chat(messages, config))

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text, in one piece."""
        yield _as_chunk(self.complete(prompt, config))


def _restored(completion: Completion, redaction: Redaction) -> Completion:
    calls = tuple(
        ToolCall(call.id, call.name, redaction.restore(call.arguments)) for call in completion.tool_calls
    )
    return replace(completion, text=redaction.restore(completion.text), tool_calls=calls)


def _as_chunk(completion: Completion) -> Chunk:
    from yunque.llm.face import ToolCallPart

    parts = tuple(
        ToolCallPart(number, call.arguments, call.id, call.name)
        for number, call in enumerate(completion.tool_calls)
    )
    return Chunk(
        completion.text,
        completion.finish_reason,
        completion.usage,
        completion.model,
        tool_calls=parts,
        cost=completion.cost,
        note=completion.note,
    )
