"""The whole life cycle, small, and every command that the READMEs show, in the workspace that it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = ("README.md", "README.es.md")
SECONDS = "4"


def _run(*arguments: str, workspace: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yunque", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, "YUNQUE_WORKSPACE": str(workspace)},
        check=False,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "ws"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to type commands in, where the project's documents are and nothing is written into the project."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.fixture(scope="module")
def summary(workspace: Path) -> dict[str, dict[str, object]]:
    done = _run("quickstart", "--seconds", SECONDS, "--json", workspace=workspace)
    assert done.returncode == 0, done.stderr[-3000:]
    return {step["step"]: step for step in json.loads(done.stdout)}


def test_every_step_makes_what_it_says(summary: dict[str, dict[str, object]], workspace: Path) -> None:
    assert list(summary) == [
        *("Prepare", "Tokenizer", "Pre-train", "Tune", "Quantize", "Evaluate"),
        *("Apply", "Guard", "Serve", "Govern"),
    ]
    made = {ref.partition("@")[0] for step in summary.values() for ref in step["made"]}  # type: ignore[attr-defined]
    assert {
        *("dataset/airline", "dataset/messages", "dataset/python-docs", "tokenizer/bpe", "model/mini"),
        *("model/mini-chat", "report/mini-chat-tuning", "model/mini-chat-int8", "evaluation/mini-chat-int8"),
        *("index/airline", "app/equipaje"),
    } <= made
    listed = json.loads(_run("list", "--json", workspace=workspace).stdout)
    assert {artifact["ref"].partition("@")[0] for artifact in listed} >= made


def test_the_figures_tell_that_it_worked(summary: dict[str, dict[str, object]]) -> None:
    assert "8 of 8 attacks got nothing; personal data in 0 files" in str(summary["Guard"]["figure"])
    assert "answered over HTTP by app/equipaje" in str(summary["Serve"]["figure"])
    assert "an edited line is found" in str(summary["Govern"]["figure"])
    before, after = re.findall(r"([\d.]+) MB", str(summary["Quantize"]["figure"]))
    assert float(after) < 0.3 * float(before)


def test_running_it_again_makes_nothing_new(summary: dict[str, dict[str, object]], workspace: Path) -> None:
    del summary
    before = {one["ref"] for one in json.loads(_run("list", "--all", "--json", workspace=workspace).stdout)}
    again = _run("quickstart", "--seconds", SECONDS, "--json", workspace=workspace)
    assert again.returncode == 0, again.stderr[-3000:]
    after = {one["ref"] for one in json.loads(_run("list", "--all", "--json", workspace=workspace).stdout)}
    assert after == before


def _blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def _commands(readme: str) -> list[str]:
    lines = [line for block in _blocks(readme, "sh") for line in block.splitlines()]
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


def test_both_readmes_show_the_same_commands() -> None:
    english, spanish = (_commands(readme) for readme in READMES)
    assert english == spanish
    assert english[:2] == ["make quickstart", "make test"]
    assert len(english) > 8


@pytest.mark.parametrize("command", [c for c in _commands("README.md") if c != "yunque serve"])
def test_a_command_of_the_readme_works(
    command: str, summary: dict[str, dict[str, object]], workspace: Path, place: Path
) -> None:
    del summary
    if command.startswith("make "):
        planned = subprocess.run(
            ["make", "--dry-run", command.removeprefix("make ")], cwd=ROOT, capture_output=True, check=False
        )
        assert planned.returncode == 0, planned.stderr
        return
    done = subprocess.run(
        ["bash", "-c", command.replace("yunque ", f"{sys.executable} -m yunque ", 1)],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "YUNQUE_WORKSPACE": str(workspace)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "dog" in command or "perro" in command or "bicycle" in command:
        assert "[1]" in done.stdout
    if "Where are the artifacts" in command:
        assert "workspace.md" in done.stdout


@pytest.mark.parametrize("readme", READMES)
def test_the_python_of_the_readme_works(
    readme: str, summary: dict[str, dict[str, object]], workspace: Path
) -> None:
    del summary
    (code,) = _blocks(readme, "python")
    with subprocess.Popen(
        [sys.executable, "-m", "yunque", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "YUNQUE_WORKSPACE": str(workspace), "PYTHONUNBUFFERED": "1"},
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().removeprefix("Serving ").strip()
            assert "http://127.0.0.1:8000/v1" in code
            done = subprocess.run(
                [sys.executable, "-c", code.replace("http://127.0.0.1:8000/v1", url)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    assert done.returncode == 0, done.stderr
    assert "10 kg" in done.stdout
    assert "[1]" in done.stdout
