"""What every request to a model may say: how an answer is chosen, how long it is, what form it has, how it is sent.

A parameter that OpenAI documents and that would change the answer in a way we do not offer is refused with 400
unless it has a value that asks for nothing; one that changes nothing in the answer (user, metadata...) is accepted
and not used; one that nobody knows is refused with 400, as OpenAI's own server does, so that a misspelt name is not
silently without effect. What vLLM adds (`top_k`, `min_p`, `ignore_eos`, `structured_outputs`...) has its names.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from yunque.generate.config import ChoiceFormat, Format, GenerationConfig, JsonFormat, RegexFormat
from yunque.server.parsing import refuse
from yunque.server.served import Settings

MOST_TOKENS = 1_000_000
_MOST_STOPS = 32

Metadata = Annotated[
    dict[str, str] | None,
    Field(max_length=16, description="Of an app with a memory `conversation` is the one that goes on."),
]
User = Annotated[
    str | None,
    Field(max_length=500, description="The person who asks: what an app keeps can be forgotten by it."),
]
Unused = Annotated[Any, Field(description="Accepted, and without effect.")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
_Biases = Annotated[
    dict[_TokenKey, _Bias], Field(max_length=4096, json_schema_extra={"additionalProperties": False})
]


def only(*neutral: object) -> Any:
    """The type of a parameter that is not offered: these values ask for nothing, every other is refused."""

    def check(value: object) -> object:
        # In Python True == 1, but "suffix": 0 is not "suffix": false.
        if any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral):
            return value
        allowed = f" other than {json.dumps(neutral[0])}" if neutral else ""
        message = f"{allowed} is not supported by this server".replace("{", "{{").replace("}", "}}")
        raise PydanticCustomError("unsupported", message)

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*neutral, None]})]


class Part(BaseModel):
    """A part of a request; fields that nobody knows are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(BaseModel):
    """How a stream is sent; `include_usage` adds a last event with the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool | None = None


class TextForm(Part):
    """Any text."""

    type: Literal["text"]


class JsonObjectForm(Part):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Part):
    """A JSON Schema and what it is called; `strict` changes nothing, for every answer keeps to the schema."""

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class JsonSchemaForm(Part):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextForm | JsonObjectForm | JsonSchemaForm, Field(discriminator="type")]


class StructuredOutputs(Part):
    """The form of an answer, one of them, as vLLM names them."""

    json_value: dict[str, Any] | bool | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1)
    choice: list[str] | None = Field(default=None, min_length=1)
    json_object: bool | None = None


class AccountFields(BaseModel):
    """What OpenAI's clients send for OpenAI's own accounts and caches."""

    service_tier: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_options: Unused = None
    prompt_cache_retention: Unused = None
    safety_identifier: Unused = None


class GenerationRequest(Part):
    """What all generating endpoints but /v1/responses take."""

    model: str = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(default=None, ge=0, le=MOST_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MOST_TOKENS)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: _Biases | None = None
    stop: str | Annotated[list[str], Field(max_length=_MOST_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    ignore_eos: bool | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(default=None, ge=1, le=128)
    truncate: bool | None = Field(
        default=None, description="Read what fits of the end of a prompt that is too long, and refuse none."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | None = None
    guided_regex: str | None = Field(default=None, min_length=1)
    guided_choice: list[str] | None = Field(default=None, min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def texts(self) -> int:
        """How many answers there are to one prompt."""
        return self.n or 1

    def format(self) -> Format | None:
        """The form that the answer must have."""
        structured = self.structured_outputs or StructuredOutputs()
        forms = {
            "response_format": _form_of(self.response_format),
            "structured_outputs.json": _json(structured.json_value),
            "structured_outputs.regex": _regex(structured.regex),
            "structured_outputs.choice": _choice(structured.choice),
            "structured_outputs.json_object": JsonFormat() if structured.json_object else None,
            "guided_json": _json(self.guided_json),
            "guided_regex": _regex(self.guided_regex),
            "guided_choice": _choice(self.guided_choice),
        }
        asked = {name: form for name, form in forms.items() if form}
        if len(asked) > 1:
            refuse(f"an answer has one form, and these ask for one each: {', '.join(asked)}", [*asked][1])
        return next(iter(asked.values()), None)

    def chosen(self, length: int | None, default_length: int, **more: Any) -> Settings:
        """The request's settings; OpenAI's defaults (temperature 1) where it names none."""
        if self.stream_options and not self.stream:
            refuse("stream_options: is for a stream only, and `stream` is not true", "stream_options")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        values = {
            "max_new_tokens": default_length if length is None else length,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_k": max(self.top_k or 0, 0),
            "top_p": _share(self.top_p),
            "min_p": self.min_p or 0.0,
            "typical_p": _share(self.typical_p),
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()},
            "stop": tuple(text for text in stop if text),
            "stop_ids": tuple(self.stop_token_ids or ()),
            "ignore_end": bool(self.ignore_eos),
            "seed": self.seed,
            "n": self.texts,
            "truncate": bool(self.truncate),
            **more,
        }
        return settings_of(values, length_asked=length is not None)


def conversation_in(metadata: dict[str, str] | None) -> str | None:
    """The conversation of an app that a request names."""
    return (metadata or {}).get("conversation")


def settings_of(values: dict[str, Any], length_asked: bool) -> Settings:
    """Settings of these values; what does not go together is an ApiError."""
    try:
        return Settings(GenerationConfig(**values), length_asked)
    except ValidationError as error:
        refuse(error.errors()[0]["msg"].removeprefix("Value error, "))


def _share(value: float | None) -> float:
    # A nucleus of 0 holds the likeliest token only, which is what the smallest positive one does.
    return 1.0 if value is None else max(value, 1e-9)


def _form_of(form: TextForm | JsonObjectForm | JsonSchemaForm | None) -> Format | None:
    if isinstance(form, JsonSchemaForm):
        return JsonFormat(json_schema=form.json_schema.json_schema)
    return JsonFormat() if isinstance(form, JsonObjectForm) else None


def _json(schema: dict[str, Any] | bool | None) -> Format | None:
    return None if schema is None else JsonFormat(json_schema=schema)


def _regex(pattern: str | None) -> Format | None:
    return None if pattern is None else RegexFormat(pattern=pattern)


def _choice(options: list[str] | None) -> Format | None:
    return None if options is None else ChoiceFormat(options=tuple(options))
