"""The texts of a dataset that a tokenizer or a model may learn from: never those held out."""

from collections.abc import Iterator

from yunque.data.dataset import read_rows
from yunque.data.instructions import read_instruction_split
from yunque.workspace import Artifact, Workspace


def training_texts(workspace: Workspace, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Row id and text of every row that may be trained on, of documents or instructions.

    A dataset that was split gives its training split only; one that was not gives all its rows. An instruction
    is its question and, after an empty line, its answer.
    """
    if artifact.config.get("format") == "instructions":
        for instruction in read_instruction_split(workspace, artifact, "train"):
            yield instruction.id, f"{instruction.question}\n\n{instruction.answer}"
        return
    split = "train" if "train.jsonl" in artifact.files else None
    for row in read_rows(workspace, artifact, split):
        yield row.id, row.text


def held_out_texts(workspace: Workspace, artifact: Artifact, split: str = "validation") -> Iterator[str]:
    """Texts of a split that no training sees; nothing where the dataset has no such split."""
    if artifact.config.get("format") != "instructions" and f"{split}.jsonl" in artifact.files:
        for row in read_rows(workspace, artifact, split):
            yield row.text
