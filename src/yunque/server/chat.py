"""`/v1/chat/completions`: a model or an app answers a conversation, or calls tools."""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from yunque.generate.config import Format, Tool, ToolFormat
from yunque.llm import Chunk, FinishReason, Message, TokenLogprob, ToolCall, ToolCallPart, Usage
from yunque.server.errors import ApiError
from yunque.server.messages import ChatMessage, conversation
from yunque.server.parsing import refuse
from yunque.server.requests import (
    MOST_TOKENS,
    AccountFields,
    GenerationRequest,
    Metadata,
    Part,
    Unused,
    conversation_in,
    only,
)
from yunque.server.said import Said, ScoredToken, UsageBody, extra_of, gather, scored_tokens, usage_body
from yunque.server.sending import event
from yunque.server.served import Settings

_DEFAULT_TOKENS = 512  # or as many as there is room for
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Part):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Part):
    """A tool that is a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The name of a function."""

    name: _Name


class NamedTool(Part):
    """The one function that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(GenerationRequest, AccountFields):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: only([]) = None  # type: ignore[valid-type]
    function_call: only("none", "auto") = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    prediction: only() = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]
    moderation: only() = None  # type: ignore[valid-type]
    store: Unused = None
    metadata: Metadata = None
    reasoning_effort: Unused = None
    verbosity: Unused = None

    def conversation(self) -> list[Message]:
        """The messages, checked."""
        return conversation(self.messages)

    def settings(self) -> Settings:
        """The settings of the generation."""
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs: is for when `logprobs` is true", "top_logprobs")
        length = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        chosen = self.chosen(length, _DEFAULT_TOKENS, logprobs=logprobs, format=self._answer_form())
        return replace(chosen, conversation=conversation_in(self.metadata), subject=self.user or "")

    def _answer_form(self) -> Format | None:
        form, tools = self.format(), self._tools()
        if form and tools:
            refuse("an answer has one form: ask for tools, or for a form of the text", "tools")
        return form or tools

    def _tools(self) -> ToolFormat | None:
        names = [tool.function.name for tool in self.tools or ()]
        for number, name in enumerate(names):
            if name in names[:number]:
                where = f"tools[{number}].function.name"
                refuse(f"{where}: another function has this name already", where)
        if self.tool_choice in (None, "none") and (not names or self.tool_choice):
            return None
        if not names:
            if self.tool_choice == "auto":
                return None
            refuse("tool_choice: there are no tools to choose from", "tool_choice")
        wanted = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        if wanted is not None and wanted not in names:
            refuse(f"tool_choice: there is no tool {wanted!r}", "tool_choice")
        offered = [tool.function for tool in self.tools or () if wanted in (None, tool.function.name)]
        return ToolFormat(
            tools=tuple(as_tool(function) for function in offered),
            required=self.tool_choice == "required" or wanted is not None,
            parallel=self.parallel_tool_calls is not False and wanted is None,
        )


def as_tool(function: Function) -> Tool:
    """The tool as a model is told of it."""
    schema = {"type": "object"} if function.parameters is None else function.parameters
    return Tool(name=function.name, description=function.description or "", parameters=schema)


class CalledFunctionBody(TypedDict):
    """The function that is called, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCallBody(TypedDict):
    """A call that the client is to make."""

    id: str
    type: Literal["function"]
    function: CalledFunctionBody


class AnswerMessage(TypedDict):
    """The answer; its content is null where there are only calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCallBody]]


class ChatLogprobs(TypedDict):
    """The tokens of an answer with their log-probabilities."""

    content: list[ScoredToken]
    refusal: None


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatBody(TypedDict):
    """The answer of /v1/chat/completions. An app's has the field `yunque`: citations, verdicts..."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody | None
    yunque: NotRequired[dict[str, Any]]


class ChatShape:
    """Writes an answer of /v1/chat/completions."""

    def __init__(self, asked: ChatRequest) -> None:
        self._asked = asked
        self._head = {
            "id": "chatcmpl-" + secrets.token_hex(12),
            "created": int(time.time()),
            "model": asked.model,
        }
        self._usage: Usage | None = None

    def whole(self, pieces: Iterable[Chunk]) -> Mapping[str, object]:
        """See `Shape`."""
        told = gather(pieces, self._asked.texts)
        body: ChatBody = {
            **self._head,  # type: ignore[typeddict-item]
            "object": "chat.completion",
            "choices": [self._choice(index, said) for index, said in enumerate(told.said)],
            "usage": usage_body(told.usage),
        }
        return body if told.extra is None else {**body, "yunque": told.extra}

    def _choice(self, index: int, said: Said) -> ChatChoice:
        calls = said.tool_calls
        message: AnswerMessage = {
            "role": "assistant",
            "content": None if calls and not said.text else said.text,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = [_call_body(call) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(said.tokens),
            "finish_reason": said.finish_reason,
        }

    def begin(self) -> Iterable[bytes]:
        """See `Shape`."""
        for index in range(self._asked.texts):
            yield self._event(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, piece: Chunk) -> Iterable[bytes]:
        """See `Shape`."""
        self._usage = piece.usage or self._usage
        told = self._logprobs(piece.tokens) if piece.tokens else None
        scored = bool(told and told["content"])
        if piece.text or (scored and not piece.tool_calls):
            yield self._event(piece.index, {"content": piece.text}, told)
            told = None
        if piece.tool_calls:
            calls = [_call_delta(part) for part in piece.tool_calls]
            yield self._event(piece.index, {"tool_calls": calls}, told)
        if piece.finish_reason:
            yield self._event(piece.index, {}, None, piece.finish_reason, extra_of(piece))

    def end(self) -> Iterable[bytes]:
        """See `Shape`."""
        if self._asked.include_usage:
            yield event({**self._chunk(), "choices": [], "usage": usage_body(self._usage)})
        yield b"data: [DONE]\n\n"

    def broken(self, error: ApiError) -> Iterable[bytes]:
        """See `Shape`."""
        return (event(error.body()),)

    def _logprobs(self, tokens: Iterable[TokenLogprob]) -> ChatLogprobs | None:
        if not self._asked.logprobs:
            return None
        return {"content": scored_tokens(tokens), "refusal": None}

    def _chunk(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _event(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: ChatLogprobs | None = None,
        finish_reason: FinishReason | None = None,
        extra: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._chunk(), "choices": [choice]}
        if self._asked.include_usage:
            chunk["usage"] = None
        if extra is not None:
            chunk["yunque"] = extra
        return event(chunk)


def _call_body(call: ToolCall) -> ToolCallBody:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _call_delta(part: ToolCallPart) -> dict[str, Any]:
    """The first piece of a call names it, the later ones have only more of its arguments."""
    if part.name is None:
        return {"index": part.number, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.number, "id": part.id, "type": "function", "function": function}
