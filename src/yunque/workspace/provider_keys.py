"""Keys of providers, kept in a workspace: sealed with AES-GCM by a key of the workspace, never shown again.

Whoever can read the whole workspace folder can open them: the sealing key lies in it, too. It protects a copy of this
one file (a backup, a commit by mistake), not an account that others use.
"""

import base64
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from yunque.errors import UserError
from yunque.workspace.files import atomic_write
from yunque.workspace.keys import Keys

_FILE = "provider_keys.json"
_SECRET = "provider_keys"
_NONCE_BYTES = 12
_MOST_LENGTH = 4096
_lock = threading.Lock()


class ProviderKeys:
    """The keys that `yunque key set` keeps in the workspace at `root`, by provider (or `host:port`)."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self._path = root / _FILE
        self._keys = keys
        self._seen: tuple[tuple[int, int, int], dict[str, Any]] | None = None

    def set(self, provider: str, key: str) -> None:
        """Keep a key in place of the one that was there; raises UserError for what cannot be one."""
        key = checked_key(key, "the key")
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._keys.secret(_SECRET)).encrypt(nonce, key.encode(), provider.encode())
        entry = {
            "sealed": base64.b64encode(nonce + sealed).decode(),
            "set": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with self._alone():
            self._write({**self._entries(), provider: entry})

    def unset(self, provider: str) -> bool:
        """Forget a key; whether there was one."""
        with self._alone():
            entries = dict(self._entries())
            there = entries.pop(provider, None) is not None
            if there:
                self._write(entries)
            return there

    def find(self, provider: str) -> str | None:
        """The key, or None; raises UserError where it cannot be opened."""
        entry = self._entries().get(provider)
        if entry is None:
            return None
        try:
            sealed = base64.b64decode(entry["sealed"], validate=True)
            opened = AESGCM(self._keys.secret(_SECRET)).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], provider.encode()
            )
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self._path}: the key of {provider} cannot be opened here (another workspace's, or changed): "
                f"set it again with `yunque key set {provider}`"
            ) from None
        return opened.decode()

    def times(self) -> dict[str, str]:
        """When each key was set (UTC), by provider."""
        return {provider: str(entry.get("set", "")) for provider, entry in sorted(self._entries().items())}

    def _entries(self) -> dict[str, Any]:
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return {}
        stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self._seen is not None and self._seen[0] == stamp:
            return self._seen[1]
        try:
            entries = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            entries = None
        if not isinstance(entries, dict) or not all(isinstance(each, dict) for each in entries.values()):
            raise UserError(f"{self._path}: is not a file of keys: delete it, and set the keys again")
        self._seen = (stamp, entries)
        return entries

    def _write(self, entries: dict[str, Any]) -> None:
        atomic_write(self._path, json.dumps(entries, indent=1), mode=0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread or process changes the file meanwhile."""
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _lock, (self._path.parent / f".{_FILE}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def checked_key(key: str, where: str) -> str:
    """A key without the blanks around it; raises UserError, which never shows it, for what cannot be one."""
    key = key.strip()
    if not key:
        raise UserError(f"{where} is empty")
    if len(key) > _MOST_LENGTH or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{where} holds characters that no key has, or is too long")
    return key
