"""Being the only one at something among all processes of this machine, until the block or the process ends."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Held(Exception):
    """Somebody else is at it."""


@contextmanager
def held(folder: Path, name: str, wait: float = 0.0) -> Iterator[None]:
    """Hold `name`, waiting at most so many seconds for whoever has it; raises Held.

    The kernel lets go of it when the process dies, however it dies. Threads of one process count as others too.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A name may be anything; the file's is made of it.
    path = folder / hashlib.sha256(name.encode()).hexdigest()[:32]
    end = time.monotonic() + wait
    while (descriptor := _taken(path)) is None:
        if time.monotonic() >= end:
            raise Held(name)
        time.sleep(0.02)
    try:
        yield
    finally:
        # Unlinked while it is held: who waits for this file finds out that it is another one by now.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _taken(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
