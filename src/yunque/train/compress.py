"""Quantizing a model of the workspace, and measuring what was lost by it."""

import math
from collections.abc import Sequence

from yunque.data.dataset import read_rows
from yunque.data.row import Row
from yunque.errors import UserError
from yunque.model import load_model, quantize_model, save_model
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.train.loss import evaluate_loss
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import checked_name

# Enough to tell a difference of a thousandth in perplexity; half a minute more would not change it.
_MEASURED_TOKENS = 16_384


def _datasets_of(workspace: Workspace, model: Artifact) -> list[Artifact]:
    """The datasets that a model, or the one that it was made of, was trained on."""
    datasets: list[Artifact] = []
    for ref in model.parents:
        parent = workspace.get(ref)
        if parent.kind == "dataset":
            datasets.append(parent)
        elif parent.kind == "model":
            datasets += _datasets_of(workspace, parent)
    return datasets


def held_out_rows(workspace: Workspace, datasets: Sequence[Artifact]) -> list[Row]:
    """The rows of the test splits."""
    return [row for dataset in datasets for row in read_rows(workspace, dataset, "test")]


def quantize(
    workspace: Workspace,
    ref: str,
    name: str | None = None,
    data: str | None = None,
    progress: Progress = silent,
) -> Artifact:
    """An int8 copy of a model as the artifact `name` (else NAME-int8).

    Its figures are the bytes of the weights and the perplexity before and after, on the test split of `data` or of
    what the model was trained on. Raises UserError where there is no such split.
    """
    if name:
        checked_name(name)
    base = workspace.get(ref, "model")
    datasets = [workspace.get(data, "dataset")] if data else _datasets_of(workspace, base)
    datasets = [dataset for dataset in datasets if "test.jsonl" in dataset.files]
    rows = held_out_rows(workspace, datasets)
    if not rows:
        raise UserError(
            f"{base.ref}: there are no held-out rows to measure perplexity on; name a dataset that was split with "
            "--data (`yunque data split DATASET` makes one)"
        )
    tokenizer = Tokenizer.load(workspace.file(base, "tokenizer.json"))
    before = load_model({path: workspace.file(base, path) for path in base.files})
    after = quantize_model(before)
    losses = [
        evaluate_loss(model, tokenizer, rows, _MEASURED_TOKENS, progress=progress)
        for model in (before, after)
    ]
    files = save_model(after, after.config)
    return workspace.put(
        "model",
        name or f"{base.name}-int8",
        {**files, "tokenizer.json": workspace.file(base, "tokenizer.json")},
        parents=[base],
        config={"quantization": "int8", "base": base.ref},
        figures={
            "bytes_before": workspace.file(base, "model.safetensors").stat().st_size,
            "bytes_after": len(files["model.safetensors"]),
            "perplexity_before": math.exp(losses[0]),
            "perplexity_after": math.exp(losses[1]),
            "measured_on": [dataset.ref for dataset in datasets],
        },
    )
