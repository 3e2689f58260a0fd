"""The way of one request through the models that may answer it: in what order, until when, and how it went."""

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from yunque.errors import UserError
from yunque.llm.breaker import Breakers, provider_of
from yunque.llm.face import ContextOverflow, LanguageModel, ModelUnavailable
from yunque.llm.retrying import AskedToWait, Attempt, Outcome, Refusal, Resting, Try, attempts
from yunque.llm.under_way import raise_if_stopped, under_way
from yunque.llm.wire import Declined

if TYPE_CHECKING:
    from yunque.llm.router import RouterSettings

_WORDS: dict[Outcome, str] = {
    "unreachable": "could not be reached",
    "resting": "failed too often and is left alone for now",
    "asked to wait": "asked to be left alone for a while",
    "too long": "has no room for so long a text",
    "refused": "was not asked",
    "declined": "declined to answer",
}


class Route:
    """Which models are asked, in what order, and how it went with each. It belongs to one request."""

    def __init__(
        self,
        settings: "RouterSettings",
        opened: Callable[[str], LanguageModel],
        breakers: Breakers,
        sleep: Callable[[float], None],
    ) -> None:
        last = (settings.local_fallback,) if settings.local_fallback else ()
        self._settings, self._opened, self._breakers, self._sleep = settings, opened, breakers, sleep
        self._queue = list(dict.fromkeys((settings.model, *settings.fallbacks, *last)))
        self._asked: set[str] = set()
        self._errors: dict[str, UserError | ModelUnavailable] = {}
        self._overflow: ContextOverflow | None = None
        self._waited = False
        self._first: LanguageModel | None = None
        left = [settings.deadline, call.left() if (call := under_way()) else None]
        limits = [limit for limit in left if limit is not None]
        self.deadline = time.monotonic() + min(limits) if limits else None
        self.attempts: list[Attempt] = []

    def tries(self) -> Iterator[tuple[LanguageModel, Try]]:
        """Each model with an attempt at it, until one ends without an error; then raises the error that says most."""
        while self._queue or self._rested():
            name = self._queue.pop(0)
            self._asked.add(name)
            started, opened = time.monotonic(), False
            try:
                model = self._opened(name)
                opened = True
                if name == self._settings.model:
                    self._first = model
                for this in attempts(
                    self._settings.retries, self._breakers, model, self.limit(), self._sleep
                ):
                    yield model, this
                return
            except ContextOverflow as error:
                self._note(name, "too long", error, started)
                self._take_longer_ones(error)
            except Resting as error:
                self._note(name, _outcome(error), error, started)
            except Declined as error:
                self._note(name, "declined", error, started)
            except ModelUnavailable as error:
                self._note(name, "unreachable", error, started)
            except Refusal as error:
                self._note(name, "refused", error, started)
            except UserError as error:
                # What the caller asked wrongly of the model that they named is told at once. That there is no such
                # model, or that a fallback cannot do what was asked, leaves the next one to answer.
                if opened and name == self._settings.model:
                    raise
                self._note(name, "unreachable", error, started)
            # Nobody waits for what the next one would say.
            raise_if_stopped(name)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                break
        raise self._failure()

    def next_beside(self) -> LanguageModel | None:
        """The model to ask beside one that is slow: the next in line, else the same again (None says so)."""
        # In a thread of its own, while the route may go on.
        for name in list(self._queue):
            try:
                model = self._opened(name)
            except (UserError, ModelUnavailable):
                continue
            if self._breakers.state(provider_of(model)) == "closed" and not self._breakers.rest_of(name):
                return model
        return None

    def limit(self) -> float | None:
        """Until when (`time.monotonic()`) the attempt that begins now may take: those that follow get as much."""
        if self.deadline is None:
            return None
        now = time.monotonic()
        return now + max(0.0, self.deadline - now) / (len(self._queue) + 1)

    def note(self, model: LanguageModel) -> str:
        """What a user should know: that another model answered than the one that was named, and why."""
        if model is self._first:
            return ""
        named, why = self._settings.model, "was slow to answer"
        if self.attempts:
            first = self.attempts[0]
            why = _WORDS[first.outcome] + (f" ({first.reason})" if first.outcome == "refused" else "")
        where = " on this machine" if model.local else ""
        return f"{named} {why}; answered by {model.name}{where}"

    def _note(self, name: str, outcome: Outcome, error: UserError | ModelUnavailable, started: float) -> None:
        self._errors[name] = error
        self.attempts.append(Attempt(name, outcome, str(error), time.monotonic() - started))

    def _take_longer_ones(self, error: ContextOverflow) -> None:
        """After a text that was too long models for long ones follow; and others, if it was not the first."""
        others = self._queue if self._overflow is None and len(self._asked) > 1 else []
        self._overflow = self._overflow or error
        longer = [name for name in self._settings.context_window_fallbacks if name not in self._asked]
        self._queue = list(dict.fromkeys((*longer, *others)))

    def _rested(self) -> bool:
        """Where every provider is left alone, wait once for the first that may be asked again."""
        rests = {
            name: error.after or 0.0 for name, error in self._errors.items() if isinstance(error, Resting)
        }
        if self._waited or not rests or len(rests) < len(self._errors):
            return False
        self._waited = True
        wait = min(rests.values())
        too_late = self.deadline is not None and time.monotonic() + wait >= self.deadline
        if wait > self._settings.retries.longest_wait or too_late:
            return False
        self._sleep(wait)
        self._queue = list(rests)
        return True

    def _failure(self) -> UserError | ModelUnavailable:
        if self._overflow:
            return self._overflow
        errors = list(self._errors.values())
        if len(errors) == 1 or not any(isinstance(error, ModelUnavailable) for error in errors):
            return errors[0]
        told = "; ".join(f"{name}: {error}" for name, error in self._errors.items())
        again = any(isinstance(error, ModelUnavailable) and error.again for error in errors)
        return ModelUnavailable(f"no model answered ({told})", again)


def _outcome(error: Resting) -> Outcome:
    return "asked to wait" if isinstance(error, AskedToWait) else "resting"
