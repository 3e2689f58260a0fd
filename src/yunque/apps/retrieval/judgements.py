"""Measuring what an index finds against graded judgements, as collections of information retrieval come with them.

nDCG: Järvelin and Kekäläinen (2002), with gain 2^grade - 1 and a logarithmic discount (Burges et al. 2005).
"""

import json
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from yunque.apps.retrieval.index import Index
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Workspace

Judgements = Mapping[str, Mapping[str, int]]
"""For each question the grades of documents; a grade of 0 or less is of no use."""


def read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Judgements in the form of TREC: `question 0 document grade`, the second and fourth of which may be missing;
    blanks or tabs between them. Raises UserError that names the line."""
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split()
        if not parts or (number == 1 and not parts[-1].lstrip("-").isdecimal() and len(parts) > 2):
            continue  # a head, as in the files of BEIR
        if not 2 <= len(parts) <= 4 or (len(parts) > 2 and not parts[-1].lstrip("-").isdecimal()):
            raise UserError(f"{path}:{number}: is not `question 0 document grade`")
        question, document = parts[0], parts[2] if len(parts) == 4 else parts[1]
        found.setdefault(question, {})[document] = int(parts[-1]) if len(parts) > 2 else 1
    if not found:
        raise UserError(f"{path}: holds no judgements")
    return found


def read_asked(path: Path) -> dict[str, str]:
    """Questions by their ids, from JSON lines with `id` (or `_id`) and `question` (or `text`), or from lines of an
    id, a tab and the question. Raises UserError that names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            try:
                values = json.loads(line)
            except ValueError:
                raise UserError(f"{path}:{number}: is not JSON") from None
            id, text = values.get("id", values.get("_id")), values.get("question", values.get("text"))
        else:
            id, _, text = line.partition("\t")
        if id in (None, "") or not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}:{number}: needs an id and a question")
        found[str(id)] = text
    if not found:
        raise UserError(f"{path}: holds no questions")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read as UTF-8 text") from None


def measures(found: Sequence[str], grades: Mapping[str, int], k: int) -> dict[str, float]:
    """Of the documents found for one question, best first: precision, recall, nDCG and reciprocal rank at `k`, and
    whether any of the first `k` is of use."""
    useful = {document for document, grade in grades.items() if grade > 0}
    first = list(found[:k])
    gains = [2 ** max(grades.get(document, 0), 0) - 1 for document in first]
    ideal = sorted((2 ** max(grade, 0) - 1 for grade in grades.values()), reverse=True)[:k]
    best = sum(gain / log2(rank + 1) for rank, gain in enumerate(ideal, start=1))
    rank = next((rank for rank, document in enumerate(first, start=1) if document in useful), 0)
    hits = sum(document in useful for document in first)
    return {
        "precision": hits / k,
        "recall": hits / len(useful) if useful else 0.0,
        "ndcg": sum(gain / log2(rank + 1) for rank, gain in enumerate(gains, start=1)) / best
        if best
        else 0.0,
        "mrr": 1 / rank if rank else 0.0,
        "success": float(hits > 0),
    }


def documents_of(index: Index, question: str, k: int, **how: Any) -> list[str]:
    """The files of the passages found, each once, at most `k`, best first."""
    depth = 3 * k
    while True:
        hits = index.search(question, depth, **how)
        files = list(dict.fromkeys(hit.passage.file for hit in hits))
        if len(files) >= k or len(hits) < depth:
            return files[:k]
        depth *= 2


def mean_measures(each: Sequence[Mapping[str, float]], k: int) -> dict[str, float]:
    """The means over the questions."""
    return {
        f"{name}_at_{k}": round(sum(one[name] for one in each) / len(each), 4)
        for name in (each[0] if each else ())
    }


def measure_judged(
    workspace: Workspace,
    ref: str,
    questions: Path,
    qrels: Path,
    k: int = 10,
    progress: Progress = silent,
) -> dict[str, float]:
    """Ask an index every question that has a judgement of use. A judged document is a file: by its name, with or
    without its suffix."""
    asked, judged = read_asked(questions), read_judgements(qrels)
    index = Index.open(workspace, ref)
    answerable = {id: text for id, text in asked.items() if any(g > 0 for g in judged.get(id, {}).values())}
    if not answerable:
        raise UserError(f"{qrels}: judges no question of {questions}: are the ids the same?")
    names = {name for grades in judged.values() for name in grades}
    each = []
    with progress("Asking", len(answerable)) as task:
        for id, text in answerable.items():
            found = [_judged_name(file, names) for file in documents_of(index, text, k)]
            each.append(measures(found, judged[id], k))
            task.advance(1)
    return {"questions": len(each), **mean_measures(each, k)}


def _judged_name(file: str, names: set[str]) -> str:
    """The name by which a file is judged."""
    for name in (file, Path(file).name, Path(file).stem, str(Path(file).with_suffix(""))):
        if name in names:
            return name
    return file
