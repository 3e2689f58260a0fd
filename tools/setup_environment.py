"""Install Yunque and an extra into the virtual environment that runs this file.

    .venv/bin/python tools/setup_environment.py quickstart

Versions come from constraints.txt. On Linux without an NVIDIA GPU the CPU build of torch is installed first: the
default Linux build brings several gigabytes of CUDA packages. pip may already know where a CPU build is (a local
index or wheel folder); if not, uv is asked, which knows PyTorch's own CPU index by name.
"""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"


def pip(*arguments: str) -> bool:
    """Run pip in this environment; whether it succeeded."""
    return subprocess.run([sys.executable, "-m", "pip", "install", *arguments]).returncode == 0


def pinned(package: str) -> str:
    """The version of `package` in constraints.txt."""
    for line in CONSTRAINTS.read_text().splitlines():
        name, _, number = line.partition("==")
        if name == package:
            return number
    raise SystemExit(f"{CONSTRAINTS.name}: has no line for {package}")


def wants_cpu_build() -> bool:
    """Whether the default torch would bring CUDA to a machine that cannot use it."""
    has_gpu = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/gpus").exists()
    asked = os.environ.get("YUNQUE_TORCH", "auto")
    if asked not in ("auto", "cpu", "default"):
        raise SystemExit(f"YUNQUE_TORCH={asked}: must be auto, cpu or default")
    is_linux_pc = platform.system() == "Linux" and platform.machine() == "x86_64"
    return asked == "cpu" or (asked == "auto" and is_linux_pc and not has_gpu)


def install_cpu_torch() -> None:
    """Install the CPU build of torch, from wherever it can be had."""
    wanted = pinned("torch")
    try:
        if version("torch").partition("+")[0] == wanted:
            return
    except PackageNotFoundError:
        pass
    print(f"Installing the CPU build of torch {wanted} ...", flush=True)
    if pip("-qq", "-c", str(CONSTRAINTS), f"torch=={wanted}+cpu"):
        return
    print("pip knows no CPU build here; asking PyTorch's CPU index through uv ...", flush=True)
    if pip("-qq", "uv"):
        uv = Path(sys.executable).parent / "uv"
        command = [
            uv,
            "pip",
            "install",
            "--python",
            sys.executable,
            "--torch-backend",
            "cpu",
            f"torch=={wanted}",
        ]
        if subprocess.run(command).returncode == 0:
            return
    raise SystemExit(
        "The CPU build of torch could not be installed: PyTorch's CPU index is out of reach. Run again with a "
        "network, install torch into .venv yourself, or accept the large default build with YUNQUE_TORCH=default."
    )


def main() -> None:
    """Install torch where it needs care, then Yunque with the extra named on the command line."""
    extra = sys.argv[1] if len(sys.argv) > 1 else "quickstart"
    if wants_cpu_build():
        install_cpu_torch()
    print(f"Installing yunque[{extra}] ...", flush=True)
    if not pip("-qq", "-c", str(CONSTRAINTS), "-e", f"{ROOT}[{extra}]"):
        raise SystemExit("pip could not install Yunque: see its message above")


if __name__ == "__main__":
    main()
