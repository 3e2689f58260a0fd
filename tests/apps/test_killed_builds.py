"""An index whose making was killed, and whose files, settings or passages changed before it was gone on with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from yunque.apps.retrieval import ingest, upkeep
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig
from yunque.apps.retrieval.ingest import Report
from yunque.apps.retrieval.ledger import Ledger
from yunque.apps.retrieval.sources import Sources
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.workspace import Workspace


class Killed(BaseException):
    """What no part of a run handles."""


@contextmanager
def killed_at(owner: Any, name: str, done: bool = False) -> Iterator[None]:
    """A run is killed where it calls `name`: right before it, or when it is `done`."""
    original = getattr(owner, name)

    def dies(*values: Any, **named: Any) -> None:
        if done:
            original(*values, **named)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            yield


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    made.mkdir()
    (made / "a.txt").write_text("El perro viaja en cabina con su dueño.")
    (made / "b.txt").write_text("The suitcase may weigh 23 kilograms on every flight.")
    (made / "pay.txt").write_text("El salario de Ana asciende a 90000 euros.")
    return made


def _grown(folder: Path, name: str = "tren", count: int = 8) -> set[str]:
    """Enough more files that the embedder is fitted again."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{name}{number}.txt").write_text(
            f"El {name} número {number} sale hacia Burgos a las {number}."
        )
    return {f"{name}{number}.txt" for number in range(count)}


def _build(workspace: Workspace, path: Path, **config: Any) -> Report:
    return ingest.build(workspace, "docs", Sources(paths=(path,)), IndexConfig(**config))[1]


def _add(workspace: Workspace, path: Path) -> Report:
    return ingest.add(workspace, "docs", Sources(paths=(path,)))[1]


def _texts(workspace: Workspace, ref: str = "docs") -> dict[str, str]:
    """All that is in a version: the texts by their files."""
    index = Index.open(workspace, ref)
    passages = index.passages
    index.close()
    texts = {passage.file: passage.text for passage in passages}
    assert len(texts) == len(passages), "a passage twice, or an old one with its new one"
    return texts


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(("owner", "name"), [(SQLiteStore, "put"), (Ledger, "settle")])
def test_files_that_were_edited_or_deleted_after_a_kill(
    empty: Workspace, folder: Path, owner: Any, name: str, done: bool
) -> None:
    with killed_at(owner, name, done):
        _build(empty, folder)
    (folder / "a.txt").write_text("El gato viaja en bodega.")
    (folder / "pay.txt").unlink()
    _build(empty, folder)
    assert set(_texts(empty)) == {"a.txt", "b.txt"} and "gato" in _texts(empty)["a.txt"]


def test_a_file_deleted_after_a_kill_is_gone_though_the_next_run_was_killed_too(
    empty: Workspace, folder: Path
) -> None:
    with killed_at(Ledger, "settle"):
        _build(empty, folder)
    (folder / "pay.txt").unlink()
    with killed_at(ingest._Run, "_put"):
        _build(empty, folder)
    _build(empty, folder)
    assert set(_texts(empty)) == {"a.txt", "b.txt"}


@pytest.mark.parametrize(("owner", "name"), [(ingest._Run, "_put"), (SQLiteStore, "put"), (Ledger, "settle")])
def test_a_file_that_was_changed_back_after_a_kill(
    empty: Workspace, folder: Path, owner: Any, name: str
) -> None:
    _build(empty, folder)
    before = _texts(empty)
    (folder / "a.txt").write_text("El gato viaja en bodega.")
    with killed_at(owner, name, done=owner is SQLiteStore):
        _build(empty, folder)
    (folder / "a.txt").write_text(before["a.txt"])
    _build(empty, folder)
    assert _texts(empty) == before


@pytest.mark.parametrize(
    ("owner", "name", "done"),
    [
        (Ledger, "begin", True),
        (Ledger, "begin_job", True),
        (Ledger, "keep_embedder", False),
        (Ledger, "keep_embedder", True),
        (SQLiteStore, "put", False),
        (SQLiteStore, "put", True),
        (Ledger, "settle", False),
        (Ledger, "settle", True),
        (Ledger, "expect", True),
        (Ledger, "end_job", False),
    ],
)
def test_a_file_deleted_while_the_embedder_was_fitted_again_stays_deleted(
    empty: Workspace, folder: Path, owner: Any, name: str, done: bool
) -> None:
    _build(empty, folder)
    new = _grown(folder)
    with killed_at(owner, name, done):
        _build(empty, folder)
    (folder / "pay.txt").unlink()
    report = _build(empty, folder)
    assert set(_texts(empty)) == {"a.txt", "b.txt"} | new
    assert report.read == 0, "nothing is read again"
    assert set(_texts(empty, "docs@1")) == {"a.txt", "b.txt", "pay.txt"}, "the control: the old version"


@pytest.mark.parametrize("name", ["begin", "keep_embedder", "settle"])
def test_add_after_a_kill_in_fitting_again_keeps_all_the_rest(
    empty: Workspace, folder: Path, tmp_path: Path, name: str
) -> None:
    _build(empty, folder)
    new = _grown(tmp_path / "more")
    with killed_at(Ledger, name, done=True):
        _add(empty, tmp_path / "more")
    report = _add(empty, tmp_path / "more")
    assert set(_texts(empty)) == {"a.txt", "b.txt", "pay.txt"} | new and report.read == 0


def test_erasing_after_a_kill_loses_no_new_file_and_brings_nothing_back(
    empty: Workspace, folder: Path
) -> None:
    _build(empty, folder)
    (folder / "new.txt").write_text("La bicicleta se factura aparte.")
    with killed_at(Ledger, "end_job"):
        _build(empty, folder)
    assert upkeep.erase(empty, "docs", {"file": "b.txt"}) == 1
    _build(empty, folder)
    assert set(_texts(empty)) == {"a.txt", "new.txt", "pay.txt"}


def test_what_was_cut_by_a_killed_run_is_erased_too(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    (folder / "new.txt").write_text("La zarandaja se factura aparte.")
    with killed_at(ingest._Run, "_put"):
        _build(empty, folder)
    (folder / "new.txt").unlink()

    def held() -> bool:
        files = [path for path in (empty.root / "indexes").rglob("*") if path.is_file()]
        return any(b"arandaj" in path.read_bytes() for path in files)

    assert held(), "the control"
    upkeep.erase(empty, "docs", {"file": "new.txt"})
    assert not held()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Ledger, "begin"), (Ledger, "keep_embedder"), (ingest._Run, "_put"), (Ledger, "end_job")],
)
def test_erasing_after_a_kill_in_fitting_again_keeps_all_the_rest(
    empty: Workspace, folder: Path, tmp_path: Path, owner: Any, name: str
) -> None:
    _build(empty, folder)
    new = _grown(tmp_path / "more")
    with killed_at(owner, name, done=name in ("begin", "keep_embedder")):
        _add(empty, tmp_path / "more")
    upkeep.erase(empty, "docs", {"file": "b.txt"})
    _add(empty, tmp_path / "more")
    assert set(_texts(empty)) == {"a.txt", "pay.txt"} | new
    assert Index.open(empty, "docs").search("perro en cabina")[0].vector > 0.3


def test_settings_that_a_killed_run_had_are_left_without_a_trace(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    (folder / "new.txt").write_text("La bicicleta se factura aparte.")
    with killed_at(Ledger, "end_job"):
        _build(empty, folder)
    with killed_at(Ledger, "spool", done=True):
        _build(empty, folder, passage_chars=300)
    _add(empty, folder / "a.txt")
    _build(empty, folder)
    assert set(_texts(empty)) == {"a.txt", "b.txt", "new.txt", "pay.txt"}
