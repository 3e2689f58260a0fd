"""Taking documents into an index: what changed alone, whole files, old versions as they were."""

import json
from pathlib import Path
from typing import Any

import pytest

from yunque.apps.retrieval import ingest, upkeep
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig
from yunque.apps.retrieval.ingest import Report
from yunque.apps.retrieval.sources import Sources
from yunque.apps.retrieval.stores import Between
from yunque.apps.retrieval.vectors import CorpusEmbedder
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "docs"
    (made / "hr").mkdir(parents=True)
    (made / "a.md").write_text(
        "# Perros\n\nEl perro viaja en cabina.\n\n# Gatos\n\nEl gato viaja en bodega.\n"
    )
    (made / "b.txt").write_text("The suitcase may weigh 23 kilograms on every flight.")
    (made / "hr" / "pay.csv").write_text(
        "name;year;text\nAna;2020;El despido se paga.\nEva;2021;La nómina se paga.\n"
    )
    return made


def _build(workspace: Workspace, *paths: Path, **config: Any) -> tuple[Artifact, Report]:
    return ingest.build(workspace, "docs", Sources(paths=paths), IndexConfig(**config))


def _files(
    workspace: Workspace, ref: str = "docs", question: str = "el perro, el gato y quién paga"
) -> set[str]:
    index = Index.open(workspace, ref)
    return {
        hit.passage.file
        for text in (question, "how much may the suitcase weigh")
        for hit in index.search(text, 20)
    }


def test_every_format_is_taken_in_and_a_broken_file_stops_nothing(empty: Workspace, folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "empty.docx").write_bytes(b"")
    artifact, report = _build(empty, folder)
    assert _files(empty) == {"a.md", "b.txt", "hr/pay.csv"}
    assert {one.file for one in report.skipped} == {"broken.pdf", "empty.docx"}
    assert report.read == 3 and artifact.figures["passages"] == 5


def test_only_what_changed_is_read_and_embedded_again(
    empty: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(empty, folder)
    embedded: list[str] = []
    embed = CorpusEmbedder.embed

    def counted(self: CorpusEmbedder, texts: Any) -> Any:
        embedded.extend(text for text, _ in texts)
        return embed(self, texts)

    monkeypatch.setattr(CorpusEmbedder, "embed", counted)
    monkeypatch.setattr("yunque.apps.retrieval.calibration.calibrated_floor", lambda _: None)
    (folder / "a.md").write_text(
        "# Perros\n\nEl perro viaja en cabina.\n\n# Gatos\n\nEl gato se queda en casa.\n"
    )
    artifact, report = _build(empty, folder)
    assert (report.read, report.unchanged, artifact.version) == (1, 2, 2)
    assert embedded == ["Gatos\nEl gato se queda en casa."]
    assert "casa" in Index.open(empty, "docs").search("gato")[0].passage.text


def test_nothing_new_makes_no_version(empty: Workspace, folder: Path) -> None:
    first, _ = _build(empty, folder)
    again, report = _build(empty, folder)
    assert again.ref == first.ref and report.read == 0 and report.unchanged == 3


def test_an_old_version_stays_what_it_was(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    before = [(p.text, p.heading) for p in Index.open(empty, "docs@1").passages]
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text("El loro viaja con su dueño en la cabina del avión.")
    _, report = _build(empty, folder)
    assert report.gone == 1
    old, new = Index.open(empty, "docs@1"), Index.open(empty, "docs@2")
    assert [(p.text, p.heading) for p in old.passages] == before
    assert old.search("the suitcase may weigh")[0].passage.file == "b.txt" and "lor" not in old.keywords
    assert (
        "b.txt" not in {hit.passage.file for hit in new.search("the suitcase may weigh", 20)}
        and "lor" in new.keywords
    )


def test_add_keeps_the_rest_and_build_does_not(empty: Workspace, folder: Path, tmp_path: Path) -> None:
    _build(empty, folder)
    more = tmp_path / "more.txt"
    more.write_text("El perro del vecino ladra mucho.")
    ingest.add(empty, "docs", Sources(paths=(more,)))
    assert _files(empty) == {"a.md", "b.txt", "hr/pay.csv", "more.txt"}
    (folder / "b.txt").unlink()
    ingest.add(empty, "docs", Sources(paths=(folder,)))
    assert _files(empty) == {"a.md", "hr/pay.csv", "more.txt"}, "a file that its folder has no more is gone"
    _build(empty, more)
    assert _files(empty) == {"more.txt"}


@pytest.mark.parametrize("broken", ["put", "settle", "keep_embedder", "spool", "end_job"])
def test_a_run_that_was_killed_is_gone_on_with(
    empty: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Each step fails once after it was done, as a kill right behind it would have it."""
    from yunque.apps.retrieval.ledger import Ledger
    from yunque.apps.retrieval.stores.sqlite import SQLiteStore

    class Killed(BaseException):
        pass

    owner: Any = SQLiteStore if broken == "put" else Ledger
    original = getattr(owner, broken)

    def dies(self: Any, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        raise Killed

    monkeypatch.setattr(owner, broken, dies)
    with pytest.raises(Killed):
        _build(empty, folder)
    monkeypatch.setattr(owner, broken, original)
    assert empty.find("index/docs") is None
    artifact, report = _build(empty, folder)
    assert report.read == 0
    assert artifact.figures["passages"] == 5 and _files(empty) == {"a.md", "b.txt", "hr/pay.csv"}
    index = Index.open(empty, "docs")
    assert len(index.passages) == 5 and index.store.count() == 5


def test_a_corpus_that_has_grown_gets_new_vectors_and_old_versions_keep_theirs(
    empty: Workspace, folder: Path
) -> None:
    _build(empty, folder)
    old = Index.open(empty, "docs@1").search("perro en cabina")
    for number in range(12):
        (folder / f"n{number}.txt").write_text(
            f"El tren número {number} sale de la estación hacia Burgos a las {number}."
        )
    _, report = _build(empty, folder)
    assert report.refitted
    assert Index.open(empty, "docs").search("tren estación")[0].vector > 0.3
    assert [(hit.passage, hit.vector) for hit in Index.open(empty, "docs@1").search("perro en cabina")] == [
        (hit.passage, hit.vector) for hit in old
    ]
    assert len(Index.open(empty, "docs").passages) == 17
    assert upkeep.prune(empty, "docs")["stores"] == 1
    with pytest.raises(UserError, match="pruned"):
        Index.open(empty, "docs@1")
    assert len(Index.open(empty, "docs").passages) == 17


def test_permissions_follow_the_file_and_a_change_of_them_counts(empty: Workspace, folder: Path) -> None:
    _build(empty, folder, permissions={"hr/*": ("hr",)})
    index = Index.open(empty, "docs")
    assert "hr/pay.csv" in {hit.passage.file for hit in index.search("despido", 20)}
    assert "hr/pay.csv" in {
        hit.passage.file for hit in index.narrowed(frozenset({"hr"})).search("despido", 20)
    }
    stranger = index.narrowed(frozenset({"it"}))
    assert "hr/pay.csv" not in {hit.passage.file for hit in stranger.search("despido nómina", 20)}
    assert "despid" not in stranger.keywords and stranger.keywords.nearest_words("despidoo") == []
    assert index.keywords.nearest_words("despidoo") == ["despido"], "the control: an owner's typo is mended"
    assert stranger.narrowed(frozenset({"hr"})).search("despido", 20) == stranger.search("despido", 20), (
        "a narrowed index cannot be widened"
    )
    _build(empty, folder)
    assert "hr/pay.csv" in {
        hit.passage.file for hit in Index.open(empty, "docs").narrowed(frozenset()).search("despido", 20)
    }


def test_records_can_be_filtered_by_their_fields(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    index = Index.open(empty, "docs")
    assert [hit.passage.text for hit in index.narrowed(where={"year": 2020}).search("paga", 9)] == [
        "El despido se paga."
    ]
    assert len(index.narrowed(where={"year": Between(2020, 2021)}).search("paga", 9)) == 2
    assert index.narrowed(where={"file": "b.txt"}).search("paga", 9) == []


def test_an_erased_file_is_in_no_version_and_no_byte(empty: Workspace, folder: Path) -> None:
    (folder / "secret.txt").write_text(
        "Zarandaja Pérez cobró la indemnización de Kafkania. Zarandaja vive en Kafkania."
    )
    _build(empty, folder)
    (folder / "secret.txt").unlink()
    _build(empty, folder)
    assert upkeep.erase(empty, "docs", {"file": "secret.txt"}) == 1
    for ref in ("docs@1", "docs@2"):
        assert "secret.txt" not in _files(empty, ref, "Zarandaja Kafkania")
    files = [path for path in (empty.root / "indexes").rglob("*") if path.is_file()]
    files += [path for path in (empty.root / "blobs").rglob("*") if path.is_file()]
    held = b"".join(path.read_bytes() for path in files)
    assert not [word for word in (b"arandaj", b"afkani") if word in held]
    assert b"suitcase" in held


def test_settings_that_would_cut_otherwise_are_refused_by_add(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    with pytest.raises(UserError, match="passage_chars"):
        ingest.add(empty, "docs", Sources(paths=(folder,)), IndexConfig(passage_chars=300))
    artifact, _ = _build(empty, folder, passage_chars=300)
    assert artifact.version == 2 and len(Index.open(empty, "docs@1").passages) == 5


@pytest.mark.parametrize("embedder", ["hashing", "hashing-64", "none"])
def test_other_embedders(empty: Workspace, folder: Path, embedder: str) -> None:
    _build(empty, folder, embedder=embedder)
    hits = Index.open(empty, "docs").search("perro en cabina")
    assert hits[0].passage.file == "a.md" and (hits[0].vector > 0) == (embedder != "none")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (Sources(), "made of"),
        (Sources(paths=(Path("/nowhere/at/all"),)), "no such file"),
        (Sources(datasets=("nothing",)), "no dataset"),
        (Sources(urls=("ftp://host/a",)), "only http"),
        (Sources(urls=("http://me:secret@host/a",)), "password"),
    ],
)
def test_sources_that_cannot_be(empty: Workspace, sources: Sources, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ingest.build(empty, "docs", sources)


def test_an_index_of_an_earlier_yunque_can_be_opened(workspace: Workspace) -> None:
    from safetensors.numpy import save

    new = Index.open(workspace, "small")
    embedder = new.embedder
    assert isinstance(embedder, CorpusEmbedder)
    lines = "".join(json.dumps(passage.as_dict(), ensure_ascii=False) + "\n" for passage in new.passages)
    workspace.put(
        "index",
        "old",
        {
            "passages.jsonl": lines.encode(),
            "vocabulary.json": json.dumps({"features": embedder.features}).encode(),
            "index.safetensors": save(embedder.arrays()),
        },
    )
    question = "cuánto pesa la maleta facturada"
    old = Index.open(workspace, "old")
    assert [hit.passage for hit in old.search(question)] == [hit.passage for hit in new.search(question)]


def test_an_index_can_lie_in_other_stores_and_no_password_is_kept(
    empty: Workspace, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="password"):
        _build(empty, folder, store="postgresql://me:secret@host/base")
    _build(empty, folder, store=str(tmp_path / "elsewhere.db"))
    assert (tmp_path / "elsewhere-1.db").exists() and _files(empty) == {"a.md", "b.txt", "hr/pay.csv"}


def test_an_index_in_lance_files(empty: Workspace, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="the extra [lance] is not installed")
    _build(empty, folder, store=f"lance:{tmp_path / 'lance'}")
    (folder / "b.txt").unlink()
    _build(empty, folder, store=f"lance:{tmp_path / 'lance'}")
    assert _files(empty) == {"a.md", "hr/pay.csv"} and _files(empty, "docs@1") == {
        "a.md",
        "b.txt",
        "hr/pay.csv",
    }


def test_a_store_that_is_gone_is_told_and_not_made_anew(empty: Workspace, folder: Path) -> None:
    _build(empty, folder)
    assert _files(empty)
    stores = list((empty.root / "indexes").rglob("store*.db"))
    kept = [(path, path.read_bytes()) for path in stores]
    for path in (empty.root / "indexes").rglob("store*"):
        path.unlink()
    for attempt in (lambda: Index.open(empty, "docs"), lambda: _build(empty, folder)):
        with pytest.raises(UserError, match="its passages are gone"):
            attempt()
    assert kept and not any(path.exists() for path, _ in kept)
