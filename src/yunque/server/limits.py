"""What a key may use: requests and tokens a minute (buckets that fill up again) and a budget of tokens a day.

A bucket holds as much as its limit and fills by its limit each minute; it is kept in the memory of this process.
What is left of a day's budget is in the catalog, counted from what answers really took, so that neither a restart nor
a second server forgets it. An answer's most is put by before it is begun and settled when it ends: however many
requests run at once, what they take together does not pass the budget.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from yunque.server.errors import ApiError
from yunque.workspace import Workspace
from yunque.workspace.api_keys import ApiKey, KeyUsage, add_key_usage, key_usage, today


class Bucket:
    """Holds at most `limit`, and is filled by as much each minute. What is taken without asking may leave a debt."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        """How much is in it."""
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take out so much; a negative amount is put back."""
        self._level = min(self.limit, self.level(now) - amount)

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until it holds so much."""
        return max(0.0, (min(amount, self.limit) - self.level(now)) * 60 / self.limit)


@dataclass
class _Held:
    """What this process knows of a key."""

    requests: Bucket | None
    tokens: Bucket | None
    day: str = ""
    used: int = 0
    reserved: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    catalog_turn: threading.Lock = field(default_factory=threading.Lock)
    """Reading or writing the day's total and taking it over is one step; `lock` alone is held for no disk."""

    def know(self, day: str, used: int) -> None:
        """Take over the day's total from the catalog."""
        self.used = max(used, self.used) if day == self.day else used
        self.day = day


class Limits:
    """The limits of all keys. May be used from several threads."""

    def __init__(self, workspace: Workspace, clock: Callable[[], float] = time.monotonic) -> None:
        self._workspace = workspace
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def admit(self, key: ApiKey) -> None:
        """Let a request in; raises ApiError 429. Reads the catalog where the key has a budget."""
        held = self._of(key)
        if key.terms.tokens_a_day:
            with held.catalog_turn:
                day, used = today(), key_usage(self._workspace.catalog.connection(), key.id).tokens
                with held.lock:
                    held.know(day, used)
        with held.lock:
            now = self._clock()
            self._check_tokens(key, held, 1, now)
            if held.requests:
                if held.requests.level(now) < 1:
                    message = f"this API key may make {held.requests.limit} requests a minute"
                    raise _rate_error(message, held.requests.seconds_until(1, now))
                held.requests.take(1, now)

    def room(self, key: ApiKey) -> int | None:
        """How many tokens are left for one request; None where there is no limit."""
        held = self._of(key)
        with held.lock:
            return _least(held.tokens.level(self._clock()) if held.tokens else None, _budget_left(key, held))

    def reserve(self, key: ApiKey, tokens: int) -> None:
        """Put by what a request may take; raises ApiError 429 where so much is not left."""
        held = self._of(key)
        with held.lock:
            now = self._clock()
            self._check_tokens(key, held, tokens, now)
            if held.tokens:
                held.tokens.take(tokens, now)
            held.reserved += tokens

    def settle(self, key: ApiKey, reserved: int, used: KeyUsage) -> None:
        """Charge what a request really took, and let go what was put by for it. Writes one row."""
        held = self._of(key)
        with held.catalog_turn:
            if used != KeyUsage():
                day = today()
                with self._workspace.catalog.transaction() as connection:
                    total = add_key_usage(connection, key.id, used)
                with held.lock:
                    held.know(day, total.tokens)
            with held.lock:
                held.reserved -= reserved
                if held.tokens:
                    held.tokens.take(used.tokens - reserved, self._clock())

    def headers(self, key: ApiKey) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` headers, for the limits that the key has. A budget is told where no rate is."""
        held = self._of(key)
        told: dict[str, str] = {}
        with held.lock:
            now = self._clock()
            for what, bucket in (("requests", held.requests), ("tokens", held.tokens)):
                if bucket:
                    told[f"x-ratelimit-limit-{what}"] = str(bucket.limit)
                    told[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level(now))))
                    told[f"x-ratelimit-reset-{what}"] = _duration(bucket.seconds_until(bucket.limit, now))
            left = _budget_left(key, held)
            if left is not None:
                told["x-ratelimit-limit-tokens-day"] = str(key.terms.tokens_a_day)
                told["x-ratelimit-remaining-tokens-day"] = str(max(0, left))
                told["x-ratelimit-reset-tokens-day"] = _duration(_seconds_of_the_day_left())
        return told

    def _of(self, key: ApiKey) -> _Held:
        with self._lock:
            held = self._held.get(key.id)
            if held is None:
                now, terms = self._clock(), key.terms
                held = self._held[key.id] = _Held(
                    Bucket(terms.requests_a_minute, now) if terms.requests_a_minute else None,
                    Bucket(terms.tokens_a_minute, now) if terms.tokens_a_minute else None,
                )
            return held

    def _check_tokens(self, key: ApiKey, held: _Held, tokens: int, now: float) -> None:
        left = _budget_left(key, held)
        if left is not None and tokens > left:
            if tokens <= left + held.reserved:
                message = "what this API key has left today is put by for its requests that are running"
                raise _rate_error(message, 1)
            raise _budget_error(tokens, max(0, left), key.terms.tokens_a_day)
        if held.tokens and tokens > held.tokens.level(now):
            limit = held.tokens.limit
            if tokens > limit:
                message = f"the request may take {tokens} tokens, but this API key has {limit} a minute"
                raise _rate_error(message + ": ask for fewer with max_tokens", 60, retry=False)
            message = f"this API key may use {limit} tokens a minute"
            raise _rate_error(message, held.tokens.seconds_until(tokens, now))


def _budget_left(key: ApiKey, held: _Held) -> int | None:
    if key.terms.tokens_a_day is None:
        return None
    used = held.used if held.day == today() else 0
    return key.terms.tokens_a_day - used - held.reserved


def _least(bucket: float | None, budget: int | None) -> int | None:
    known = [max(0, math.floor(value)) for value in (bucket, budget) if value is not None]
    return min(known, default=None)


def _rate_error(message: str, seconds: float, retry: bool = True) -> ApiError:
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    if not retry:
        headers["x-should-retry"] = "false"
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)


def _budget_error(tokens: int, left: int, budget: int | None) -> ApiError:
    seconds = str(math.ceil(_seconds_of_the_day_left()))
    if left:
        asked = (
            f"the request may take {tokens} tokens, but of the {budget} a day of this API key {left} are left"
        )
    else:
        asked = f"the {budget} tokens a day of this API key are used up"
    message = f"{asked}; the next day begins at midnight UTC"
    headers = {"Retry-After": seconds, "x-should-retry": "false"}
    return ApiError(429, message, code="insufficient_quota", headers=headers)


def _seconds_of_the_day_left() -> float:
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return (midnight - now).total_seconds()


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 17ms, 4s, 6m0s, 3h2m0s."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{whole}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
