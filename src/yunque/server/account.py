"""The account of a request: who asks, until when, and what it used. Every part of the server writes into it."""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from yunque.server.errors import ApiError
from yunque.server.limits import Limits
from yunque.workspace.api_keys import ApiKey, KeyUsage

Cut = Callable[[ApiError], None]


class Account:
    """What is known of one request. May be written into from several threads.

    `id` is sent as the header x-request-id; `deadline` (of time.monotonic) ends its work; `remark` is a word for
    the log, `route` where the gate turned it away from, `gone` that the client went away. Without a key there are no
    limits; everything is counted all the same.
    """

    def __init__(self) -> None:
        self.id = "req_" + secrets.token_hex(12)
        self.started = time.monotonic()
        self.deadline: float | None = None
        self.key: ApiKey | None = None
        self.remark = ""
        self.route = ""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.first_token_seconds: float | None = None
        self.cut_by: ApiError | None = None
        self.gone = False
        self._limits: Limits | None = None
        self._reserved = 0
        self._charged = KeyUsage()
        self._cuts: set[Cut] = set()
        self._lock = threading.Lock()

    def admit(self, key: ApiKey, limits: Limits) -> None:
        """The request came with this key; raises ApiError 429 where its limits do not let it in."""
        self.key = key
        limits.admit(key)
        self._limits = limits

    def may_use(self, kind: str, name: str) -> bool:
        """Whether the key is good for the model or app `kind/name`."""
        return not self.key or not self.key.terms.models or f"{kind}/{name}" in self.key.terms.models

    def check_model(self, kind: str, name: str) -> None:
        """Raises ApiError 403 where the key is for other models."""
        if not self.may_use(kind, name):
            raise ApiError(403, f"this API key is not for {kind}/{name}", "model", "model_not_allowed")

    @property
    def room(self) -> int | None:
        """How many tokens the key has left for one request; None where it has no such limit."""
        return self._limits.room(self.key) if self.key and self._limits else None

    def reserve(self, prompt_tokens: int, most_completion_tokens: int) -> None:
        """Count a prompt as read and put by what its answer may take.

        Raises ApiError 429 where the key's token rate, or its budget of the day, has not so much left.
        """
        wanted = prompt_tokens + most_completion_tokens
        if self.key and self._limits:
            self._limits.reserve(self.key, wanted)
        with self._lock:
            self._reserved += wanted
            self.prompt_tokens += prompt_tokens

    def wrote(self, tokens: int = 1) -> None:
        """Count tokens as written."""
        with self._lock:
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.started
            self.completion_tokens += tokens

    def used(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what an answer used that nothing was put by for, as that of an app."""
        with self._lock:
            self.prompt_tokens += prompt_tokens
        if completion_tokens:
            self.wrote(completion_tokens)

    def settle(self) -> None:
        """Charge the key with what was used since the last time, and let go what was put by. Writes to the disk."""
        with self._lock:
            fresh = KeyUsage(
                1 - self._charged.requests,
                self.prompt_tokens - self._charged.prompt_tokens,
                self.completion_tokens - self._charged.completion_tokens,
            )
            self._charged = KeyUsage(1, self.prompt_tokens, self.completion_tokens)
            reserved, self._reserved = self._reserved, 0
        if self.key and self._limits:
            self._limits.settle(self.key, reserved, fresh)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to charge or to let go."""
        now = KeyUsage(1, self.prompt_tokens, self.completion_tokens)
        return self._limits is None or (now == self._charged and not self._reserved)

    @contextmanager
    def on_cut(self, cut: Cut) -> Iterator[None]:
        """While this lasts, `cut` is called when the request has to end early. To be used on the event loop."""
        loop = asyncio.get_running_loop()
        timer = None
        if self.deadline is not None:
            timer = loop.call_later(self.deadline - time.monotonic(), cut, self.too_late())
        self._cuts.add(cut)
        try:
            if self.cut_by:
                cut(self.cut_by)
            yield
        finally:
            self._cuts.discard(cut)
            if timer:
                timer.cancel()

    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return not self.gone and self.cut_by is None and not late

    def check(self) -> None:
        """Raises ApiError where the request has to end: it was cut, its time is over, or the client has gone."""
        if self.cut_by:
            raise self.cut_by
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise self.too_late()
        if self.gone:
            raise ApiError(400, "the client went away", code="disconnected")

    def too_late(self) -> ApiError:
        """What a request whose deadline has passed ends with."""
        seconds = (self.deadline or self.started) - self.started
        message = f"the answer was not ready within the {seconds:g} seconds that this request may take"
        return ApiError(504, message, code="timeout", headers={"x-should-retry": "false"})

    def cut(self, error: ApiError) -> None:
        """End the request early, with this error. To be called on the event loop."""
        self.cut_by = error
        for cut in tuple(self._cuts):
            cut(error)


_CURRENT: ContextVar[Account] = ContextVar("account")


def account() -> Account:
    """The account of the request that is answered here, also in a worker's thread; else a new one, of nobody."""
    try:
        return _CURRENT.get()
    except LookupError:
        return Account()


@contextmanager
def answering(current: Account) -> Iterator[None]:
    """While this lasts, `account()` is this one."""
    token = _CURRENT.set(current)
    try:
        yield
    finally:
        _CURRENT.reset(token)
