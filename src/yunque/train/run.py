"""The folder of a run: what was asked for, how far it is, and a lock against a second process.

`runs/NAME-FINGERPRINT/` holds `run.json`, `loss.jsonl` and `checkpoints/`. The fingerprint covers everything that
shapes the result, so the same command finds its run again and another configuration never touches it.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.workspace import Workspace, atomic_write
from yunque.workspace.artifact import checked_name


class Run:
    """A run under way in this process; `record` is what run.json holds."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record

    @property
    def name(self) -> str:
        """The folder's name: that of the model and the fingerprint."""
        return self.folder.name

    def keep(self, **fields: Any) -> None:
        """Write more fields into run.json, in one step."""
        self.record.update(fields)
        atomic_write(self.folder / "run.json", json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")


def fingerprint(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a configuration."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def open_run(workspace: Workspace, name: str, identity: dict[str, Any]) -> Iterator[Run]:
    """The run of this configuration, new or found again, locked until the block ends.

    Raises UserError when another process is training it.
    """
    checked_name(name)
    folder = workspace.runs / f"{name}-{fingerprint(identity)}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"the run {folder.name} is being trained by another process: wait for it, or stop it first"
            ) from None
        path = folder / "run.json"
        run = Run(folder, json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
        if not run.record:
            run.keep(configuration=identity)
        yield run
