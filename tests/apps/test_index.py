from pathlib import Path

import numpy as np
import pytest

from yunque.apps.retrieval.index import Index, IndexConfig, build_index
from yunque.apps.retrieval.stores import Entry
from yunque.apps.retrieval.stores.postings import K1, B
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.errors import UserError
from yunque.workspace import Workspace


def test_bm25_agrees_with_the_formula_written_out() -> None:
    store = SQLiteStore()
    texts = ["dog dog cabin", "dog hold", "bicycle box hold price"]
    store.put([Entry(str(number), text, language="en") for number, text in enumerate(texts)])
    lengths, mean = [3, 2, 4], 3.0
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = [
        idf * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean)) if count else 0.0
        for count, length in zip([2, 1, 0], lengths, strict=True)
    ]

    def scores(word: str) -> list[float]:
        found = {one.id: one.score for one in store.search_keywords({word: 1.0}, 3)}
        return [found.get(str(number), 0.0) for number in range(3)]

    assert np.allclose(scores("dog"), expected)
    assert not np.allclose(scores("hold"), expected)


def test_building_twice_makes_nothing_new_and_opening_gives_the_same_hits(workspace: Workspace) -> None:
    assert build_index(workspace, "small", ["sections"]).version == 1
    opened = Index.open(workspace, "small")
    assert opened.ref == "index/small@1"
    assert workspace.get("small", "index").parents == ("dataset/sections@1",)
    built = Index.of(opened.passages)
    for question in ("cuánto pesa la maleta facturada", "stroller in the hold"):
        before = [hit.passage for hit in built.search(question)]
        assert before == [hit.passage for hit in opened.search(question)]


@pytest.mark.parametrize(
    ("question", "language", "file"),
    [
        ("exceso de peso de la maleta", "es", "es/equipaje.md"),
        ("excess weight", "en", "en/baggage.md"),
        ("transportines", "es", "es/mascotas.md"),
        ("strollers folded", "en", "en/children.md"),
    ],
)
def test_the_right_passage_comes_first(workspace: Workspace, question: str, language: str, file: str) -> None:
    hits = Index.open(workspace, "small").search(question, 3, language)
    assert hits[0].passage.file == file
    assert all(hit.passage.language == language for hit in hits)


def test_nothing_is_found_for_words_that_nobody_wrote(workspace: Workspace) -> None:
    assert Index.open(workspace, "small").search("zzz qqq") == []


def test_files_can_be_left_out(workspace: Workspace) -> None:
    build_index(workspace, "partial", ["sections"], config=IndexConfig(exclude=("es/*",)))
    assert {passage.language for passage in Index.open(workspace, "partial").passages} == {"en"}


def test_an_index_of_nothing_is_a_mistake_of_the_user(workspace: Workspace, tmp_path: Path) -> None:
    del tmp_path
    with pytest.raises(UserError, match="no text to index"):
        build_index(workspace, "none", ["sections"], config=IndexConfig(exclude=("*",)))
