"""From files to a dataset and its versions: what is stored, what is dropped, what is told."""

import json
import os
from pathlib import Path

import pytest

from yunque.data.dataset import read_card, read_rows
from yunque.data.prepare import AddSettings, add, anonymize, split
from yunque.data.split import SPLITS
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace

MESSAGES = [
    {"id": 1, "cliente": "C1", "mensaje": "Soy Ana, DNI 12345678Z, ¿dónde está mi maleta azul?"},
    {"id": 2, "cliente": "C2", "mensaje": "My card 4111 1111 1111 1111 was charged twice, please help me."},
    {"id": 3, "cliente": "C1", "mensaje": "Otra vez yo: llámenme al 612 345 678 por la mañana."},
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


@pytest.fixture
def corpus(documents: Path) -> Path:
    (documents / "es").mkdir()
    (documents / "es" / "equipaje.md").write_text(
        "# Equipaje\n\nUna mochila de 8 kg.\n\n## Mascotas\n\nEl perro paga 50 €."
    )
    (documents / "es" / "copia.txt").write_text("una  mochila de 8 KG.\n")
    lines = "\n".join(json.dumps(message, ensure_ascii=False) for message in MESSAGES)
    (documents / "mensajes.jsonl").write_text(lines + "\n{mal\n", encoding="utf-8")
    for number in range(6):
        (documents / f"page{number}.txt").write_text(
            f"The page number {number} tells a story of its own about dogs."
        )
    (documents / "imagen.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    return documents


def stored_bytes(workspace: Workspace, artifact: Artifact) -> str:
    return "".join(workspace.file(artifact, name).read_text(encoding="utf-8") for name in artifact.files)


def test_files_become_rows_that_say_where_they_stood(workspace: Workspace, corpus: Path) -> None:
    artifact, card = add(workspace, "todo", [corpus])
    rows = {
        row.source.locator: row
        for row in read_rows(workspace, artifact)
        if row.source.file == "es/equipaje.md"
    }
    # The copy comes first in sorted order, so it is the one that is kept.
    assert list(rows) == ["Equipaje > Mascotas"]
    row = rows["Equipaje > Mascotas"]
    assert (row.text, row.language, row.group) == ("El perro paga 50 €.", "es", "es/equipaje.md")
    assert len(row.source.sha256) == 64
    assert card["rows"] == 11
    assert card["files_read"] == 9
    assert card["duplicates_dropped"] == {"exact": 1, "near": 0}
    assert card["personal_data"] == {"found": {"CARD": 1, "NIF": 1, "PHONE": 1}, "replaced": True}
    assert {(part["file"], part["reason"].split(":")[0]) for part in card["skipped"]} == {
        ("imagen.png", "is binary, not text (it holds NUL bytes)"),
        ("mensajes.jsonl", "line 4"),
    }
    (dropped,) = map(json.loads, workspace.file(artifact, "dropped.jsonl").read_text().splitlines())
    kept = next(one for one in read_rows(workspace, artifact) if one.id == dropped["kept"])
    assert (dropped["file"], kept.source.file) == ("es/equipaje.md", "es/copia.txt")


def test_personal_data_is_replaced_before_anything_is_stored(workspace: Workspace, corpus: Path) -> None:
    artifact, _ = add(workspace, "todo", [corpus])
    stored = stored_bytes(workspace, artifact)
    for value in ("12345678Z", "4111 1111", "612 345 678"):
        assert value not in stored
    assert list(workspace.root.glob(".dataset-*")) == []
    kept, _ = add(workspace, "crudo", [corpus], AddSettings(anonymize=False))
    assert "12345678Z" in stored_bytes(workspace, kept)


def test_records_of_one_person_are_one_group(workspace: Workspace, corpus: Path) -> None:
    artifact, _ = add(workspace, "mensajes", [corpus / "mensajes.jsonl"])
    groups = [row.group for row in read_rows(workspace, artifact)]
    assert groups == ["cliente:C1", "cliente:C2", "cliente:C1"]


def test_the_same_again_makes_no_new_version(workspace: Workspace, corpus: Path) -> None:
    first, _ = add(workspace, "todo", [corpus], AddSettings(anonymize=False))
    clean = anonymize(workspace, "todo")
    divided = split(workspace, "todo")
    assert [first.version, clean.version, divided.version] == [1, 2, 3]
    assert add(workspace, "todo", [corpus], AddSettings(anonymize=False))[0].ref == first.ref
    assert anonymize(workspace, first.ref).ref == clean.ref
    assert split(workspace, clean.ref).ref == split(workspace, "todo").ref == divided.ref
    assert anonymize(workspace, divided.ref).ref == divided.ref
    (corpus / "nuevo.txt").write_text("Un texto nuevo que antes no estaba.")
    assert add(workspace, "todo", [corpus], AddSettings(anonymize=False))[0].version == 4


def test_versions_keep_ids_and_point_to_what_they_were_made_of(workspace: Workspace, corpus: Path) -> None:
    first, _ = add(workspace, "todo", [corpus], AddSettings(anonymize=False))
    clean = anonymize(workspace, "todo")
    divided = split(workspace, "todo")
    assert (clean.parents, divided.parents) == ((first.ref,), (clean.ref,))
    ids = [row.id for row in read_rows(workspace, first)]
    assert [row.id for row in read_rows(workspace, clean)] == ids
    assert sorted(row.id for row in read_rows(workspace, divided)) == sorted(ids)
    assert "12345678Z" not in stored_bytes(workspace, clean)
    by_split = {name: [row.id for row in read_rows(workspace, divided, name)] for name in SPLITS}
    assert all(by_split.values())
    assert sum(map(len, by_split.values())) == len(ids)
    card = read_card(workspace, divided)
    assert {name: counts["rows"] for name, counts in card["splits"].items()} == {
        name: len(found) for name, found in by_split.items()
    }
    with pytest.raises(UserError, match="has no split 'rows'"):
        list(read_rows(workspace, divided, "rows"))


def test_ids_do_not_depend_on_other_rows_or_places(
    workspace: Workspace, corpus: Path, tmp_path: Path
) -> None:
    first, _ = add(workspace, "todo", [corpus])
    moved = corpus.rename(tmp_path / "elsewhere")
    (moved / "es" / "equipaje.md").write_text(
        "# Nuevo\n\nAntes.\n\n# Equipaje\n\n## Mascotas\n\nEl perro paga 50 €."
    )
    second, _ = add(workspace, "otro", [moved])
    ids = {row.text: row.id for row in read_rows(workspace, first)}
    again = {row.text: row.id for row in read_rows(workspace, second)}
    assert {text: again[text] for text in ids} == ids


def test_nothing_to_read_is_one_sentence(workspace: Workspace, documents: Path) -> None:
    with pytest.raises(UserError, match="there is no file with text in it"):
        add(workspace, "nada", [documents])
    (documents / "a.txt").write_bytes(b"\0\1")
    with pytest.raises(UserError, match=r"a\.txt: is binary"):
        add(workspace, "nada", [documents])
    with pytest.raises(UserError, match="no such file"):
        add(workspace, "nada", [documents / "no"])
    assert workspace.list() == []


def test_near_duplicates_are_dropped_for_the_first(workspace: Workspace, documents: Path) -> None:
    words = " ".join(f"palabra{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(80))
    (documents / "a.txt").write_text(words)
    (documents / "b.txt").write_text(words + " final")
    (documents / "c.txt").write_text(words.replace("palabra", "distinta"))
    artifact, card = add(workspace, "casi", [documents])
    assert card["duplicates_dropped"] == {"exact": 0, "near": 1}
    assert [row.source.file for row in read_rows(workspace, artifact)] == ["a.txt", "c.txt"]
    (dropped,) = map(json.loads, workspace.file(artifact, "dropped.jsonl").read_text().splitlines())
    assert dropped["duplicate"] == "near"
    assert 0.8 <= dropped["similarity"] < 1


def test_half_of_a_pair_in_a_record_does_no_harm(workspace: Workspace, documents: Path) -> None:
    (documents / "a.jsonl").write_text(
        '{"text": "hola \\ud83d mundo", "x\\ud83d": NaN, "n": [1, {"a": "\\u200b"}]}\n'
    )
    artifact, _ = add(workspace, "par", [documents])
    (row,) = read_rows(workspace, artifact)
    assert row.text == "hola \ufffd mundo"
    assert row.fields["n"] == [1, {"a": ""}]


def test_python_docs_are_a_corpus(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib"
    (library / "json").mkdir(parents=True)
    (library / "test").mkdir()
    (library / "pydoc_data").mkdir()
    says = "Says at some length what the {} is good for in a program.".format
    module, klass, method = (
        says("module of texts"),
        says("class A and friends"),
        says("method that everybody calls"),
    )
    (library / "json" / "decoder.py").write_text(
        f'"""{module}"""\nraise SystemExit\nclass A:\n    """{klass}"""\n'
        f'    def f(self):\n        """{method}"""\n    def g(self):\n        """Short."""\n'
    )
    (library / "test" / "test_x.py").write_text(f'"""{says("test")}"""')
    (library / "broken.py").write_text("def")
    topics = {"assert": f"The assert statement\n\n{says('statement')}"}
    (library / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(library)})
    artifact, card = add(workspace, "docs", ["python:docs"])
    found = {row.source.locator: row for row in read_rows(workspace, artifact)}
    assert list(found) == ["json.decoder", "json.decoder.A", "json.decoder.A.f", "assert"]
    row = found["json.decoder.A.f"]
    assert (row.source.file, row.group, row.language) == ("python:json/decoder.py", "json.decoder", "en")
    assert found["assert"].group == "topic:assert"
    assert [part["file"] for part in card["skipped"]] == ["python:broken.py"]


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a path is empty"):
        add(Workspace.open(tmp_path / "ws"), "docs", [""])


def test_a_file_name_that_is_not_text_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "good.txt").write_text("A cabin bag may weigh 10 kg at most.")
    Path(os.fsdecode(bytes(folder) + b"/bad\xff.txt")).write_text("lost")
    _, card = add(Workspace.open(tmp_path / "ws"), "docs", [folder])
    assert card["files_read"] == 1
    assert "not UTF-8" in card["skipped"][0]["reason"]
