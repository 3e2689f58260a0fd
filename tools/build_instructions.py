"""Build the instruction set of the package from the hand-written sources.

Reads ``tools/instructions_source`` (contents as TSV, templates as YAML), pairs every content with a template in
turn, checks the result and writes ``train.jsonl`` and ``heldout.jsonl``. Deterministic: no clock, no randomness.

Usage: ``python tools/build_instructions.py``
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tools" / "instructions_source"
TARGET = ROOT / "src" / "yunque" / "samples" / "instructions"
TASKS = ("sentiment", "genre", "qa", "summary")
LANGUAGES = ("es", "en")
SPLITS = {"train": 1, "heldout": 5001}  # the number of the first row of each split, so ids never collide
NEAR_DUPLICATE = 0.5
INPUT_WORDS = (12, 60)
ANSWER_WORDS = 15

Row = dict[str, Any]


def words(text: str) -> list[str]:
    """Return the lower-cased words of a text, punctuation dropped."""
    return re.findall(r"\w+", text.lower())


def trigrams(text: str) -> frozenset[tuple[str, ...]]:
    """Return the set of word 3-grams of a text."""
    tokens = words(text)
    return frozenset(zip(tokens, tokens[1:], tokens[2:], strict=False))


def jaccard(left: frozenset[Any], right: frozenset[Any]) -> float:
    """Return the Jaccard similarity of two sets (0 when both are empty)."""
    return len(left & right) / (len(left | right) or 1)


def read_contents(task: str, language: str, split: str) -> list[tuple[str, str, str]]:
    """Return (input, question, answer) for every hand-written content; the question is empty but for qa."""
    items: list[tuple[str, str, str]] = []
    for line in (SOURCE / f"{task}-{language}-{split}.tsv").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split("\t")
        if task == "qa":  # passage, then one or two pairs of question and answer
            items += [(first, q, a) for q, a in zip(rest[::2], rest[1::2], strict=True)]
        elif task == "summary":  # text, summary
            items.append((first, "", rest[0]))
        else:  # label, text
            items.append((rest[0], "", first))
    return items


def build_rows(spec: Row, task: str, language: str, split: str) -> list[Row]:
    """Pair contents with templates in turn, label by label, and interleave the labels."""
    labels = spec["labels"].get(task, {}).get(language)
    templates: list[str] = spec["templates"][task][language][split]
    seen: dict[str, int] = defaultdict(int)
    ranked: list[tuple[int, int, Row]] = []
    for number, (text, question, answer) in enumerate(read_contents(task, language, split)):
        group = answer if labels else ""
        rank = seen[group]
        seen[group] += 1
        turn = (rank + list(seen).index(group)) % len(templates)
        listed = ", ".join(labels or [])
        row = {
            "id": f"{task}-{language}-{SPLITS[split] + number:04d}",
            "task": task,
            "language": language,
            "template": f"{task}-{language}-{split}-{turn + 1:02d}",
            "instruction": templates[turn].format(input=text, question=question, labels=listed),
            "input": text,
            "answer": answer,
            "labels": labels,
        }
        ranked.append((rank, number, row))
    return [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]


def check_templates(spec: Row) -> None:
    """Refuse a template that occurs in both splits, or one without its place for the content."""
    for task, language in product(TASKS, LANGUAGES):
        group: dict[str, list[str]] = spec["templates"][task][language]
        bare = {split: {" ".join(words(text)) for text in group[split]} for split in SPLITS}
        if shared := bare["train"] & bare["heldout"]:
            raise ValueError(f"{task}/{language}: templates in both splits: {sorted(shared)}")
        if any("{input}" not in t or (task == "qa") != ("{question}" in t) for s in SPLITS for t in group[s]):
            raise ValueError(f"{task}/{language}: a template lacks (or should not have) a placeholder")


def check_row(row: Row) -> None:
    """Refuse a row whose answer or length breaks the rules of its task."""
    name, text, answer = row["id"], row["input"], row["answer"]
    if row["labels"] is not None and answer not in row["labels"]:
        raise ValueError(f"{name}: {answer!r} is not one of {row['labels']}")
    if row["task"] == "qa" and answer not in text:
        raise ValueError(f"{name}: the answer {answer!r} does not occur in the passage")
    if not INPUT_WORDS[0] <= len(text.split()) <= INPUT_WORDS[1]:
        raise ValueError(f"{name}: the input has {len(text.split())} words")
    if not 1 <= len(answer.split()) <= ANSWER_WORDS:
        raise ValueError(f"{name}: the answer has {len(answer.split())} words")


def check_splits(train: list[Row], heldout: list[Row]) -> None:
    """Refuse inputs shared between the splits and near duplicates (inputs or whole instructions) across them."""
    known = {" ".join(words(row["input"])) for row in train}
    for row in heldout:
        if " ".join(words(row["input"])) in known:
            raise ValueError(f"{row['id']}: its input is also in train")
    for field in ("input", "instruction"):
        grams = [(row["id"], trigrams(row[field])) for row in train]
        for row in heldout:
            own = trigrams(row[field])
            for other, theirs in grams:
                if jaccard(own, theirs) >= NEAR_DUPLICATE:
                    raise ValueError(f"{row['id']}: its {field} is a near duplicate of that of {other}")


def main() -> None:
    """Build, check and write both files."""
    spec: Row = yaml.safe_load((SOURCE / "templates.yaml").read_text(encoding="utf-8"))
    check_templates(spec)
    built: dict[str, list[Row]] = {}
    for split in SPLITS:
        groups = [build_rows(spec, task, language, split) for task, language in product(TASKS, LANGUAGES)]
        ranked = [(i, g, row) for g, rows in enumerate(groups) for i, row in enumerate(rows)]
        built[split] = [row for _, _, row in sorted(ranked, key=lambda item: item[:2])]
        for row in built[split]:
            check_row(row)
    check_splits(built["train"], built["heldout"])
    TARGET.mkdir(parents=True, exist_ok=True)
    for split, rows in built.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (TARGET / f"{split}.jsonl").write_text(text, encoding="utf-8")
        print(f"{split}: {len(rows)} rows")


if __name__ == "__main__":
    main()
