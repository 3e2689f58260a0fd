"""What clients may ask: the bodies of OpenAI's completions and chat completions, checked.

A parameter that OpenAI documents and that would change the answer in a way we do not offer (logprobs, tools, n > 1,
penalties...) is refused with 400 unless it has its neutral value; one that changes nothing in the answer (user,
metadata...) is accepted and not used; one that nobody knows is refused with 400, as OpenAI's own server does, so
that a misspelt name is not silently without effect. `top_k` and `repetition_penalty` are known, as elsewhere.
"""

import json
import math
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from yunque.generate.config import GenerationConfig
from yunque.llm import Message, Role
from yunque.server.errors import ApiError
from yunque.server.served import Settings

_UNUSED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
)
# Parameter: the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
}
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_COMPLETION_TOKENS = 16  # OpenAI's default
_CHAT_TOKENS = 512  # or as many as there is room for


class StreamOptions(BaseModel):
    """How a stream is sent; `include_usage` adds a last chunk with the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _settings(self, length: int | None, default_length: int) -> Settings:
        """The request's settings; OpenAI's defaults (temperature 1) where it names none."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        config = GenerationConfig(
            max_new_tokens=length or default_length,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            # A nucleus of 0 holds the likeliest token only, which is what the smallest positive one does.
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-9),
            repetition_penalty=self.repetition_penalty or 1.0,
            stop=tuple(text for text in stop if text),
            seed=self.seed,
        )
        return Settings(config, length_asked=length is not None)


class CompletionRequest(_Request):
    """The body of /v1/completions."""

    prompt: str | list[str]

    def text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def settings(self) -> Settings:
        """The settings of the generation."""
        return self._settings(self.max_tokens, _COMPLETION_TOKENS)


class ChatRequest(_Request):
    """The body of /v1/chat/completions."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)

    def conversation(self) -> list[Message]:
        """The messages, checked."""
        return [_message(message, f"messages[{number}]") for number, message in enumerate(self.messages)]

    def settings(self) -> Settings:
        """The settings of the generation."""
        return self._settings(self.max_completion_tokens or self.max_tokens, _CHAT_TOKENS)


RequestT = TypeVar("RequestT", bound=_Request)


def parse(cls: type[RequestT], body: bytes) -> RequestT:
    """`body` as a request; raises ApiError 400 that names the field."""
    values = _decoded(body)
    values = {name: value for name, value in values.items() if name not in _UNUSED and value is not None}
    for name, neutral in _UNSUPPORTED.items():
        if name in values and not _is_one_of(values.pop(name), neutral):
            allowed = f" other than {json.dumps(neutral[0])}" if neutral else ""
            _refuse(f"{name!r}{allowed} is not supported by this server", name, "unsupported_parameter")
    try:
        request = cls.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = _path(problem["loc"])
        if problem["type"] == "extra_forbidden":
            _refuse(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
        if problem["type"] == "missing":
            _refuse(f"you must provide the parameter {name!r}", name, "missing_required_parameter")
        _refuse(f"{name}: {problem['msg']}", name)
    if isinstance(request.stop, list) and len(request.stop) > 4:
        _refuse("stop: at most 4 texts", "stop")
    if (
        isinstance(request, CompletionRequest)
        and isinstance(request.prompt, list)
        and len(request.prompt) != 1
    ):
        _refuse("prompt: this server answers one prompt for each request", "prompt")
    return request


def _refuse(message: str, param: str | None, code: str | None = None) -> NoReturn:
    raise ApiError(400, message, param, code)


def _is_one_of(value: object, neutral: tuple[object, ...]) -> bool:
    # In Python True == 1, but "logprobs": 0 is not "logprobs": false.
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral)


def _path(location: tuple[int | str, ...]) -> str:
    # Of a union, pydantic adds the member that failed ("stop.str"): no client knows that name.
    named = [part for part in location if part not in ("str", "list[str]")]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named).lstrip(".")


def _decoded(body: bytes) -> dict[str, Any]:
    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a JSON number")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=no_number)
        # "\ud800" alone is a JSON string, but no text: it could be neither tokenized nor stored.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        _refuse("the body is not UTF-8 text", None, "invalid_json")
    except UnicodeEncodeError:
        _refuse("the body holds half a surrogate pair, which is no text", None, "invalid_json")
    except (ValueError, RecursionError):
        _refuse("the body is not valid JSON", None, "invalid_json")
    if not isinstance(values, dict):
        _refuse("the body must be a JSON object", None, "invalid_json")
    if not all(map(_is_finite, values.values())):
        _refuse("the body holds a number that is too large", None, "invalid_json")
    return values


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _message(message: dict[str, Any], where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(
            f"{where}.role: must be one of system, developer, user, assistant",
            f"{where}.role",
            "invalid_value",
        )
    if message.get("tool_calls") or message.get("function_call"):
        _refuse(f"{where}: tool calls are not supported by this server", where, "unsupported_value")
    return Message(_ROLES[role], _content(message.get("content"), f"{where}.content"))


def _content(content: object, where: str) -> str:
    """A message's text: a string, or parts of type text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        _refuse(f"{where}: must be text, or a list of parts of type text", where, "invalid_type")
    texts: list[str] = []
    for number, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            _refuse(
                f"{where}[{number}]: only parts of type text are supported",
                f"{where}[{number}]",
                "invalid_value",
            )
        texts.append(text)
    return "\n".join(texts)
