"""How text is generated: the settings of a request."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from yunque.configuration import Settings

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class JsonFormat(Settings):
    """The answer is JSON: an object of any shape, or a value that a JSON Schema describes."""

    kind: Literal["json"] = "json"
    json_schema: dict[str, Any] | bool | None = None


class RegexFormat(Settings):
    """The whole answer matches a regular expression (Rust's syntax, no look-around)."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1)


class ChoiceFormat(Settings):
    """The answer is one of these texts."""

    kind: Literal["choice"] = "choice"
    options: tuple[str, ...] = Field(min_length=1)


class Tool(Settings):
    """A function that a model may call: its name, and the JSON Schema of its arguments."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})


class ToolFormat(Settings):
    """The answer calls tools: one or more if `required`, else it may be text instead. Not `parallel`: one at most."""

    kind: Literal["tools"] = "tools"
    tools: tuple[Tool, ...] = Field(min_length=1)
    required: bool = False
    parallel: bool = True


Format = Annotated[JsonFormat | RegexFormat | ChoiceFormat | ToolFormat, Field(discriminator="kind")]


class GenerationConfig(Settings):
    """Settings of one generation, under the names that the field and OpenAI's API use.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 switch those filters off. `stop`
    strings are not part of the text returned; `stop_ids` end it as an end token does, unless `ignore_end` (which
    passes over end tokens too). `seed` makes sampling repeatable, whatever else runs. `n` texts are returned, the
    likeliest of `best_of`. `logprobs` asks for the log-probability of each token and of so many of the likeliest;
    with `echo` the prompt is told first. `format` lets through only what has that form. A prompt that is too long is
    an error, unless `truncate`: then what fits of its end is read. With `num_beams` above 1 the best of so many texts
    is searched for (see `yunque.generate.search`) instead of drawing tokens.
    """

    max_new_tokens: int = Field(default=64, ge=0)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    typical_p: float = Field(default=1.0, gt=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: dict[int, _Finite] = Field(default_factory=dict)
    num_beams: int = Field(default=1, ge=1, le=64)
    length_penalty: float = Field(default=1.0, ge=-10.0, le=10.0)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    seed: int | None = None
    n: int = Field(default=1, ge=1, le=128)
    best_of: int | None = Field(default=None, ge=1, le=128)
    logprobs: int | None = Field(default=None, ge=0, le=64)
    echo: bool = False
    format: Format | None = None
    truncate: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        drawn = (
            self.temperature
            or self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.format
            or self.logprobs is not None
            or self.echo
            or (self.best_of or self.n) > 1
        )
        if self.num_beams > 1 and drawn:
            raise ValueError(
                "num_beams searches for the likeliest text: it takes no temperature, penalty, bias, format, "
                "logprobs or echo, and gives one text"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of is {self.best_of}, but n asks for {self.n} of them")
        if not self.max_new_tokens and not self.echo:
            raise ValueError("max_new_tokens is 0: nothing would be written (with echo the prompt is scored)")
        return self

    @property
    def candidates(self) -> int:
        """How many texts are written, of which `n` are returned."""
        return self.best_of or self.n
