"""What a run of an agent may use, and what it used."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from yunque.configuration import Settings
from yunque.llm.face import Cost, Usage

LimitName = Literal["steps", "tokens", "usd", "seconds", "context", "repeated"]


class Limits(Settings):
    """At most so many calls of models, tokens (read and written), US dollars and seconds of work; None: no limit.

    Seconds that a run waits for a person's approval do not count.
    """

    steps: int | None = Field(default=12, ge=1)
    tokens: int | None = Field(default=50_000, ge=1)
    usd: float | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=300, gt=0)

    def less(self, spent: "Spent") -> "Limits":
        """What is left of them."""
        return self.model_copy(
            update={
                "steps": None if self.steps is None else max(0, self.steps - spent.steps),
                "tokens": None if self.tokens is None else max(0, self.tokens - spent.tokens),
                "usd": None if self.usd is None else max(0.0, self.usd - spent.usd),
                "seconds": None if self.seconds is None else max(0.0, self.seconds - spent.seconds),
            }
        )

    def within(self, other: "Limits") -> "Limits":
        """The tighter of each."""
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in type(self).model_fields}
        return self.model_copy(
            update={
                name: min((one for one in pair if one is not None), default=None)
                for name, pair in pairs.items()
            }
        )


@dataclass(frozen=True)
class Spent:
    """What was used. `cost` is None where the price of some call is not known."""

    steps: int = 0
    usage: Usage = Usage(0, 0)  # noqa: RUF009
    cost: Cost | None = Cost(0.0)  # noqa: RUF009
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.usage.prompt_tokens + self.usage.completion_tokens

    @property
    def usd(self) -> float:
        """Dollars, as far as prices are known."""
        return self.cost.usd if self.cost else 0.0

    def __add__(self, other: "Spent") -> "Spent":
        cost = self.cost + other.cost if self.cost and other.cost else None
        return Spent(self.steps + other.steps, self.usage + other.usage, cost, self.seconds + other.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "steps": self.steps,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cached_tokens": self.usage.cached_tokens,
            "usd": self.cost.usd if self.cost else None,
            "prices_of": self.cost.prices_of if self.cost else "",
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Spent":
        """Out of `as_dict`."""
        usage = Usage(values["prompt_tokens"], values["completion_tokens"], values["cached_tokens"])
        cost = None if values["usd"] is None else Cost(values["usd"], values["prices_of"])
        return cls(values["steps"], usage, cost, values["seconds"])


class LimitReached(Exception):
    """The next step would pass a limit, so it is not taken."""

    def __init__(self, limit: LimitName, allowed: float | None = None) -> None:
        super().__init__(limit)
        self.limit: LimitName = limit
        self.allowed = allowed
