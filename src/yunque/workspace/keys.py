"""Secrets of a workspace: random keys made on first use, readable by their owner only."""

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Keys:
    """A folder of secrets with mode 0700; nothing in it is ever printed or logged."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _kept(self, name: str, fresh: bytes) -> bytes:
        """The secret kept under `name`; `fresh` is kept if there was none, by exactly one of many processes."""
        path = self.root / name
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = self.root / f".{name}.{secrets.token_hex(4)}"
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(fresh)
                file.flush()
                os.fsync(file.fileno())
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                pass  # another process was first: its secret is the one
            finally:
                temporary.unlink()
        return path.read_bytes()

    def secret(self, name: str) -> bytes:
        """32 random bytes, the same on every call for this `name`."""
        return self._kept(name, secrets.token_bytes(32))

    def signing_key(self) -> Ed25519PrivateKey:
        """The Ed25519 key that signs the audit log."""
        fresh = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        )
        return Ed25519PrivateKey.from_private_bytes(self._kept("audit.ed25519", fresh))
