"""Datasets in the workspace: rows as JSON lines, in one file or in three splits, and their card.

Files: `rows.jsonl`, or `train.jsonl`, `validation.jsonl` and `test.jsonl`; `card.json`; and `dropped.jsonl`, which
names each duplicate and the row it was dropped for.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yunque.data.row import Row
from yunque.data.row_store import row_line
from yunque.data.split import SPLITS
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

UNSPLIT = "rows"
CARD_FILE = "card.json"
DROPPED_FILE = "dropped.jsonl"


def read_rows(workspace: Workspace, artifact: Artifact, split: str | None = None) -> Iterator[Row]:
    """The rows of a dataset, or of one of its splits, one at a time. Raises UserError if it has no such split."""
    for name in splits_of(artifact) if split is None else (split,):
        if f"{name}.jsonl" not in artifact.files:
            raise UserError(
                f"{artifact.ref} has no split {name!r} (it has: {', '.join(splits_of(artifact))})"
            )
        with workspace.file(artifact, f"{name}.jsonl").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield Row.from_dict(json.loads(line))


def splits_of(artifact: Artifact) -> tuple[str, ...]:
    """`("rows",)`, or the three splits."""
    return (UNSPLIT,) if f"{UNSPLIT}.jsonl" in artifact.files else SPLITS


def read_card(workspace: Workspace, artifact: Artifact) -> dict[str, Any]:
    """The card that was written with a dataset."""
    card: dict[str, Any] = json.loads(workspace.file(artifact, CARD_FILE).read_text(encoding="utf-8"))
    return card


def write_dataset(
    workspace: Workspace,
    name: str,
    splits: Mapping[str, Iterable[Row]],
    card: Mapping[str, Any],
    parents: Iterable[Artifact],
    config: Mapping[str, Any],
    dropped: Iterable[Mapping[str, Any]] = (),
) -> Artifact:
    """Keep rows as the next version of a dataset; the key "rows" is the unsplit one. Rows may be a stream.

    `card` may still be filled while the rows are taken. When the newest version, or one that it was made of, is
    the same already, that one is returned: adding, anonymizing and splitting again makes nothing new.
    """
    with tempfile.TemporaryDirectory(prefix=".dataset-", dir=workspace.root) as folder:
        files: dict[str, bytes | Path] = {}
        for split, rows in splits.items():
            path = Path(folder, f"{split}.jsonl")
            with path.open("wb") as file:
                file.writelines(map(row_line, rows))
            files[path.name] = path
        lines = [json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in dropped]
        if lines:
            files[DROPPED_FILE] = b"".join(lines)
        files[CARD_FILE] = json.dumps(card, ensure_ascii=False, indent=2).encode() + b"\n"
        config = json.loads(json.dumps(config))
        parents = list(parents)
        if same := _same_in_line(workspace, name, files, parents, config):
            return same
        figures = {key: card[key] for key in ("rows", "characters", "tokens") if key in card}
        return workspace.put("dataset", name, files, parents, config, figures)


def _same_in_line(
    workspace: Workspace,
    name: str,
    files: Mapping[str, bytes | Path],
    parents: Sequence[Artifact],
    config: Mapping[str, Any],
) -> Artifact | None:
    """The newest version, or the one it was made of (and so on), that is just what would be made now."""
    digests = {
        path: sha256_of(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        for path, content in files.items()
    }
    refs = tuple(parent.ref for parent in parents)
    version = workspace.find(f"dataset/{name}", "dataset")
    while version is not None:
        if (version.files, version.parents, version.config) == (digests, refs, config):
            return version
        above = next((ref for ref in version.parents if ref.startswith(f"dataset/{name}@")), None)
        version = workspace.find(above, "dataset") if above else None
    return None
