"""Texts that can be forgotten by destroying a key: AES-256-GCM, one key for each thing that is kept.

The key is a file of the workspace's folder of secrets, apart from what it opens: a backup of the sealed rows alone
is worth nothing once it is gone.
"""

import hashlib
import hmac
import json
import os
import secrets
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from yunque.workspace.files import sync_folder
from yunque.workspace.keys import Keys

_NONCE_BYTES = 12


class Unreadable(Exception):
    """The key is gone, or these are not the bytes that it sealed."""


class Seals:
    """The keys of one sort of things (`memory`, `agent`), each by the id of what it seals."""

    def __init__(self, keys: Keys, sort: str) -> None:
        self._keys, self._sort = keys, sort

    def make(self, id: str) -> None:
        """A new key for `id`."""
        self._keys.secret(self._name(id))

    def seal(self, id: str, place: str, value: Any) -> bytes:
        """A JSON value that only the key of `id` opens, and only as what stands at `place`; raises Unreadable."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = json.dumps(value, separators=(",", ":")).encode()
        return nonce + AESGCM(self._key(id)).encrypt(nonce, text, f"{id}/{place}".encode())

    def open(self, id: str, place: str, sealed: bytes) -> Any:
        """The value; raises Unreadable."""
        try:
            return json.loads(
                AESGCM(self._key(id)).decrypt(
                    sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{id}/{place}".encode()
                )
            )
        except (InvalidTag, ValueError):
            raise Unreadable(f"{id}/{place}") from None

    def destroy(self, id: str) -> None:
        """Overwrite and remove the key of `id`: what it sealed can be opened by nobody any more."""
        path = self._keys.root / self._name(id)
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

    def has(self, id: str) -> bool:
        """Whether the key of `id` is there."""
        return (self._keys.root / self._name(id)).exists()

    def pseudonym(self, text: str) -> str:
        """A name for `text` (a person's) under which rows can be found by whoever knows it; empty for empty."""
        if not text:
            return ""
        secret = self._keys.secret(f"{self._sort}-subjects")
        return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()

    def _key(self, id: str) -> bytes:
        # Never made here: a key that was destroyed must not come back as another one.
        try:
            return (self._keys.root / self._name(id)).read_bytes()
        except FileNotFoundError:
            raise Unreadable(id) from None

    def _name(self, id: str) -> str:
        return f"{self._sort}-{id}"
