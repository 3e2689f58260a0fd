"""The texts of a dataset that a tokenizer or a model may learn from: never those held out."""

from collections.abc import Iterator

from yunque.data.dataset import read_rows
from yunque.data.instructions import read_instruction_split
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace

_INSTRUCTIONS = "instructions"


def holds_text(artifact: Artifact) -> bool:
    """Whether `training_texts` reads the rows of a dataset: documents or instructions."""
    return artifact.config.get("format") in (None, _INSTRUCTIONS)


def training_texts(workspace: Workspace, artifact: Artifact) -> Iterator[tuple[str, str]]:
    """Row id and text of every row that may be trained on, of documents or instructions.

    A dataset that was split gives its training split only; one that was not gives all its rows. An instruction
    is its question and, after an empty line, its answer. Raises UserError for rows of another kind.
    """
    if not holds_text(artifact):
        raise UserError(
            f"{artifact.ref} holds {artifact.config['format']}: text is read from documents and instructions"
        )
    if artifact.config.get("format") == _INSTRUCTIONS:
        for instruction in read_instruction_split(workspace, artifact, "train"):
            yield instruction.id, f"{instruction.question}\n\n{instruction.answer}"
        return
    split = "train" if "train.jsonl" in artifact.files else None
    for row in read_rows(workspace, artifact, split):
        yield row.id, row.text


def held_out_texts(workspace: Workspace, artifact: Artifact, split: str = "validation") -> Iterator[str]:
    """Texts of a split that no training sees; nothing where the dataset has no such split."""
    if artifact.config.get("format") is None and f"{split}.jsonl" in artifact.files:
        for row in read_rows(workspace, artifact, split):
            yield row.text
