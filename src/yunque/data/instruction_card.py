"""What a dataset of instruction rows holds, in numbers: its splits, and its tasks with how they are asked."""

import json
from collections.abc import Mapping
from typing import Any

from yunque.data.dataset import CARD_FILE
from yunque.data.instructions import read_instruction_split
from yunque.workspace import Artifact, Workspace

_ROWS = "_rows"


def split_sizes(artifact: Artifact) -> dict[str, int]:
    """The number of rows of each split of a dataset of JSON lines, from its figures; `train` comes first."""
    sizes = {
        name.removesuffix(_ROWS): count for name, count in artifact.figures.items() if name.endswith(_ROWS)
    }
    return dict(sorted(sizes.items(), key=lambda size: (size[0] != "train", size[0])))


def instruction_card(workspace: Workspace, artifact: Artifact) -> dict[str, Any]:
    """`splits` (name: rows) and `tasks`, a mapping for each task and language.

    A dataset made of a task collection tells its clusters, its templates and the forms of its training rows
    (`card.json`); of any other the rows and templates are counted.
    """
    splits = split_sizes(artifact)
    if CARD_FILE in artifact.files:
        kept: dict[str, Any] = json.loads(workspace.file(artifact, CARD_FILE).read_text(encoding="utf-8"))
        return {"splits": splits, **kept}
    return {"splits": splits, "tasks": _counted(workspace, artifact, splits)}


def _counted(workspace: Workspace, artifact: Artifact, splits: Mapping[str, int]) -> list[dict[str, Any]]:
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    templates: dict[tuple[str, str], set[str]] = {}
    for split in splits:
        for row in read_instruction_split(workspace, artifact, split):
            key = (row.task, row.language)
            counts = tasks.setdefault(
                key, {"task": row.task, "language": row.language, **dict.fromkeys(splits, 0)}
            )
            counts[split] += 1
            templates.setdefault(key, set()).add(row.template)
    return [{**counts, "templates": len(templates[key])} for key, counts in sorted(tasks.items())]
