"""How good and how fast retrieval is: Cranfield, paragraphs of SQuAD in Spanish, Peruvian laws, and 100,000 chunks.

    python benchmarks/retrieval.py --data FOLDER [--parts cranfield squad laws speed] [--chunks 100000] [--json]

FOLDER holds `cranfield`, `squad_es` and `leyes_rag_es`. What was chosen by looking (feedback, dimensions, weights)
was chosen on Cranfield's even questions (and 400 of squad_es), though not blindly; the odd ones are shown apart.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yunque.apps.retrieval import ingest
from yunque.apps.retrieval.embedders import HashingEmbedder
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig
from yunque.apps.retrieval.judgements import documents_of, mean_measures, measures
from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import Passage, Unit, cut
from yunque.apps.retrieval.sources import Sources
from yunque.apps.retrieval.stores import Entry
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.data.row import Row, Source
from yunque.workspace import Workspace

Find = Callable[[str], list[str]]
NEEDED = {"cranfield": "cranfield", "squad": "squad_es", "laws": "leyes_rag_es", "speed": "squad_es"}
"""The folder of data that each part reads."""


def ways(index: Index, language: str, k: int) -> dict[str, Find]:
    """The ways to search that are compared: each gives documents, best first."""
    files = {id: entry.metadata["file"] for id in index.store.ids() for entry in index.store.get([id])}

    def keywords(question: str) -> list[str]:
        found = index.store.search_keywords(dict.fromkeys(stems_of(question, language), 1.0), 5 * k)
        return list(dict.fromkeys(files[one.id] for one in found))[:k]

    def vectors(question: str) -> list[str]:
        (vector,) = index.embedder.embed([(question, language)])
        return list(dict.fromkeys(files[one.id] for one in index.store.search_vectors(vector, 5 * k)))[:k]

    return {
        "keywords (BM25)": keywords,
        "vectors (LSA)": vectors,
        "fused by ranks (RRF)": lambda question: documents_of(
            index, question, k, language=language, fusion="ranks"
        ),
        "fused by scores": lambda question: documents_of(index, question, k, language=language),
        "fused by scores, feedback": lambda question: documents_of(
            index, question, k, language=language, feedback=True
        ),
    }


def whole(name: str, heading: str, text: str, language: str) -> Passage:
    """A document that is not cut."""
    spoken = "en" if language == "en" else "es"
    return Passage(name, name, "", spoken, heading, 0, len(text), text, (Unit(0, len(text)),))


def smart_fields(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The records of a file in SMART's format: number and fields."""
    found = []
    for block in re.split(r"^\.I ", path.read_text(), flags=re.MULTILINE)[1:]:
        number, _, rest = block.partition("\n")
        parts = re.split(r"^\.([A-Z])\n", rest, flags=re.MULTILINE)
        found.append(
            (number.strip(), {parts[n]: " ".join(parts[n + 1].split()) for n in range(1, len(parts) - 1, 2)})
        )
    return found


def cranfield(folder: Path) -> Iterator[dict[str, Any]]:
    """1,400 abstracts, 225 questions. The judgements number the questions as they stand in their file."""
    passages = []
    for number, fields in smart_fields(folder / "cran.all.1400"):
        title, body = fields.get("T", ""), fields.get("W", "")
        passages.append(whole(number, title, body.removeprefix(title).strip(), "en"))
    questions = [fields["W"] for _, fields in smart_fields(folder / "cran.qry")]
    judged: dict[int, dict[str, int]] = {}
    for line in (folder / "QRelsCorrectedforTRECeval").read_text().splitlines():
        if len(parts := line.split()) == 4:
            judged.setdefault(int(parts[0]), {})[parts[2]] = int(parts[3])
    index = Index.of(passages)
    for way, find in ways(index, "en", 10).items():
        for name, kept in (
            ("all", range(1, 226)), ("even", range(2, 226, 2)), ("odd", range(1, 226, 2)),
        ):  # fmt: skip
            each = [measures(find(questions[n - 1]), judged.get(n, {}), 10) for n in kept]
            # Grade 5 is what others leave out of the collection.
            plain = [
                measures(
                    find(questions[n - 1]),
                    {d: g for d, g in judged.get(n, {}).items() if g < 5},
                    10,
                )["precision"]
                for n in kept
            ]
            figures = mean_measures(each, 10)
            yield {
                "part": "cranfield", "way": way, "questions": name, **figures,
                "precision_at_10_without_grade_5": round(sum(plain) / len(plain), 4),
            }  # fmt: skip


def squad(folder: Path) -> Iterator[dict[str, Any]]:
    """The paragraph that a question was asked about, among all 1,996."""
    articles = json.loads((folder / "dev-v1.1-es_small.json").read_text(encoding="utf-8"))["data"]
    passages, asked = list[Passage](), list[tuple[str, str]]()
    for article in articles:
        title = article["title"].replace("_", " ")
        for number, paragraph in enumerate(article["paragraphs"]):
            name = f"{article['title']}/{number}"
            row = Row(name, paragraph["context"], "es", Source(name, "0" * 64, title), name)
            passages += cut(row)
            asked += [(qa["question"], name) for qa in paragraph["qas"]]
    random.Random(0).shuffle(asked)
    yield from found_sources("squad_es", Index.of(passages), asked[:1000])


def laws(folder: Path) -> Iterator[dict[str, Any]]:
    """Laws come without questions: the law is looked for by its own title, of which it keeps no copy."""
    passages, asked = list[Passage](), list[tuple[str, str]]()
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^title: ['\"]?(.*?)['\"]?$", text, re.MULTILINE)
        if not title or path.name == "SOURCE.md":
            continue
        body = text.partition("\n---\n")[2].replace(title[1], " ")
        passages += cut(Row(path.stem, body, "es", Source(path.stem, "0" * 64, ""), path.stem))
        asked.append((title[1], path.stem))
    yield from found_sources("leyes_rag_es", Index.of(passages), asked)


def found_sources(part: str, index: Index, asked: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """How often the one right document is the first, or among five."""
    for way, find in ways(index, "es", 10).items():
        ranks = [found.index(name) + 1 if name in (found := find(text)) else 0 for text, name in asked]
        yield {
            "part": part, "way": way, "questions": len(asked),
            "recall_at_1": round(sum(rank == 1 for rank in ranks) / len(ranks), 4),
            "recall_at_5": round(sum(0 < rank <= 5 for rank in ranks) / len(ranks), 4),
            "mrr_at_10": round(sum(1 / rank for rank in ranks if rank) / len(ranks), 4),
        }  # fmt: skip


def spanish(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Chunks of four sentences each, drawn from Spanish paragraphs, and questions about these."""
    articles = json.loads((folder / "dev-v1.1-es_small.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [p for article in articles for p in article["paragraphs"]]
    luck = random.Random(0)
    sentences = [one for p in paragraphs for one in p["context"].split(". ")]
    chunks = [(". ".join(luck.sample(sentences, 4)) + ".")[:600] for _ in range(count)]
    return chunks, luck.sample([qa["question"] for p in paragraphs for qa in p["qas"]], 300)


def speed(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Chunks put into a store, files taken into an index, and questions to both kinds of index."""
    chunks, questions = spanish(folder, count)
    with tempfile.TemporaryDirectory() as name:
        store = SQLiteStore(Path(name, "store.db"))
        began = time.monotonic(), time.process_time()
        for start in range(0, count, 5000):
            part = chunks[start : start + 5000]
            store.put([Entry(str(start + n), text) for n, text in enumerate(part)])
        yield timed("store, put", count, began)
        store.close()
        files = Path(name, "files")
        files.mkdir()
        for start in range(0, count, 100):
            text = "\n\n".join(chunks[start : start + 100])
            (files / f"{start}.txt").write_text(text, encoding="utf-8")
        for embedder in ("none", "corpus"):
            workspace = Workspace.open(Path(name, embedder))
            began = time.monotonic(), time.process_time()
            config = IndexConfig(embedder=embedder)
            artifact, _ = ingest.build(workspace, "speed", Sources(paths=(files,)), config)
            yield timed(f"files, embedder {embedder}", artifact.figures["passages"], began)
            yield {**asked(Index.open(workspace, "speed"), questions), "embedder": embedder}
    texts = [(chunk, "es") for chunk in chunks[:5000]]
    began = time.monotonic(), time.process_time()
    HashingEmbedder().embed(texts)
    yield timed("hashing embedder alone", len(texts), began)


def timed(what: str, count: int, began: tuple[float, float]) -> dict[str, Any]:
    """Chunks a second, by the clock and by the processor's own time (others may be at work here)."""
    clock, processor = time.monotonic() - began[0], time.process_time() - began[1]
    return {
        "part": "speed", "what": what, "chunks": count,
        "chunks_a_second": round(count / clock), "chunks_a_processor_second": round(count / processor),
    }  # fmt: skip


def asked(index: Index, questions: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of a search, the first ones left out."""
    times = []
    for question in questions:
        began = time.perf_counter()
        index.search(question, 10, "es")
        times.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.quantile(times[10:], [0.5, 0.95])
    return {"part": "speed", "what": "search", "chunks": index.store.count(), "p50_ms": round(float(p50), 1),
            "p95_ms": round(float(p95), 1)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts asked for, and print a line for each result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=NEEDED, default=list(NEEDED))
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    for part in given.parts:
        if not (given.data / NEEDED[part]).is_dir():
            parser.error(f"{given.data / NEEDED[part]}: there is no such folder, and --parts {part} reads it")
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "cranfield": lambda: cranfield(given.data / "cranfield"),
        "squad": lambda: squad(given.data / "squad_es"),
        "laws": lambda: laws(given.data / "leyes_rag_es"),
        "speed": lambda: speed(given.data / "squad_es", given.chunks),
    }
    for name in given.parts:
        for line in parts[name]():
            text = (
                json.dumps(line) if given.json else "  ".join(f"{key} {value}" for key, value in line.items())
            )
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
