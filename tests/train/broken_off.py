"""Runs that break off, and what runs leave."""

import json
from pathlib import Path

from yunque.workspace import Artifact, Workspace


def weights(workspace: Workspace, model: Artifact) -> bytes:
    return workspace.file(model, "model.safetensors").read_bytes()


def log(workspace: Workspace, model: Artifact) -> list[dict]:
    return [json.loads(line) for line in workspace.file(model, "loss.jsonl").read_text().splitlines()]


def run_folder(workspace: Workspace) -> Path:
    (folder,) = workspace.runs.iterdir()
    return folder


class StopAt:
    """Progress that behaves like a crash (an exception of no known kind) at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, description: str, total: float | None = None) -> "StopAt":
        self.counts = description == "Training" and total is not None
        return self

    def __enter__(self) -> "StopAt":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, amount: float = 1, note: str = "") -> None:
        # The first call of a run that goes on tells all steps done before, without a note.
        if self.counts and note:
            self.left -= amount
            if self.left == 0:
                self.strike()

    def strike(self) -> None:
        raise RuntimeError("crash")
