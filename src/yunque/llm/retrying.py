"""The one loop that asks a model again: exponential back-off with full jitter, obeying Retry-After and a deadline.

The jitter is "full" as in Brooker, "Exponential Backoff And Jitter" (AWS, 2015): a random part of the whole wait.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import Field

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.breaker import Breakers, BreakerSettings, provider_of
from yunque.llm.face import (
    Chunk,
    Completion,
    ContextOverflow,
    Embeddings,
    LanguageModel,
    Message,
    ModelUnavailable,
    Prompt,
)
from yunque.llm.under_way import under_way
from yunque.llm.wrapped import Wrapped

Outcome = Literal["unreachable", "resting", "too long", "refused", "declined"]

_NEVER = 10**9
_Answer = TypeVar("_Answer")


class RetrySettings(Settings):
    """How often a model is asked, and how long is waited between (seconds).

    Before attempt n + 1 it is a random part of `first_wait` * 2^(n-1), at most `longest_wait`, or what the provider's
    Retry-After says; one that asks for more than `longest_wait` is not asked again.
    """

    attempts: int = Field(default=3, ge=1, le=100)
    first_wait: float = Field(default=0.5, ge=0)
    longest_wait: float = Field(default=20.0, ge=0)


@dataclass(frozen=True)
class Attempt:
    """How it went with one model: `reason` is one sentence, `seconds` the time it took."""

    model: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


class Refusal(UserError):
    """A model is not asked: a policy or a budget does not let this request go to it. Another one may be."""


def attempts(
    settings: RetrySettings,
    breakers: Breakers,
    model: LanguageModel,
    deadline: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator["Try"]:
    """Each time that the model may be asked, until one ends without an error.

    Who asks gives each `Try` the error that it ended with. Raises the last one where no more may follow, and Resting
    at once where the provider's circuit is open.
    """
    provider = provider_of(model)
    for number in range(settings.attempts):
        if deadline is not None and time.monotonic() >= deadline:
            # It was not asked, so it did not fail.
            raise ModelUnavailable(f"there was no time left to ask {model.name}", True)
        if rest := breakers.wait(provider):
            raise Resting(
                f"{provider} failed again and again, and is left alone for another {rest:.0f} s", True, rest
            )
        this = Try(breakers, provider)
        try:
            yield this
        finally:
            this.close()
        error = this.error
        if error is None:
            return
        if not isinstance(error, ModelUnavailable) or not error.again or number + 1 == settings.attempts:
            raise error
        wait = random.uniform(0, min(settings.longest_wait, settings.first_wait * 2**number))
        if error.after is not None:
            if error.after > settings.longest_wait:
                raise error
            # All who were told the same moment would come back at once: the jitter is added, never taken off.
            wait += error.after
        if deadline is not None and time.monotonic() + wait >= deadline:
            raise error
        sleep(wait)


class Resting(ModelUnavailable):
    """The circuit of a provider is open; `after` is when it may be asked."""


class Try:
    """One attempt; one that is closed without a word was given up, and says nothing of the provider."""

    def __init__(self, breakers: Breakers, provider: str) -> None:
        self.error: ModelUnavailable | ContextOverflow | Refusal | None = None
        self._breakers, self._provider = breakers, provider
        self._told = False

    def succeeded(self) -> None:
        """The model answered."""
        self._told = True
        self._breakers.succeeded(self._provider)

    def failed(self, error: Exception) -> None:
        """It ended with this error, which is raised again if it is the caller's own mistake.

        An error that no model should raise counts as a failure of the model, and is kept as the cause.
        """
        if isinstance(error, ContextOverflow | Refusal):
            self.error = error
            return
        if isinstance(error, UserError):
            raise error
        if not isinstance(error, ModelUnavailable):
            unexpected = ModelUnavailable(f"{self._provider} failed ({type(error).__name__})", True)
            unexpected.__cause__ = error
            error = unexpected
        self.error = error
        # What is wrong with our key or the model's name says nothing of the provider's health.
        if error.again:
            self._told = True
            self._breakers.failed(self._provider)

    def close(self) -> None:
        """The attempt is over."""
        if not self._told:
            self._breakers.untold(self._provider)


class Retrying(Wrapped):
    """A model that is asked again where it may answer then; what else it can do (`close`, ...) it still can.

    A stream is begun again only while nothing of it was seen; a `Router` can do so later too.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: RetrySettings | None = None,
        breakers: Breakers | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(model)
        self._settings, self._sleep = settings or RetrySettings(), sleep
        # Without fallbacks there is nobody else to ask: no circuit opens unless one is given.
        self._breakers = breakers or Breakers(BreakerSettings(failures=_NEVER))

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        return self._again(lambda: self.model.chat(messages, config))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        return self._again(lambda: self.model.complete(prompt, config))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        return self._stream(lambda: self.model.stream_chat(messages, config))

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        return self._stream(lambda: self.model.stream_complete(prompt, config))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text."""
        embed: Callable[[Sequence[Prompt]], Embeddings] = self.ability("embed")
        return self._again(lambda: embed(texts))

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer."""
        score: Callable[[Sequence[Message], Sequence[str]], list[float]] = self.ability("score")
        return self._again(lambda: score(messages, answers))

    def _again(self, ask: Callable[[], _Answer]) -> _Answer:
        for this in attempts(self._settings, self._breakers, self.model, self._deadline(), self._sleep):
            try:
                answer = ask()
            except ModelUnavailable as error:
                this.failed(error)
                continue
            this.succeeded()
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, ask: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk]:
        for this in attempts(self._settings, self._breakers, self.model, self._deadline(), self._sleep):
            seen = False
            try:
                for chunk in ask():
                    seen = True
                    yield chunk
            except ModelUnavailable as error:
                if seen:
                    raise
                this.failed(error)
                continue
            this.succeeded()

    def _deadline(self) -> float | None:
        call = under_way()
        return call.deadline if call else None
