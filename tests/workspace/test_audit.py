"""The audit log shows every change made to it."""

import json
from pathlib import Path

import pytest

from yunque.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace.open(tmp_path / "ws")
    for number in range(5):
        workspace.record("test.done", f"thing/{number}", size=number)
    return workspace


def _lines(workspace: Workspace) -> list[str]:
    return workspace.audit.path.read_text().splitlines()


def _write(workspace: Workspace, lines: list[str]) -> None:
    workspace.audit.path.write_text("".join(line + "\n" for line in lines))


def test_an_untouched_log_verifies(workspace: Workspace) -> None:
    found = workspace.verify_audit()
    assert (found.intact, found.entries) == (True, 5)


def test_an_edited_line_is_named(workspace: Workspace) -> None:
    lines = _lines(workspace)
    lines[2] = lines[2].replace("thing/2", "thing/9")
    _write(workspace, lines)
    assert workspace.verify_audit().problems == ["line 3: its content was changed after it was written"]


def test_a_line_edited_with_its_hash_recomputed_is_found_by_its_signature(workspace: Workspace) -> None:
    from yunque.workspace.audit import _digest

    lines = _lines(workspace)
    entry = json.loads(lines[4])
    entry["ref"] = "thing/forged"
    entry["hash"] = _digest(entry)
    _write(workspace, [*lines[:4], json.dumps(entry)])
    problems = " ".join(workspace.verify_audit().problems)
    assert "line 5: its signature is not this workspace's" in problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: lines[:1] + lines[2:], "line 2: a line before it was added, removed or moved"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2: a line before it was"),
        (lambda lines: lines[:3], "its end is cut"),
        (lambda lines: lines[:0], "its end is cut"),
        (lambda lines: [*lines[:2], "garbage", *lines[2:]], "line 3: is not a log entry"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "line 3: a line before it was"),
    ],
)
def test_removed_moved_cut_and_foreign_lines_are_found(workspace: Workspace, change, problem: str) -> None:
    _write(workspace, change(_lines(workspace)))
    assert any(problem in found for found in workspace.verify_audit().problems)


def test_a_cut_end_stays_in_sight_after_the_next_entry(workspace: Workspace) -> None:
    _write(workspace, _lines(workspace)[:3])
    workspace.record("test.done", "thing/later")
    assert any("a line before it was" in problem for problem in workspace.verify_audit().problems)
    workspace.audit.path.unlink()
    workspace.record("test.done", "thing/latest")
    assert not workspace.verify_audit().intact


def test_one_broken_line_is_one_problem(workspace: Workspace) -> None:
    lines = _lines(workspace)
    _write(workspace, [lines[0], "broken", *lines[2:]])
    assert workspace.verify_audit().problems == ["line 2: is not a log entry"]


def test_facts_changed_in_the_catalog_are_found(workspace: Workspace) -> None:
    workspace.put("dataset", "d", {"x": b"right"}, config={"a": 1})
    workspace.catalog.connection().execute("UPDATE artifacts SET config = '{\"a\":2}'")
    assert workspace.verify_audit().problems == [
        "dataset/d@1: its files, parents or configuration in the catalog were changed"
    ]


def test_a_torn_last_line_is_mended_by_the_next_entry(workspace: Workspace) -> None:
    with workspace.audit.path.open("a") as file:
        file.write('{"seq": 6, "time": "2026')
    assert not workspace.verify_audit().intact
    workspace.record("test.done", "thing/6")
    assert (workspace.verify_audit().intact, workspace.verify_audit().entries) == (True, 6)


def test_a_head_kept_elsewhere_must_still_be_there(workspace: Workspace) -> None:
    head = workspace.verify_audit().head
    workspace.record("test.done", "thing/6")
    assert workspace.verify_audit(expect=head).intact
    assert not workspace.verify_audit(expect="0" * 64).intact


def test_changed_bytes_of_an_artifact_are_found(workspace: Workspace) -> None:
    made = workspace.put("dataset", "d", {"x": b"right"})
    path = workspace.file(made, "x")
    path.chmod(0o644)
    path.write_bytes(b"wrong")
    assert workspace.verify_audit().problems == ["dataset/d@1: the bytes of x were changed or are gone"]
