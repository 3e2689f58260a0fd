"""The folder of a run: what was asked for, how far it is, and a lock against a second process.

`runs/NAME-FINGERPRINT/` holds `run.json`, `loss.jsonl` and `checkpoints/`. The fingerprint covers everything that
shapes the result, so the same command finds its run again and another configuration never touches it.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.processes import rank
from yunque.train.cost import Meter, spent
from yunque.train.distributed import added_up, first_makes
from yunque.workspace import Workspace, atomic_write
from yunque.workspace.artifact import checked_name


class Run:
    """A run under way in this process; `record` is what run.json holds (of several processes the first writes it)."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record
        self._began, self._meter = time.monotonic(), Meter()

    @property
    def name(self) -> str:
        """The folder's name: that of the model and the fingerprint."""
        return self.folder.name

    def keep(self, **fields: Any) -> None:
        """Write more fields into run.json, in one step."""
        self.record.update(fields)
        if rank():
            return
        atomic_write(self.folder / "run.json", json.dumps(self.record, indent=2, ensure_ascii=False) + "\n")

    def note_preparation(self) -> None:
        """Keep what was spent until now, the first step being next. Getting there again after a stop does not count:
        a run costs what it costs in one go."""
        if "preparation" in self.record:
            return
        cpu_seconds = added_up([self._meter.cpu_seconds])[0]
        seconds = round(time.monotonic() - self._began, 3)
        self.keep(preparation={"seconds": seconds, **spent(cpu_seconds, self._meter.joules)})


# Settings that change nothing of the result: when checkpoints are written, and who else is shown the log. All others
# do, if only by how sums of floats are rounded (micro_batch_size, precision), or by when a run ends (validate_every).
_SHAPES_NOTHING = ("checkpoint_every", "checkpoint_seconds", "tensorboard")


def fingerprint(identity: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a configuration."""
    shaping = {name: value for name, value in identity.items() if name not in _SHAPES_NOTHING}
    text = json.dumps(shaping, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def open_run(workspace: Workspace, name: str, identity: dict[str, Any]) -> Iterator[Run]:
    """The run of this configuration, new or found again, locked until the block ends.

    Raises UserError when another process is training it.
    """
    checked_name(name)
    folder = workspace.runs / f"{name}-{fingerprint(identity)}"
    with ExitStack() as held:
        yield Run(folder, first_makes(lambda: _opened(folder, identity, held), dict[str, Any]))


def _opened(folder: Path, identity: dict[str, Any], held: ExitStack) -> dict[str, Any]:
    """What run.json holds, the folder locked as long as `held`."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context((folder / "lock").open("a"))
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
    return run.record
