"""How text is generated: the settings of a request."""

from pydantic import Field

from yunque.configuration import Settings


class GenerationConfig(Settings):
    """Settings of one generation, under the names that the field and OpenAI's API use.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off; `stop` strings are not part of
    the text returned; `seed` makes sampling repeatable.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    stop: tuple[str, ...] = ()
    seed: int | None = None
