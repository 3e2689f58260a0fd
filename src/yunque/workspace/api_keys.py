"""API keys of the server: shown once, kept as a hash."""

import hashlib
import hmac
import secrets
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from yunque.errors import UserError

_PREFIX = "yq-"


@dataclass(frozen=True)
class ApiKey:
    """What may be shown of a key: never the key itself."""

    id: str
    name: str
    created: str
    revoked: str | None


def _hash(key: str) -> str:
    # A key has 256 random bits, so a fast hash is enough: there is no dictionary to try.
    return hashlib.sha256(key.encode()).hexdigest()


def create_api_key(connection: sqlite3.Connection, name: str) -> tuple[ApiKey, str]:
    """Make a key; the returned string is the only time it is seen."""
    number, key = secrets.token_hex(4), _PREFIX + secrets.token_urlsafe(32)
    made = ApiKey(number, name, datetime.now(UTC).isoformat(timespec="seconds"), None)
    connection.execute(
        "INSERT INTO api_keys (id, name, hash, created) VALUES (?, ?, ?, ?)",
        (made.id, made.name, _hash(key), made.created),
    )
    return made, key


def list_api_keys(connection: sqlite3.Connection) -> list[ApiKey]:
    """All keys, revoked ones too, oldest first."""
    rows = connection.execute("SELECT id, name, created, revoked FROM api_keys ORDER BY created, id")
    return [ApiKey(**dict(row)) for row in rows]


def revoke_api_key(connection: sqlite3.Connection, id: str) -> None:
    """Make a key stop working; raises UserError if there is none with this id."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    done = connection.execute("UPDATE api_keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (now, id))
    if not done.rowcount:
        raise UserError(f"no working API key has the id {id!r}: see `yunque key list`")


def find_api_key(connection: sqlite3.Connection, key: str) -> ApiKey | None:
    """The working key that was handed in, or None."""
    digest = _hash(key)
    found = None
    for row in connection.execute("SELECT * FROM api_keys WHERE revoked IS NULL"):
        if hmac.compare_digest(row["hash"], digest):
            found = ApiKey(row["id"], row["name"], row["created"], row["revoked"])
    return found
