"""Content-addressed files: a blob's name is the SHA-256 of its bytes, so it can be checked and never changes."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from yunque.workspace.files import sha256_of, sync_folder


class Blobs:
    """A folder of blobs, `ab/abcdef...`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: str) -> Path:
        """Where the blob with this SHA-256 lies (it may be absent)."""
        return self.root / digest[:2] / digest

    def put(self, content: bytes | Path) -> str:
        """Store bytes, or a copy of a file, and return the SHA-256."""
        digest = sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        target = self.path(digest)
        if target.exists():
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".blob.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o444)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
        return digest

    def is_intact(self, digest: str) -> bool:
        """Whether the blob is there and its bytes still have its name."""
        path = self.path(digest)
        return path.exists() and sha256_of(path) == digest
