"""API keys of the server: shown once, kept as a hash, with what each is good for and what it used."""

import hashlib
import hmac
import re
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from yunque.errors import UserError

SCOPES = ("models", "generate", "embeddings", "tokenize", "metrics")
USUAL_SCOPES = ("models", "generate", "embeddings", "tokenize")

_PREFIX = "yq-"
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOST = 10**12


@dataclass(frozen=True)
class Terms:
    """What a key is good for. `models` (`kind/name`) empty means all of them, a limit of None means none."""

    scopes: tuple[str, ...] = USUAL_SCOPES
    models: tuple[str, ...] = ()
    requests_a_minute: int | None = None
    tokens_a_minute: int | None = None
    tokens_a_day: int | None = None
    expires: str | None = None

    def __post_init__(self) -> None:
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown or not self.scopes:
            raise UserError(
                f"{unknown[0] if unknown else 'nothing'!r} is not a scope: use {', '.join(SCOPES)}"
            )
        for limit in (self.requests_a_minute, self.tokens_a_minute, self.tokens_a_day):
            if limit is not None and not 1 <= limit <= _MOST:
                raise UserError(f"{limit} cannot be the limit of a key: it must be from 1 to {_MOST}")


@dataclass(frozen=True)
class ApiKey:
    """What may be shown of a key: never the key itself. Times are UTC."""

    id: str
    name: str
    created: str
    terms: Terms = field(default_factory=Terms)
    revoked: str | None = None
    last_used: str | None = None

    @property
    def state(self) -> str:
        """`working`, `revoked` or `expired`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.terms.expires and self.terms.expires <= _now() else "working"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        return {**values, **values.pop("terms"), "state": self.state}


@dataclass(frozen=True)
class KeyUsage:
    """What a key used on a day (UTC): requests that were let in, tokens read and written for them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in and out, which a budget is for."""
        return self.prompt_tokens + self.completion_tokens


def create_api_key(
    connection: sqlite3.Connection, name: str, terms: Terms | None = None
) -> tuple[ApiKey, str]:
    """Make a key; the returned string is the only time it is seen. Raises UserError for a name that is none."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise UserError("a key needs a name that says who or what it is for, of at most 100 characters")
    number, key = secrets.token_hex(4), _PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(number, name, _now(), terms or Terms())
    connection.execute(
        "INSERT INTO api_keys (id, name, hash, created, scopes, models, requests_a_minute, tokens_a_minute,"
        " tokens_a_day, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            made.id,
            made.name,
            _hash(key),
            made.created,
            " ".join(made.terms.scopes),
            " ".join(made.terms.models),
            made.terms.requests_a_minute,
            made.terms.tokens_a_minute,
            made.terms.tokens_a_day,
            made.terms.expires,
        ),
    )
    return made, key


def list_api_keys(connection: sqlite3.Connection) -> list[ApiKey]:
    """All keys, revoked and expired ones too, oldest first."""
    return [_loaded(row) for row in connection.execute("SELECT * FROM api_keys ORDER BY created, id")]


def revoke_api_key(connection: sqlite3.Connection, id: str) -> None:
    """Make a key stop working; raises UserError if there is none with this id."""
    done = connection.execute(
        "UPDATE api_keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (_now(), id)
    )
    if not done.rowcount:
        raise UserError(f"no working API key has the id {id!r}: see `yunque key list`")


def find_api_key(connection: sqlite3.Connection, key: str) -> ApiKey | None:
    """The working key that was handed in, or None. How long it takes tells nothing about which keys there are."""
    digest = _hash(key)
    found = None
    for row in connection.execute("SELECT * FROM api_keys WHERE revoked IS NULL"):
        if hmac.compare_digest(row["hash"], digest):
            found = _loaded(row)
    return found if found and found.state == "working" else None


def still_working(connection: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    """Those of these keys that still work."""
    marks = ", ".join("?" * len(ids))
    rows = connection.execute(f"SELECT * FROM api_keys WHERE id IN ({marks})", tuple(ids))
    return {key.id for key in map(_loaded, rows) if key.state == "working"}


def add_key_usage(connection: sqlite3.Connection, id: str, usage: KeyUsage) -> KeyUsage:
    """Count what a key used, and return all that it used today. To be called in a transaction."""
    row = connection.execute(
        "INSERT INTO key_usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (key, day) DO UPDATE SET"
        " requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
        " completion_tokens = completion_tokens + excluded.completion_tokens"
        " RETURNING requests, prompt_tokens, completion_tokens",
        (id, today(), usage.requests, usage.prompt_tokens, usage.completion_tokens),
    ).fetchone()
    connection.execute("UPDATE api_keys SET last_used = ? WHERE id = ?", (_now(), id))
    return KeyUsage(*row)


def key_usage(connection: sqlite3.Connection, id: str) -> KeyUsage:
    """What a key used today."""
    row = connection.execute(
        "SELECT requests, prompt_tokens, completion_tokens FROM key_usage WHERE key = ? AND day = ?",
        (id, today()),
    ).fetchone()
    return KeyUsage(*row) if row else KeyUsage()


def today() -> str:
    """The day that budgets are counted for: UTC's."""
    return _now()[:10]


def parse_expiry(text: str) -> str:
    """The moment that `30d`, `12h`, `45m`, `2w`, a date (its end) or a date with time (UTC, or with its zone) means.

    Raises UserError for anything else, and for what has passed.
    """
    now = datetime.now(UTC)
    try:
        if span := re.fullmatch(r"(\d{1,6})([mhdw])", text):
            moment = now + timedelta(**{_UNITS[span[2]]: int(span[1])})
        elif re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            moment = datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(days=1)
        else:
            moment = datetime.fromisoformat(text)
            moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UserError(f"--expires: {text!r} is not a time such as 30d, 12h or 2027-01-31") from None
    if moment <= now:
        raise UserError(f"--expires: {text!r} has passed already")
    return moment.isoformat(timespec="seconds")


def _loaded(row: sqlite3.Row) -> ApiKey:
    terms = Terms(
        tuple(row["scopes"].split()),
        tuple(row["models"].split()),
        row["requests_a_minute"],
        row["tokens_a_minute"],
        row["tokens_a_day"],
        row["expires"],
    )
    return ApiKey(row["id"], row["name"], row["created"], terms, row["revoked"], row["last_used"])


def _hash(key: str) -> str:
    # A key has 256 random bits, so a fast hash is enough: there is no dictionary to try.
    return hashlib.sha256(key.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
