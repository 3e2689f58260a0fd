"""Tuning with its report: what was learnt (held-out instructions) and what was forgotten (held-out general text)."""

import json
from collections.abc import Sequence
from typing import Any

from yunque.data.dataset import read_rows
from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.errors import UserError
from yunque.evaluate.loss import text_loss
from yunque.evaluate.metrics import bootstrap_interval
from yunque.evaluate.tasks import Prediction, by_task, figures, one_thread, predict
from yunque.llm.local import LocalModel
from yunque.progress import Progress, Warn, silent
from yunque.train import TuneSettings, tune
from yunque.workspace import Artifact, Workspace

GENERAL_SPLITS = ("test", "validation")
_GENERAL_TOKENS = 20_000
_ANSWER_TOKENS = 40


def tune_with_report(
    workspace: Workspace,
    base_ref: str,
    training: Artifact,
    held_out: Artifact,
    general: Sequence[Artifact],
    settings: TuneSettings,
    progress: Progress = silent,
    tell: Warn = lambda _: None,
) -> tuple[Artifact, Artifact, dict[str, Any]]:
    """Tune `base_ref` on the training rows of `training`, and measure it before and after.

    `held_out` gives the held-out rows, `general` datasets of text with a test or validation split. Returns the tuned
    model, the report artifact (report.json, before.jsonl, after.jsonl) and the report. A report that exists for this
    model and these data is returned as it is. Raises UserError for data that lacks the rows, before any training.
    """
    base = workspace.get(base_ref, "model")
    rows = read_instruction_split(workspace, training, "train")
    tests = read_instruction_split(workspace, held_out, "heldout")
    if shared := {row.question for row in rows} & {row.question for row in tests}:
        raise UserError(f"{len(shared)} held-out rows are among the training rows, so they can prove nothing")
    splits = [general_split(dataset) for dataset in general]
    tuned = tune(workspace, base.ref, rows, settings, progress, tell, training)
    config = {
        "base": base.ref,
        "model": tuned.ref,
        "general_tokens": _GENERAL_TOKENS,
        "answer_tokens": _ANSWER_TOKENS,
    }
    parents = (tuned, held_out, *general)
    kept = workspace.find(f"{tuned.name}-tuning", "report")
    if kept and kept.config == config and kept.parents == tuple(parent.ref for parent in parents):
        return tuned, kept, json.loads(workspace.file(kept, "report.json").read_bytes())
    measured = [
        _measure(workspace, model, tests, list(zip(general, splits, strict=True)), progress)
        for model in (base, tuned)
    ]
    report = {**config, "training": training.ref, "held_out": held_out.ref, **compared(*measured)}
    made = workspace.put(
        "report",
        f"{tuned.name}-tuning",
        {
            "report.json": json.dumps(report, ensure_ascii=False, indent=2).encode(),
            "before.jsonl": _lines(measured[0][0]),
            "after.jsonl": _lines(measured[1][0]),
        },
        parents,
        config,
        _figures(report),
    )
    return tuned, made, report


def _figures(report: dict[str, Any]) -> dict[str, float]:
    """What a list shows of a report: accuracy, and the mean loss a token over all the general text."""
    found = {f"accuracy_{when}": report["accuracy"][when] for when in ("before", "after")}
    if tokens := sum(text["tokens"] for text in report["general"]):
        for when in ("before", "after"):
            found[f"general_loss_{when}"] = (
                sum(text["tokens"] * text[when] for text in report["general"]) / tokens
            )
    return found


Losses = list[dict[str, Any]]


def _measure(
    workspace: Workspace,
    model: Artifact,
    tests: Sequence[InstructionRow],
    general: Sequence[tuple[Artifact, str]],
    progress: Progress,
) -> tuple[list[Prediction], Losses]:
    opened = LocalModel.open(workspace, model.ref)
    losses = [
        {
            "data": dataset.ref,
            "split": split,
            **text_loss(
                opened.engine, read_rows(workspace, dataset, split), _GENERAL_TOKENS, progress
            ).as_dict(),
        }
        for dataset, split in general
    ]
    with one_thread():
        return predict(
            opened, opened.score, tests, _ANSWER_TOKENS, write_labels=False, progress=progress
        ), losses


def compared(
    before: tuple[Sequence[Prediction], Losses], after: tuple[Sequence[Prediction], Losses]
) -> dict[str, Any]:
    """The figures of two measurements of the same rows, side by side.

    `change` of the accuracy has a 95 % interval from a paired bootstrap: both models answered the same rows.
    """
    (old, old_losses), (new, new_losses) = before, after
    changes = [float(b.correct) - float(a.correct) for a, b in zip(old, new, strict=True)]
    low, high = bootstrap_interval(changes)
    return {
        "tasks": [
            {
                **{name: b[name] for name in ("task", "language", "rows", "chance") if name in b},
                "before": {
                    name: value for name, value in a.items() if name not in ("task", "language", "rows")
                },
                "after": {
                    name: value for name, value in b.items() if name not in ("task", "language", "rows")
                },
            }
            for a, b in zip(by_task(old), by_task(new), strict=True)
        ],
        "accuracy": {
            "rows": len(new),
            "before": figures(old)["accuracy"],
            "after": figures(new)["accuracy"],
            "change": sum(changes) / len(changes),
            "low": low,
            "high": high,
        },
        "general": [
            {
                **{name: b[name] for name in ("data", "split", "tokens")},
                "before": a["loss"],
                "after": b["loss"],
                "forgotten": b["loss"] - a["loss"],
            }
            for a, b in zip(old_losses, new_losses, strict=True)
        ],
    }


def general_split(dataset: Artifact) -> str:
    """The split of a dataset on which forgetting is measured; raises UserError where it has none."""
    for split in GENERAL_SPLITS:
        if f"{split}.jsonl" in dataset.files:
            return split
    raise UserError(
        f"{dataset.ref} has no test or validation split to measure forgetting on: see `yunque data split`"
    )


def general_datasets(workspace: Workspace, base_ref: str) -> list[Artifact]:
    """The datasets of text in a model's lineage that have held-out rows: what it may forget."""
    waiting, seen, found = [workspace.get(base_ref, "model").ref], set[str](), list[Artifact]()
    while waiting:
        ref = waiting.pop(0)
        if ref in seen:
            continue
        seen.add(ref)
        artifact = workspace.get(ref)
        if artifact.kind == "dataset" and any(f"{split}.jsonl" in artifact.files for split in GENERAL_SPLITS):
            found.append(artifact)
        elif artifact.kind in ("model", "tokenizer"):
            waiting += artifact.parents
    return found


def _lines(predictions: Sequence[Prediction]) -> bytes:
    return "".join(json.dumps(each.as_dict(), ensure_ascii=False) + "\n" for each in predictions).encode()
