"""The benchmark of retrieval runs, and tells a good search from a bad one; how quick it is is not for a test."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
BOATS = "A hull of thin plates bends under waves. The keel carries most of the load."
BREAD = "Dough rises when yeast feeds on sugar. A hot oven makes the crust brown."


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("retrieval")


def _cranfield(folder: Path, judged: Sequence[str]) -> None:
    """Two documents, and 225 questions about both in turn."""
    here = folder / "cranfield"
    here.mkdir()
    texts = enumerate((BOATS, BREAD), start=1)
    (here / "cran.all.1400").write_text(
        "".join(f".I {n}\n.T\nof it\n.W\nof it\n{text}\n" for n, text in texts)
    )
    asked = ("waves and the keel of a hull", "yeast in a dough")
    (here / "cran.qry").write_text("".join(f".I {n}\n.W\n{asked[n % 2]}\n" for n in range(1, 226)))
    (here / "QRelsCorrectedforTRECeval").write_text("".join(f"{line}\n" for line in judged))


def _squad(folder: Path) -> None:
    here = folder / "squad_es"
    here.mkdir()
    told = [
        (
            f"El faro número {n} se alza en la isla {name}. Guía los barcos. Se encendió ayer. Lo cuida un vecino.",
            name,
        )
        for n, name in enumerate(["Alboraya", "Bermeja", "Cabrera", "Dragonera", "Espalmador"])
    ]
    paragraphs = [
        {"context": text, "qas": [{"question": f"¿Qué faro hay en {name}?"}] * 70} for text, name in told
    ]
    (here / "dev-v1.1-es_small.json").write_text(
        json.dumps({"data": [{"title": "Faros", "paragraphs": paragraphs}]})
    )


def _run(
    retrieval: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path, *more: str
) -> list[dict[str, Any]]:
    retrieval.main(["--data", str(folder), "--json", *more])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_cranfield_is_scored_by_its_judgements(
    retrieval: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the odd questions the right document is judged so, with grade 5 every third time; of the even ones another.
    judged = [f"{n} 0 {1 + n % 2 if n % 2 else 77} {5 if n % 3 == 0 else 1}" for n in range(1, 226)]
    _cranfield(tmp_path, judged)
    found = _run(retrieval, capsys, tmp_path, "--parts", "cranfield")
    assert len(found) == 15
    keywords = {line["questions"]: line for line in found if line["way"].startswith("keywords")}
    assert [keywords[name]["recall_at_10"] for name in ("even", "odd")] == [0.0, 1.0]
    # One of the ten that may be found is right.
    assert keywords["odd"]["precision_at_10"] == pytest.approx(0.1)
    assert keywords["odd"]["precision_at_10_without_grade_5"] == pytest.approx(0.0664, abs=1e-3)
    assert 0 < keywords["all"]["recall_at_10"] < 1


def test_the_paragraph_of_a_question_is_looked_for(
    retrieval: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _squad(tmp_path)
    found = {line["way"]: line for line in _run(retrieval, capsys, tmp_path, "--parts", "squad")}
    assert found["keywords (BM25)"]["recall_at_1"] == 1.0 and len(found) == 5
    assert found["keywords (BM25)"]["questions"] == 350
    # A way that always gives the same paragraph is right once in five.
    index = retrieval.Index.of(
        [retrieval.whole("a", "", "faro", "es"), retrieval.whole("b", "", "isla", "es")]
    )
    (first, *_) = retrieval.found_sources("made up", index, [("faro", "a"), ("faro", "b")])
    assert (first["recall_at_1"], first["mrr_at_10"]) == (0.5, 0.5)


def test_a_law_is_found_by_a_title_that_its_text_has_not(
    retrieval: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "leyes_rag_es"
    here.mkdir()
    for name, title, body in (
        ("1", "Ley de aguas", "Esta norma regula los ríos, el agua de riego y sus canales."),
        ("2", "Ley de bosques", "Esta norma protege los árboles y el bosque de la tala."),
    ):
        (here / f"{name}.md").write_text(f"---\ntitle: '{title}'\n---\n# {title}\n\n{body}\n")
    (here / "SOURCE.md").write_text("---\ntitle: where it is from\n---\nnothing\n")
    found = _run(retrieval, capsys, tmp_path, "--parts", "laws")
    assert found[0]["questions"] == 2 and found[0]["recall_at_1"] == 1.0


def test_chunks_a_second_are_measured_of_each_way_in(
    retrieval: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _squad(tmp_path)
    found = _run(retrieval, capsys, tmp_path, "--parts", "speed", "--chunks", "120")
    assert [line["what"] for line in found] == [
        "store, put", "files, embedder none", "search", "files, embedder corpus", "search", "hashing embedder alone",
    ]  # fmt: skip
    assert all(line["chunks_a_second"] > 0 for line in found if line["what"] != "search")
    assert all(0 < line["p50_ms"] <= line["p95_ms"] for line in found if line["what"] == "search")


@pytest.mark.parametrize(
    ("parts", "told"),
    [(["squad", "laws"], "leyes_rag_es: there is no such folder"), (["squad", "laas"], "laas")],
)
def test_what_cannot_be_measured_is_told_before_anything_is(
    retrieval: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: list[str], told: str
) -> None:
    _squad(tmp_path)
    with pytest.raises(SystemExit):
        retrieval.main(["--data", str(tmp_path), "--parts", *parts])
    written = capsys.readouterr()
    assert told in written.err and not written.out
