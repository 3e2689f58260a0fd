"""A model that says what it was told to say: for tests, and for showing how an app behaves without a model."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from yunque.generate.config import GenerationConfig
from yunque.llm.face import (
    Chunk,
    Completion,
    Cost,
    FinishReason,
    Message,
    ModelUnavailable,
    Prompt,
    ToolCallPart,
    Usage,
    joined_calls,
)


@dataclass(frozen=True)
class Calls:
    """A reply that calls tools: (name, arguments as JSON text) of each."""

    calls: tuple[tuple[str, str], ...]
    text: str = ""


Reply = str | Calls | Exception
Script = Callable[[Sequence[Message]], str | Calls]


class ScriptedModel:
    """Answers with `script`: a function of the messages, or replies given one after the other.

    A reply that is an exception is raised, `Calls` are calls of tools. `asked` keeps every conversation it was shown.
    Tokens are words; the settings of a request other than `max_new_tokens` are not heeded.
    """

    def __init__(self, script: Script | Sequence[Reply], name: str = "scripted", local: bool = True) -> None:
        self.name = name
        self.local = local
        self.asked: list[list[Message]] = []
        self._script = script

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """The next reply."""
        words, finish_reason, calls = self._reply(messages, config)
        usage = Usage(_count_words(messages), len(words))
        return Completion(
            "".join(words).strip(), self.name, finish_reason, usage, joined_calls(calls), Cost(0.0)
        )

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """The next reply, word by word."""
        words, finish_reason, calls = self._reply(messages, config)
        for word in words:
            yield Chunk(word)
        if calls:
            yield Chunk("", tool_calls=calls)
        usage = Usage(_count_words(messages), len(words))
        yield Chunk("", finish_reason, usage, self.name, cost=Cost(0.0))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """The next reply; the prompt is seen as one user's message."""
        return self.chat([Message("user", _as_text(prompt))], config)

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """The next reply, word by word."""
        return self.stream_chat([Message("user", _as_text(prompt))], config)

    def _reply(
        self, messages: Sequence[Message], config: GenerationConfig
    ) -> tuple[list[str], FinishReason, tuple[ToolCallPart, ...]]:
        self.asked.append(list(messages))
        if callable(self._script):
            reply: Reply = self._script(messages)
        elif len(self.asked) <= len(self._script):
            reply = self._script[len(self.asked) - 1]
        else:
            raise ModelUnavailable(f"{self.name}: has no reply left")
        if isinstance(reply, Exception):
            raise reply
        calls: tuple[ToolCallPart, ...] = ()
        if isinstance(reply, Calls):
            calls = tuple(
                ToolCallPart(number, arguments, f"call_{len(self.asked)}_{number}", name)
                for number, (name, arguments) in enumerate(reply.calls)
            )
            reply = reply.text
        words = re.findall(r"\s*\S+", reply)
        if len(words) > config.max_new_tokens:
            return words[: config.max_new_tokens], "length", ()
        return words, "tool_calls" if calls else "stop", calls


def _as_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _count_words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)
