"""Artifacts are kept whole, named, versioned and never changed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.workspace import Call, Workspace, atomic_folder, atomic_write, read_calls


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def test_an_artifact_comes_back_as_it_was_put(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "año.txt").write_text("señal", encoding="utf-8")
    parent = workspace.put("dataset", "corpus", {"rows.jsonl": b"{}\n"})
    made = workspace.put(
        "model",
        "mini",
        {"a.txt": tmp_path / "año.txt", "b.bin": b"\0\1"},
        [parent],
        {"layers": 2},
        {"loss": 1.5},
    )
    found = workspace.get("model/mini@1")
    assert found == made
    assert found.parents == ("dataset/corpus@1",)
    assert (found.config, found.figures) == ({"layers": 2}, {"loss": 1.5})
    assert workspace.file(found, "a.txt").read_text(encoding="utf-8") == "señal"
    assert found.environment["python"]


def test_the_same_work_makes_no_new_version_and_other_work_does(workspace: Workspace) -> None:
    first = workspace.put("dataset", "corpus", {"rows.jsonl": b"1"}, config={"a": 1})
    assert workspace.put("dataset", "corpus", {"rows.jsonl": b"1"}, config={"a": 1}) == first
    assert workspace.put("dataset", "corpus", {"rows.jsonl": b"1"}, config={"a": 2}).version == 2
    assert workspace.put("dataset", "corpus", {"rows.jsonl": b"2"}, config={"a": 2}).version == 3
    assert [one.version for one in workspace.list("dataset")] == [3]
    assert [one.version for one in workspace.list("dataset", every_version=True)] == [1, 2, 3]
    assert workspace.get("corpus@1") == first


def test_names_that_mean_nothing_or_two_things_are_refused_in_one_sentence(workspace: Workspace) -> None:
    workspace.put("dataset", "mini", {"x": b"1"})
    workspace.put("model", "mini", {"x": b"1"})
    with pytest.raises(UserError, match="several artifacts: say dataset/mini or model/mini"):
        workspace.get("mini")
    assert workspace.get("mini", kind="model").kind == "model"
    with pytest.raises(UserError, match=r"no model 'model/maxi'.*model/mini@1"):
        workspace.get("model/maxi")
    with pytest.raises(UserError, match="is of kind dataset; here a model is wanted"):
        workspace.get("dataset/mini", kind="model")
    for wrong in ("poem/x", "../etc", "mini@x", "mini@²", "Ñandú", ""):
        with pytest.raises(UserError):
            workspace.get(wrong)
    assert workspace.find("model/maxi") is None


def test_versions_put_by_many_threads_at_once_are_all_kept(workspace: Workspace) -> None:
    threads = [
        threading.Thread(
            target=lambda number=number: workspace.put("dataset", "d", {"x": str(number).encode()})
        )
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.version for one in workspace.list("dataset", every_version=True)] == list(range(1, 13))
    assert workspace.verify_audit().intact


def test_a_folder_that_is_not_a_workspace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be a workspace"):
        Workspace.open(tmp_path / "file")
    (tmp_path / "ws").mkdir()
    (tmp_path / "ws" / "catalog.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="not a Yunque catalog"):
        Workspace.open(tmp_path / "ws")


def test_the_environment_variable_moves_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "elsewhere"))
    assert Workspace.open().root == tmp_path / "elsewhere"


def test_others_on_the_machine_cannot_read_it(workspace: Workspace) -> None:
    workspace.put("dataset", "d", {"x": b"1"})
    assert workspace.root.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (workspace.root / "keys").iterdir())


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(tmp_path / "x", "\ud800")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "f") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    rename, deleted_first = Path.rename, []

    def fail(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            deleted_first.append(not list(tmp_path.glob("*/a")) and not list(tmp_path.glob(".*/a")))
            raise PermissionError("no")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError), atomic_folder(target) as folder:
        (folder / "new").write_text("x")
    assert deleted_first == [False]
    assert (target / "a").read_text() == "old" and list(tmp_path.iterdir()) == [target]
    monkeypatch.undo()
    with atomic_folder(target) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [target]


def test_a_kill_while_putting_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    code = (
        "import sys; from yunque.workspace import Workspace\n"
        f"ws = Workspace.open({str(tmp_path / 'ws')!r})\n"
        "for n in range(100000):\n"
        "    made = ws.put('dataset', 'd', {'x': str(n).encode() * 1000})\n"
        "    print(made.version, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for _ in range(5):
        process.stdout.readline()
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().split()]
    process.wait()
    workspace = Workspace.open(tmp_path / "ws")
    assert len(workspace.list("dataset", every_version=True)) >= max([5, *told])
    assert workspace.verify_audit().intact
    workspace.put("dataset", "after", {"x": b"1"})
    assert workspace.verify_audit().intact


def test_calls_are_kept_with_their_details(workspace: Workspace) -> None:
    number = workspace.log_call(
        Call("app/a@1", "extractive", "¿Qué?", "Nada.", "hash", 3, 2, 0.5, {"citations": [{"number": 1}]})
    )
    (kept,) = read_calls(workspace.catalog.connection(), number=number)
    assert kept.question == "¿Qué?"
    assert kept.details == {"citations": [{"number": 1}]}
    assert read_calls(workspace.catalog.connection(), number=99) == []
