"""Instruction rows: what a model is tuned on and what its answers are checked against.

A file of them is JSON Lines, one object a line:

    {"id": "es-sent-001", "task": "sentiment", "language": "es", "template": "es-1", "instruction": "...",
     "input": "...", "answer": "positivo", "labels": ["positivo", "negativo"]}

`input` is the text that the instruction is about: it stands in the instruction already, or is put below it, or is
empty. `labels` are the answers that may be chosen from, or null where the answer is free text.
"""

import json
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from yunque.data.json_lines import read_json_lines, write_json_lines
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

_TEXT_FIELDS = ("id", "task", "language", "template", "instruction", "input", "answer")
_MAY_BE_EMPTY = ("input",)


@dataclass(frozen=True)
class InstructionRow:
    """One instruction with the answer wanted; texts are in NFC."""

    id: str
    task: str
    language: str
    template: str
    instruction: str
    input: str
    answer: str
    labels: tuple[str, ...] | None = None

    @property
    def question(self) -> str:
        """What the user says: the instruction and, where it does not hold it, the text that it is about."""
        if self.input in self.instruction:
            return self.instruction
        return f"{self.instruction}\n\n{self.input}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "labels": list(self.labels) if self.labels else None}


def parse_instruction(value: object) -> InstructionRow:
    """One decoded JSON line as a row; raises ValueError that says which field is wrong."""
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    unknown = sorted(set(value) - {*_TEXT_FIELDS, "labels"})
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    texts: dict[str, str] = {}
    for name in _TEXT_FIELDS:
        if name not in value:
            raise ValueError(f"the field {name!r} is missing")
        text = value[name]
        if not isinstance(text, str):
            raise ValueError(f"the field {name!r} must be text, not {type(text).__name__}")
        if not text.strip() and name not in _MAY_BE_EMPTY:
            raise ValueError(f"the field {name!r} is empty")
        texts[name] = unicodedata.normalize("NFC", text)
    return InstructionRow(**texts, labels=_parse_labels(value.get("labels"), texts["answer"]))


def _parse_labels(labels: object, answer: str) -> tuple[str, ...] | None:
    if labels is None:
        return None
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise ValueError("the field 'labels' must be a list of texts, or null")
    parsed = tuple(unicodedata.normalize("NFC", label) for label in labels)
    if len(set(parsed)) < 2 or len(set(parsed)) != len(parsed):
        raise ValueError("the field 'labels' must hold at least two labels, each once")
    if answer not in parsed:
        raise ValueError(f"the answer {answer!r} is not one of the labels")
    return parsed


def read_instructions(path: Path, on_bad: Callable[[str], None] | None = None) -> list[InstructionRow]:
    """The rows of a JSON Lines file.

    A bad line raises UserError with file, line and field; with `on_bad` that sentence is handed over instead and
    the line is left out. Blank lines are passed over. A file without a good row is an error either way.
    """
    return read_json_lines(path, parse_instruction, "instruction row", on_bad)


def write_instructions(
    workspace: Workspace,
    name: str,
    splits: Mapping[str, Sequence[InstructionRow]],
    sources: Sequence[Mapping[str, str]] = (),
    settings: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
) -> Artifact:
    """Keep instruction rows as the dataset `name`: one file `SPLIT.jsonl` for each split ("train", "heldout").

    `sources`, `settings` and `card` are those of `write_json_lines`.
    """
    return write_json_lines(workspace, name, "instructions", splits, sources, settings, card)


def add_instructions(
    workspace: Workspace, name: str, paths: Mapping[str, Path], on_bad: Callable[[str], None] | None = None
) -> Artifact:
    """Read the file of each split and keep them as the dataset `name`; `on_bad` is that of `read_instructions`."""
    splits = {split: read_instructions(path, on_bad) for split, path in paths.items()}
    sources = [{"file": str(path), "sha256": sha256_of(path)} for path in paths.values()]
    return write_instructions(workspace, name, splits, sources)


def places_of(dataset: Artifact | None, ids: Collection[str]) -> dict[str, str]:
    """Where rows of a dataset stand, `FILE:LINE`, for as long as the file that they came from is what it was; else
    the dataset and the row's id."""
    if dataset is None:
        return {}
    found = {id: f"{dataset.ref}, row {id!r}" for id in ids}
    for source in dataset.config.get("sources", ()):
        path = Path(source["file"])
        if not path.is_file() or sha256_of(path) != source["sha256"]:
            continue
        for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
            try:
                id = json.loads(line).get("id") if line.strip() else None
            except (ValueError, AttributeError):
                continue  # a bad line, which was left out
            if isinstance(id, str) and (id := unicodedata.normalize("NFC", id)) in found:
                found[id] = f"{path}:{number}"
    return found


def shipped_instructions(workspace: Workspace) -> Artifact:
    """The instruction set that comes with Yunque, as the dataset `instructions` (train and heldout)."""
    with as_file(files("yunque") / "samples" / "instructions") as folder:
        splits = {split: read_instructions(folder / f"{split}.jsonl") for split in ("train", "heldout")}
        sources = [
            {"file": f"samples/instructions/{split}.jsonl", "sha256": sha256_of(folder / f"{split}.jsonl")}
            for split in splits
        ]
    return write_instructions(workspace, "instructions", splits, sources)


def read_instruction_split(workspace: Workspace, artifact: Artifact, split: str) -> list[InstructionRow]:
    """The rows of one split of a dataset that `write_instructions` made; raises UserError for another one."""
    if artifact.config.get("format") != "instructions":
        raise UserError(f"{artifact.ref} holds no instruction rows")
    return read_instructions(workspace.file(artifact, f"{split}.jsonl"))
