"""Learning a tokenizer of our own from the datasets of a workspace."""

from collections.abc import Iterator, Sequence

from yunque.data.texts import training_texts
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.tokenizer.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace


def train_tokenizer(
    workspace: Workspace, name: str, refs: Sequence[str], vocab_size: int, progress: Progress = silent
) -> Artifact:
    """Learn a tokenizer from the training rows of datasets and keep it as the artifact `name`."""
    datasets = [workspace.get(ref, "dataset") for ref in refs]
    if not datasets:
        raise UserError("a tokenizer needs text: name a dataset with --data (see `yunque list dataset`)")
    counts = {"rows": 0, "bytes": 0}

    def texts() -> Iterator[str]:
        with progress("Learning the tokenizer") as task:
            for dataset in datasets:
                for _, text in training_texts(workspace, dataset):
                    counts["rows"] += 1
                    counts["bytes"] += len(text.encode("utf-8", "replace"))
                    task.advance(1, note=f"{counts['bytes'] / 1e6:.1f} MB read")
                    yield text

    tokenizer = Tokenizer.train(texts(), vocab_size)
    if not counts["rows"]:
        raise UserError(f"{', '.join(dataset.ref for dataset in datasets)}: no row to learn from")
    return workspace.put(
        "tokenizer",
        name,
        {"tokenizer.json": tokenizer.to_json().encode()},
        parents=datasets,
        config={"vocab_size": vocab_size},
        figures={**counts, "vocab_size": tokenizer.vocab_size},
    )
