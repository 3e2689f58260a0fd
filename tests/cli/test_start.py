"""The command line starts at once, imports nothing heavy, and tells mistakes in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from yunque.cli.main import run

_HEAVY = ("torch", "numpy", "scipy", "matplotlib", "transformers", "pandas", "fastapi", "sacrebleu", "docx")


def _python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)


def test_help_imports_nothing_heavy_and_few_modules(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "try:\n"
        "    from yunque.cli.main import run; run(['--help'])\n"
        "except SystemExit: pass\n"
        f"heavy = [name for name in {_HEAVY!r} if name in sys.modules]\n"
        "yunque = [name for name in sys.modules if name.startswith('yunque.')]\n"
        "print('HEAVY', heavy, 'OWN', [n for n in yunque if not n.startswith('yunque.cli')])\n"
    )
    said = _python(code, tmp_path).stdout
    assert "HEAVY [] OWN ['yunque.errors', 'yunque.processes']" in said
    assert "quickstart" in said


def test_help_takes_little_processor_time(tmp_path: Path) -> None:
    """At most 0.4 s of processor time (the budget of the design), the best of three on a shared machine."""
    code = (
        "import resource, subprocess, sys\n"
        "best = 9.0\n"
        "for _ in range(3):\n"
        "    before = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    subprocess.run([sys.executable, '-m', 'yunque', '--help'], stdout=subprocess.DEVNULL, check=True)\n"
        "    after = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)\n"
        "print(best)\n"
    )
    assert float(_python(code, tmp_path).stdout) < 0.4


def test_importing_the_package_does_nothing(tmp_path: Path) -> None:
    said = _python(
        "import yunque, sys; print(sorted(m for m in sys.modules if 'yunque' in m))", tmp_path
    ).stdout
    assert said == "['yunque']\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["lineage", "app/none"],
        ["lineage", "answer/7"],
        ["list", "poem"],
        ["data", "show", "nothing"],
        ["train", "--data", "nothing"],
        ["ask", "nobody", "hello?"],
        ["generate", "nothing", "hello"],
        ["eval", "nothing"],
        ["quantize", "nothing"],
        ["tune", "nothing"],
        ["tokenizer", "show", "nothing", "--text", "x"],
        ["log", "--call", "3"],
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    with pytest.raises(SystemExit) as stopped:
        run(arguments)
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
