"""What the engine gives out: a step for each token."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenScore:
    """A token and its log-probability (nats) among all; None for the first token of a prompt, which nothing
    foretells."""

    token_id: int
    logprob: float | None


@dataclass(frozen=True)
class Step:
    """One token that was generated, or with `echoed` one of the prompt.

    `text` is what became certain with it ("" while a character or a possible stop string is incomplete); the last
    step of text number `index` carries `finish_reason`: "stop" (end token or stop string) or "length". Where
    log-probabilities were asked for, `scored` is the token's own, and `likeliest` are the best, best first. `unseen`
    counts tokens that were written for texts that are not returned; they are told with one step.
    """

    text: str
    token_id: int
    finish_reason: FinishReason | None = None
    index: int = 0
    echoed: bool = False
    scored: TokenScore | None = None
    likeliest: tuple[TokenScore, ...] = ()
    unseen: int = 0
