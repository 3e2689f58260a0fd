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
    Embeddings,
    LanguageModel,
    Message,
    ModelUnavailable,
    Prompt,
)
from yunque.llm.under_way import pause, raise_if_stopped, under_way
from yunque.llm.wrapped import Wrapped

Outcome = Literal["unreachable", "resting", "asked to wait", "too long", "refused", "declined"]

_NEVER = 10**9
_FAIR = 10.0
"""Who has less time than this to answer (seconds) has not failed when it is over: the caller was impatient."""
_JUST_ABOUT = 0.02
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
    sleep: Callable[[float], None] = pause,
    patient: bool = False,
) -> Iterator["Try"]:
    """Each time that the model may be asked, until one ends without an error.

    Who asks gives each `Try` the error that it ended with. Raises the last one where no more may follow, Resting at
    once where the provider's circuit is open, and AskedToWait where another call was told to wait (`patient` waits,
    up to the longest wait). Nothing is asked, and nobody waits, for a call that was stopped.
    """
    provider = provider_of(model)
    waited = False
    for number in range(settings.attempts):
        raise_if_stopped(model.name)
        if not waited and (rest := breakers.rest_of(model.name)):
            asked = AskedToWait(f"{model.name} asked to be left alone for another {rest:.0f} s", True, rest)
            too_late = deadline is not None and time.monotonic() + rest >= deadline
            if not patient or rest > settings.longest_wait or too_late:
                raise asked
            sleep(rest)
            raise_if_stopped(model.name)
        if deadline is not None and time.monotonic() >= deadline:
            # It was not asked, so it did not fail.
            raise ModelUnavailable(f"there was no time left to ask {model.name}", True)
        if rest := breakers.wait(provider):
            raise Resting(
                f"{provider} failed again and again, and is left alone for another {rest:.0f} s", True, rest
            )
        this = Try(breakers, provider, model.name)
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
            waited = True
        if deadline is not None and time.monotonic() + wait >= deadline:
            raise error
        sleep(wait)


class Resting(ModelUnavailable):
    """The circuit of a provider is open; `after` is when it may be asked."""


class AskedToWait(Resting):
    """A call before this one was told to come back later; `after` is when."""


def in_haste(started: float, until: float | None) -> bool:
    """Whether what began at `started` ends now because its caller's own deadline, a short one, is over."""
    now = time.monotonic()
    return until is not None and now >= until - _JUST_ABOUT and now - started < _FAIR


class Try:
    """One attempt; one that is closed without a word was given up, and says nothing of the provider.

    `until` is the caller's own deadline for it (`time.monotonic()`).
    """

    def __init__(self, breakers: Breakers, provider: str, name: str = "") -> None:
        self.error: ModelUnavailable | UserError | None = None
        self.until: float | None = None
        self._breakers, self._provider, self._name = breakers, provider, name
        self._started = time.monotonic()
        self._told = False

    def succeeded(self) -> None:
        """The model answered."""
        self._told = True
        self._breakers.succeeded(self._provider)

    def failed(self, error: Exception) -> None:
        """It ended with this error.

        An error that no model should raise counts as a failure of the model, and is kept as the cause.
        """
        if isinstance(error, UserError):
            self.error = error
            return
        if not isinstance(error, ModelUnavailable):
            unexpected = ModelUnavailable(f"{self._provider} failed ({type(error).__name__})", True)
            unexpected.__cause__ = error
            error = unexpected
        self.error = error
        if error.after:
            self._breakers.rest(self._name, error.after)
        # What is wrong with our key or the model's name says nothing of the provider's health, nor does our haste.
        call = under_way()
        stopped = call is not None and call.stopped
        if error.again and not stopped and not in_haste(self._started, self.until):
            self._told = True
            self._breakers.failed(self._provider)

    def close(self) -> None:
        """The attempt is over."""
        if not self._told:
            self._breakers.untold(self._provider)


def is_sign_of_life(chunk: Chunk) -> bool:
    """Whether a piece says only that the model is still at work (it thinks): no part of the answer."""
    if chunk.text or chunk.usage is not None:
        return False
    told = chunk.tool_calls or chunk.tokens or chunk.finish_reason or chunk.note
    return not (told or chunk.restart or chunk.echoed)


class Retrying(Wrapped):
    """A model that is asked again where it may answer then; what else it can do (`close`, ...) it still can.

    A stream is begun again only while nothing of it was seen; a `Router` can do so later too.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: RetrySettings | None = None,
        breakers: Breakers | None = None,
        sleep: Callable[[float], None] = pause,
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
        for this in self._attempts():
            try:
                answer = ask()
            except ModelUnavailable as error:
                this.failed(error)
                continue
            this.succeeded()
            return answer
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, ask: Callable[[], Iterator[Chunk]]) -> Iterator[Chunk]:
        for this in self._attempts():
            seen = False
            try:
                for chunk in ask():
                    if is_sign_of_life(chunk):
                        continue
                    seen = True
                    yield chunk
            except ModelUnavailable as error:
                if seen:
                    raise
                this.failed(error)
                continue
            this.succeeded()

    def _attempts(self) -> Iterator[Try]:
        call = under_way()
        left = call.left() if call else None
        deadline = None if left is None else time.monotonic() + left
        return attempts(self._settings, self._breakers, self.model, deadline, self._sleep, patient=True)
