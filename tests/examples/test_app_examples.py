"""The example apps: every command that their READMEs show runs, offline, and says what the README says it does."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Shell:
    """A folder with the examples in it, where commands are typed as a reader would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns(".yunque*"))
        (folder / "src").symlink_to(ROOT / "src")
        (folder / "bin").mkdir()
        for name, arguments in (("yunque", "-m yunque "), ("python", "")):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n', encoding="utf-8")
            program.chmod(0o755)

    def run(self, commands: str, inside: str = ".") -> str:
        """What the commands print; they stop at the first that fails."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "YUNQUE_WORKSPACE": str(self.folder / "ws"),
            "COLUMNS": "200",
        }
        done = subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=self.folder / inside,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _commands(example: str) -> str:
    text = (ROOT / "examples" / example / "README.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("examples"))


@pytest.mark.slow
def test_soporte_answers_acts_and_waits_for_a_person(shell: Shell) -> None:
    said = shell.run(_commands("soporte"))
    for part in (
        "You have 30 days from the delivery",
        "The 25 kg anvil is out of stock.",
        "El pedido P-1002 ya ha salido",
        "Your order is cancelled",
        "Hace falta el permiso de una persona para refund",
    ):
        assert part in said
    shop = shell.folder / "examples" / "soporte" / "shop.db"
    assert _refunds(shop) == [] and _state(shop, "P-1003") == "cancelled"
    waiting = json.loads(shell.run("yunque app pending soporte --json", "examples/soporte"))
    assert [(one["tool"], one["arguments"]["amount"]) for one in waiting] == [("refund", 27.9)]
    run, call = waiting[0]["run"], waiting[0]["call"]
    other = f"yunque app decide soporte {run} c99 --yes || echo refused"
    assert "refused" in shell.run(other, "examples/soporte") and _refunds(shop) == []
    decided = shell.run(f"yunque app decide soporte {run} {call} --yes", "examples/soporte")
    assert "se han devuelto 27.9 €" in decided
    assert _refunds(shop) == [("P-1001", 27.9)]
    again = f"yunque app decide soporte {run} {call} --yes || echo refused"
    assert "refused" in shell.run(again, "examples/soporte") and len(_refunds(shop)) == 1
    assert "example.com" not in shell.run("yunque log --json")


@pytest.mark.slow
def test_soporte_gives_no_money_back_that_a_person_refused(shell: Shell) -> None:
    said = "Quiero que me devuelvan 34.50 € del pedido P-1001, soy ana@example.com"
    prepared = (
        "python shop.py && yunque index build --name shop-rules rules && yunque app add soporte.yaml && "
        f'yunque ask soporte "{said}" --json'
    )
    answer = json.loads(re.search(r"\{.*", shell.run(prepared, "examples/soporte"), re.DOTALL)[0])  # type: ignore[index]
    pending = answer["details"]["pending"]
    refused = f"yunque app decide soporte {pending['run']} {pending['call']} --no"
    assert "no lo ha aprobado" in shell.run(refused, "examples/soporte")
    assert ("P-1001", 34.5) not in _refunds(shell.folder / "examples" / "soporte" / "shop.db")


@pytest.mark.slow
def test_revista_tells_and_reviews_both_papers(shell: Shell) -> None:
    said = shell.run(_commands("revista"))
    assert "61,2 frente a 58,4 HRC" in said and "falta: la medida se hizo a ciegas" in said
    assert "lost 3.1 dB of hearing" in said and "left out: hearing was tested blind" in said
    assert said.count("Publicable") == 1 and said.count("May be published") == 1


@pytest.mark.slow
def test_equipaje_quotes_and_refuses(shell: Shell) -> None:
    said = shell.run(_commands("equipaje"))
    assert "23 kg" in said and "[1]" in said
    horse = json.loads(shell.run('yunque ask equipaje "Can I bring a horse?" --json'))
    dog = json.loads(shell.run('yunque ask equipaje "Can I take my dog in the cabin?" --json'))
    assert not horse["known"] and dog["known"] and dog["citations"]


def _refunds(shop: Path) -> list[tuple[str, float]]:
    with closing(sqlite3.connect(shop)) as connection:
        return connection.execute("SELECT order_id, amount FROM refunds").fetchall()


def _state(shop: Path, order: str) -> str:
    with closing(sqlite3.connect(shop)) as connection:
        return str(connection.execute("SELECT state FROM orders WHERE id = ?", (order,)).fetchone()[0])
