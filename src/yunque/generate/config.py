"""How text is generated: the settings of a request."""

from typing import Self

from pydantic import Field, model_validator

from yunque.configuration import Settings


class GenerationConfig(Settings):
    """Settings of one generation, under the names that the field and OpenAI's API use.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off; `stop` strings are not part of
    the text returned; `seed` makes sampling repeatable. With `num_beams` above 1 the best of so many texts is
    searched for (see `yunque.generate.search`) instead of drawing tokens.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    num_beams: int = Field(default=1, ge=1, le=64)
    length_penalty: float = Field(default=1.0, ge=-10.0, le=10.0)
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @model_validator(mode="after")
    def _check_beams(self) -> Self:
        if self.num_beams > 1 and (self.temperature or self.repetition_penalty != 1):
            raise ValueError(
                "num_beams searches for the likeliest text: it takes no temperature and no penalty"
            )
        return self
