"""Lineage: from an answer or an artifact back to the files it came from.

An answer is named `answer/N` (N is the number that `yunque log` shows); everything else is an artifact.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from yunque.data.dataset import read_rows
from yunque.errors import UserError
from yunque.workspace import Artifact, Call, Workspace, read_calls

_ANSWER = re.compile(r"answer/([0-9]{1,15})")


@dataclass(frozen=True)
class Node:
    """One thing in a lineage: `kind` is `answer`, `row`, `file` or an artifact's; what it was made of is below it."""

    kind: str
    ref: str
    detail: str = ""
    parents: list["Node"] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "ref": self.ref,
            "detail": self.detail,
            "parents": [parent.as_dict() for parent in self.parents],
        }

    def walk(self) -> list["Node"]:
        """This node and all below it, each once."""
        found: dict[tuple[str, str], Node] = {}
        waiting = [self]
        while waiting:
            node = waiting.pop()
            if (node.kind, node.ref) not in found:
                found[node.kind, node.ref] = node
                waiting.extend(node.parents)
        return list(found.values())


def trace(workspace: Workspace, ref: str) -> Node:
    """The lineage of `answer/N` or of an artifact; raises UserError when there is no such thing."""
    answer = _ANSWER.fullmatch(ref)
    if answer:
        calls = read_calls(workspace.catalog.connection(), number=int(answer[1]))
        if not calls:
            raise UserError(f"no answer has the number {answer[1]}: see `yunque log`")
        return _answer_node(workspace, calls[0])
    return _artifact_node(workspace, workspace.get(ref))


def _answer_node(workspace: Workspace, call: Call) -> Node:
    """An answer: the rows it cites, each with its dataset and file, and what it was asked of."""
    parents: list[Node] = []
    target = workspace.find(call.target)
    datasets = _datasets_below(workspace, target) if target else []
    for citation in call.details.get("citations", []):
        parents.append(_citation_node(workspace, datasets, citation))
    if target:
        parents.append(_artifact_node(workspace, target))
    else:
        parents.append(Node("model", call.target, "is not in this workspace"))
    if call.model not in (call.target, "extractive"):
        parents.append(_model_node(workspace, call.model))
    return Node("answer", f"answer/{call.id}", f"{call.time} · {_short(call.question)}", parents)


def _model_node(workspace: Workspace, name: str) -> Node:
    """The model that wrote an answer: an artifact here, or one that lives elsewhere."""
    try:
        artifact = workspace.find(name, "model")
    except UserError:  # a remote model's name need not be one that we would give
        artifact = None
    return _artifact_node(workspace, artifact) if artifact else Node("model", name, "outside this workspace")


def _citation_node(workspace: Workspace, datasets: list[Artifact], citation: dict[str, Any]) -> Node:
    """A cited row, the file it was read from, and the dataset that holds it."""
    row_id, number = str(citation["row_id"]), citation["number"]
    for dataset in datasets:
        for row in read_rows(workspace, dataset):
            if row.id == row_id:
                file = Node("file", row.source.file, f"sha256 {row.source.sha256[:16]}…")
                return Node(
                    "row",
                    f"{dataset.ref}#{row.id}",
                    f"[{number}] {row.source.locator}",
                    [file],
                )
    return Node("row", row_id, f"[{number}] is in no dataset below this app any more")


def _datasets_below(workspace: Workspace, artifact: Artifact) -> list[Artifact]:
    """The datasets an artifact was made of, the nearest first."""
    found: dict[str, Artifact] = {}
    waiting = [artifact]
    while waiting:
        current = waiting.pop(0)
        if current.kind == "dataset":
            found.setdefault(current.ref, current)
        waiting.extend(
            parent for ref in current.parents if (parent := workspace.find(ref)) and parent.ref not in found
        )
    return list(found.values())


def _artifact_node(workspace: Workspace, artifact: Artifact) -> Node:
    """An artifact and what it was made of; a dataset without parents goes on to the files it was read from."""
    parents = [
        _artifact_node(workspace, parent) if (parent := workspace.find(ref)) else Node("missing", ref)
        for ref in artifact.parents
    ]
    if artifact.kind == "dataset" and not parents:
        parents = [
            Node("file", file, f"{count} rows · sha256 {sha256[:16]}…")
            for (file, sha256), count in _files_of(workspace, artifact).items()
        ]
    return Node(artifact.kind, artifact.ref, f"{artifact.created} · hash {artifact.hash[:12]}", parents)


def _files_of(workspace: Workspace, dataset: Artifact) -> dict[tuple[str, str], int]:
    """The files a dataset was read from, by name and SHA-256, with the number of rows of each."""
    counts: dict[tuple[str, str], int] = {}
    for row in read_rows(workspace, dataset):
        key = (row.source.file, row.source.sha256)
        counts[key] = counts.get(key, 0) + 1
    return counts


def _short(text: str) -> str:
    return text if len(text) <= 70 else text[:69] + "…"
