"""What the machine has."""

import os
from pathlib import Path


def machine_memory() -> int | None:
    """The memory of this machine in bytes, or of the container where it may use less; None where the system does not
    tell."""
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return min([installed, *control_group_limits()])


def control_group_limits(root: Path = Path("/")) -> list[int]:
    """The limits on memory, in bytes, of the Linux control groups that this process is in (containers, batch
    systems): its own and those around it, of version 2 and of version 1."""
    limits = list[int | None]()
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inside = Path(group.lstrip("/"))
        # A container sees its own group as the root: the path is then not there, and the root is.
        limits += [_limit(mount / part / name) for part in (inside, *inside.parents)]
    return [limit for limit in limits if limit is not None]


def _limit(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or "max"
        return None
