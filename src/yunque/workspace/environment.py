"""What made an artifact: versions, git commit and hardware, as plain JSON values."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from yunque import __version__

_RECORDED_PACKAGES = ("torch", "numpy", "scipy", "tokenizers", "safetensors")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of Yunque's own source tree, when it runs from a checkout."""
    here = Path(__file__).resolve().parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def describe_environment() -> dict[str, object]:
    """Versions, commit and hardware of this process; no host name, user name or path."""
    return {
        "yunque": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in _RECORDED_PACKAGES if (found := _version_of(name))},
        "git_commit": _git_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
