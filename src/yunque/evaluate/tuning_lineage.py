"""What is behind a model: the texts and tasks that it may forget, and where a tuning comes from."""

from collections.abc import Iterator, Sequence
from typing import Any

from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace

GENERAL_SPLITS = ("test", "validation")


def general_split(dataset: Artifact) -> str:
    """The split of a dataset on which forgetting is measured; raises UserError where it has none."""
    for split in GENERAL_SPLITS:
        if f"{split}.jsonl" in dataset.files and not holds_instructions(dataset):
            return split
    raise UserError(
        f"{dataset.ref} has no test or validation split to measure forgetting on: see `yunque data split`"
    )


def general_datasets(workspace: Workspace, base_ref: str) -> list[Artifact]:
    """The datasets of text in a model's lineage that have held-out rows: what it may forget."""
    return [
        dataset
        for dataset in ancestors(workspace, workspace.get(base_ref, "model"))
        if dataset.kind == "dataset"
        and not holds_instructions(dataset)
        and any(f"{split}.jsonl" in dataset.files for split in GENERAL_SPLITS)
    ]


def task_datasets(workspace: Workspace, base_ref: str) -> list[Artifact]:
    """The instructions that a model and those above it learned from and that have held-out rows."""
    return [
        dataset
        for dataset in ancestors(workspace, workspace.get(base_ref, "model"))
        if holds_instructions(dataset) and "heldout.jsonl" in dataset.files
    ]


def holds_instructions(dataset: Artifact) -> bool:
    """Whether an artifact is a dataset of instruction rows."""
    return dataset.kind == "dataset" and dataset.config.get("format") == "instructions"


def ancestors(workspace: Workspace, artifact: Artifact, until: str | None = None) -> Iterator[Artifact]:
    """The artifact, the models and tokenizers above it and their datasets, each once; nothing from `until` on."""
    waiting, seen = [artifact.ref], set[str]()
    while waiting:
        ref = waiting.pop(0)
        if ref in seen or ref == until:
            continue
        seen.add(ref)
        found = workspace.get(ref)
        yield found
        if found.kind in ("model", "adapter", "tokenizer"):
            waiting += found.parents


def lineage_of(
    workspace: Workspace, base: Artifact, tuned: Artifact, measured_on: Sequence[Artifact]
) -> dict[str, Any]:
    """Name and hash of everything that a tuning comes from, and of what it was measured on; `judges` are the reward
    models that it learned from."""
    parents = [workspace.get(ref) for ref in tuned.parents]
    adapters = [parent for parent in (*parents, tuned) if parent.kind == "adapter"]
    return {
        "base": _named(base),
        "data": [_named(parent) for parent in parents if parent.kind == "dataset"],
        "judges": [_named(each) for each in parents if each.kind == "model" and each.ref != base.ref],
        "adapter": _named(adapters[0]) if adapters else None,
        "model": _named(tuned),
        "run": tuned.config.get("run"),
        "measured_on": [_named(dataset) for dataset in measured_on],
        "environment": tuned.environment,
    }


def _named(artifact: Artifact) -> dict[str, str]:
    return {"ref": artifact.ref, "hash": artifact.hash}
