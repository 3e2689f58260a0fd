"""`/v1/responses` in its stateless text form: nothing of an answer is kept, and there is nothing to come back to.

What would need a kept answer (previous_response_id, conversation, background, store) and tools are refused.
"""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from yunque.generate.config import Format, JsonFormat
from yunque.llm import Chunk, Message, Usage
from yunque.server.errors import ApiError
from yunque.server.messages import Content, TextPart, text_of
from yunque.server.parsing import refuse
from yunque.server.requests import (
    MOST_TOKENS,
    AccountFields,
    JsonObjectForm,
    Metadata,
    Part,
    TextForm,
    Unused,
    User,
    conversation_in,
    only,
    settings_of,
)
from yunque.server.said import ScoredToken, gather, scored_tokens
from yunque.server.sending import event
from yunque.server.served import Settings

_DEFAULT_TOKENS = 512  # or as many as there is room for
_LOGPROBS = "message.output_text.logprobs"


class InputMessage(Part):
    """A message of the conversation so far; an answer of this server may be sent back as it came."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: Unused = None
    status: Unused = None
    phase: Unused = None


class SchemaForm(Part):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class TextSettings(Part):
    """What form the text has."""

    format: Annotated[TextForm | JsonObjectForm | SchemaForm, Field(discriminator="type")] | None = None
    verbosity: Unused = None


class ResponseRequest(Part, AccountFields):
    """The body of /v1/responses."""

    model: str = Field(min_length=1, max_length=200)
    input: str | Annotated[list[InputMessage], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextSettings | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: only(False) = None  # type: ignore[valid-type]
    background: only(False) = None  # type: ignore[valid-type]
    previous_response_id: only() = None  # type: ignore[valid-type]
    conversation: only() = None  # type: ignore[valid-type]
    prompt: only() = None  # type: ignore[valid-type]
    tools: only([]) = None  # type: ignore[valid-type]
    tool_choice: only("auto", "none") = None  # type: ignore[valid-type]
    max_tool_calls: only() = None  # type: ignore[valid-type]
    context_management: only([]) = None  # type: ignore[valid-type]
    image: only() = None  # type: ignore[valid-type]
    moderation: only() = None  # type: ignore[valid-type]
    access_programs: only() = None  # type: ignore[valid-type]
    metadata: Metadata = None
    user: User = None
    parallel_tool_calls: Unused = None
    reasoning: Unused = None

    @property
    def scored(self) -> bool:
        """Whether log-probabilities are to be told."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def conversation_asked(self) -> list[Message]:
        """The instructions and the input as messages."""
        told = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*told, Message("user", self.input)]
        return [*told, *(_message(each) for each in self.input)]

    def settings(self) -> Settings:
        """The settings of the generation."""
        if self.stream_options and not self.stream:
            refuse("stream_options: is for a stream only, and `stream` is not true", "stream_options")
        values = {
            "max_new_tokens": self.max_output_tokens or _DEFAULT_TOKENS,
            "temperature": self.temperature_used,
            "top_p": max(self.top_p_used, 1e-9),
            "logprobs": (self.top_logprobs or 0) if self.scored else None,
            "format": self._form(),
            "truncate": self.truncation == "auto",
        }
        settings = settings_of(values, length_asked=self.max_output_tokens is not None)
        return replace(settings, conversation=conversation_in(self.metadata), subject=self.user or "")

    @property
    def temperature_used(self) -> float:
        """The temperature, by OpenAI's default."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def top_p_used(self) -> float:
        """The nucleus, by OpenAI's default."""
        return 1.0 if self.top_p is None else self.top_p

    def _form(self) -> Format | None:
        form = self.text.format if self.text else None
        if isinstance(form, SchemaForm):
            return JsonFormat(json_schema=form.json_schema)
        return JsonFormat() if isinstance(form, JsonObjectForm) else None


def _message(message: InputMessage) -> Message:
    content: str | list[TextPart] = message.content
    if message.role == "assistant":
        return Message("assistant", text_of(content))
    return Message("user" if message.role == "user" else "system", text_of(content))


class OutputText(TypedDict):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ScoredToken]


class OutputMessage(TypedDict):
    """The answer."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class CachedTokens(TypedDict):
    """Tokens that were not read anew."""

    cached_tokens: int


class ReasoningTokens(TypedDict):
    """Tokens that are not shown."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Incomplete(TypedDict):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(TypedDict):
    """What went wrong."""

    code: str
    message: str


class ResponseBody(TypedDict):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["auto"]
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: None
    metadata: dict[str, str]


class ResponseShape:
    """Writes an answer of /v1/responses; the events of a stream are numbered."""

    def __init__(self, asked: ResponseRequest) -> None:
        self._asked = asked
        self._id = "resp_" + secrets.token_hex(12)
        self._item_id = "msg_" + secrets.token_hex(12)
        self._created = int(time.time())
        self._number = 0
        self._pieces: list[Chunk] = []

    def whole(self, pieces: Iterable[Chunk]) -> Mapping[str, object]:
        """See `Shape`."""
        self._pieces = list(pieces)
        return self._finished()

    def begin(self) -> Iterable[bytes]:
        """See `Shape`."""
        started = self._body("in_progress", [], None)
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._where(), part=self._part("", []))

    def piece(self, piece: Chunk) -> Iterable[bytes]:
        """See `Shape`."""
        self._pieces.append(piece)
        scored = scored_tokens(piece.tokens)
        if piece.text or scored:
            yield self._event(
                "response.output_text.delta", **self._where(), delta=piece.text, logprobs=scored
            )

    def end(self) -> Iterable[bytes]:
        """See `Shape`."""
        body = self._finished()
        item = body["output"][0]
        part = item["content"][0]
        where = self._where()
        yield self._event("response.output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **where, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{body['status']}", response=body)

    def broken(self, error: ApiError) -> Iterable[bytes]:
        """See `Shape`."""
        code = error.code or "server_error"
        body = self._body("failed", [], None)
        body["error"] = {"code": code, "message": error.message}
        yield self._event("error", code=code, message=error.message, param=error.param)
        yield self._event("response.failed", response=body)

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    def _where(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _finished(self) -> ResponseBody:
        told = gather(self._pieces, 1)
        said = told.said[0]
        status: Literal["completed", "incomplete"] = (
            "incomplete" if said.finish_reason == "length" else "completed"
        )
        item = self._item(status, [self._part(said.text, scored_tokens(said.tokens))])
        return self._body(status, [item], told.usage)

    def _item(
        self, status: Literal["in_progress", "completed", "incomplete"], content: list[OutputText]
    ) -> OutputMessage:
        return {
            "type": "message",
            "id": self._item_id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str, logprobs: list[ScoredToken]) -> OutputText:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _body(
        self,
        status: Literal["in_progress", "completed", "incomplete", "failed"],
        output: list[OutputMessage],
        usage: Usage | None,
    ) -> ResponseBody:
        asked = self._asked
        form = asked.text.format if asked.text else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.temperature_used,
            "text": {"format": _told_form(form)},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p_used,
            "truncation": asked.truncation or "disabled",
            "usage": _usage(usage),
            "user": None,
            "metadata": asked.metadata or {},
        }


def _told_form(form: TextForm | JsonObjectForm | SchemaForm | None) -> dict[str, Any]:
    if form is None:
        return {"type": "text"}
    told = form.model_dump(by_alias=True, exclude_none=True)
    return {"name": "answer", **told} if isinstance(form, SchemaForm) else told


def _usage(usage: Usage | None) -> ResponseUsage | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
