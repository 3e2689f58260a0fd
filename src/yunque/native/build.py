"""The C++ of this folder, compiled once for this processor with the system's compiler.

What was compiled is kept in the user's cache folder, under a name that says what it was made of. Where there is no
compiler, or it fails, everything runs in PyTorch: one line of the log says so.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
# Sums are not to be rearranged or fused by the compiler: see simd.h.
_FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-march=native",
    "-w",
)
_SECONDS = 300


class NotBuilt(Exception):
    """Why there is no library, in one sentence."""


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled library, or None where it cannot be had, or YUNQUE_NATIVE=0 says that it shall not.

    The first call on a machine compiles it, which takes some seconds.
    """
    if os.environ.get("YUNQUE_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(build()))
    except (NotBuilt, OSError) as error:
        _LOG.warning("the native step is not there, so models run in PyTorch, more slowly: %s", error)
        return None


def build(flags: tuple[str, ...] = ()) -> Path:
    """The compiled library, from the cache where it is there; `flags` are added to the compiler's.

    Raises NotBuilt.
    """
    compiler = _compiler()
    sources = sorted(path for path in _FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    made_of = hashlib.sha256()
    for part in (compiler, _version(compiler), *_FLAGS, *flags, _processor()):
        made_of.update(part.encode() + b"\0")
    for source in sources:
        made_of.update(source.read_bytes())
    target = _cache() / f"step-{made_of.hexdigest()[:24]}.so"
    if not target.exists():
        _LOG.warning("compiling the native step for this processor: once, in some seconds")
        _compile([*shlex.split(compiler), *_FLAGS, *flags, str(_FOLDER / "library.cpp")], target)
    return target


def _compiler() -> str:
    named = os.environ.get("CXX")
    if named:
        return named
    for name in _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NotBuilt(f"there is no C++ compiler ({', '.join(_COMPILERS)})")


def _version(compiler: str) -> str:
    try:
        told = subprocess.run(
            [*shlex.split(compiler), "--version"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise NotBuilt(f"the compiler {compiler!r} does not run: {error}") from None
    return told.stdout


def _processor() -> str:
    """What tells this processor from others whose instructions differ: a home folder may serve many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.partition(":")[0].strip() in names}))


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "yunque" / "native"


def _sweep(folder: Path) -> None:
    """Remove what a compiler left behind that was killed; one that still runs is younger than its time limit."""
    for left in folder.glob("tmp*.so"):
        with suppress(OSError):  # another process was quicker
            if time.time() - left.stat().st_mtime > _SECONDS:
                left.unlink()


def _compile(command: list[str], target: Path) -> None:
    made = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(target.parent)
        # Made under a name of its own and put in place at once: two processes may do so at the same time.
        handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        made = Path(name)
        done = subprocess.run(
            [*command, "-o", name], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
            raise NotBuilt(f"{command[0]} failed: {told}")
        made.replace(target)
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        raise NotBuilt(f"it could not be compiled into {target.parent}: {error}") from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)
