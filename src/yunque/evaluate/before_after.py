"""A model before and after a training, asked the same: what its report is made of."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yunque.data.dataset import read_rows
from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.evaluate.answers import compared_accuracy, compared_tasks
from yunque.evaluate.loss import NoTextLoss, text_loss
from yunque.evaluate.tasks import Prediction, one_thread, predict
from yunque.evaluate.tuning_lineage import general_split, lineage_of, task_datasets
from yunque.evaluate.tuning_report import markdown
from yunque.llm.local import LocalModel
from yunque.progress import Progress
from yunque.train.cost import Cost
from yunque.train.distributed import first_makes
from yunque.workspace import Artifact, Workspace

_GENERAL_TOKENS = 20_000
_ANSWER_TOKENS = 40

Losses = list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """Held-out rows of the tasks that are learned and of other tasks, and texts with the split that is read; `on` has
    the datasets of all of them."""

    learned: Sequence[InstructionRow]
    others: Sequence[InstructionRow]
    texts: Sequence[tuple[Artifact, str]]
    on: Sequence[Artifact]


def with_splits(texts: Sequence[Artifact]) -> list[tuple[Artifact, str]]:
    """Datasets of text, each with the split that forgetting is measured on; raises UserError for one without."""
    return [(dataset, general_split(dataset)) for dataset in texts]


def earlier_tasks(
    workspace: Workspace, base: Artifact, other: Sequence[Artifact] | None
) -> list[tuple[Artifact, list[InstructionRow]]]:
    """The held-out rows of `other` datasets, where None of those that the base and the models above it were tuned
    on."""
    named = task_datasets(workspace, base.ref) if other is None else other
    return [(dataset, read_instruction_split(workspace, dataset, "heldout")) for dataset in named]


def report_on(
    workspace: Workspace,
    method: str,
    base: Artifact,
    made: Artifact,
    asked: Asked,
    config: Mapping[str, Any],
    told: Mapping[str, Any],
    progress: Progress,
) -> tuple[Artifact, dict[str, Any]]:
    """The report artifact of a training by `method` (report.json, report.md, before.jsonl, after.jsonl), and the
    report: the base and what was made of it, each asked the same.

    `config` is what shapes the report beside that, `told` what else stands in it. A report that exists for all this
    is given as it is. Of several processes, which trained together, the first one measures.
    """
    config = {
        "base": base.ref,
        "model": made.ref,
        "general_tokens": _GENERAL_TOKENS,
        "answer_tokens": _ANSWER_TOKENS,
        **config,
    }
    name = f"{made.name}-{'tuning' if method == 'tuning' else 'alignment'}"
    parents = [made, *{each.ref: each for each in asked.on}.values()]

    def make() -> tuple[Artifact, dict[str, Any]]:
        kept = workspace.find(name, "report")
        if kept and kept.config == config and kept.parents == tuple(parent.ref for parent in parents):
            return kept, json.loads(workspace.file(kept, "report.json").read_bytes())
        began = time.monotonic()
        before, after = (_measure(workspace, model, asked, progress) for model in (base, made))
        report = {
            "method": method,
            **config,
            **told,
            **compared(before, after, len(asked.learned)),
            "cost": {
                **{
                    field: made.figures[field] for field in Cost.__dataclass_fields__ if field in made.figures
                },
                "measuring_seconds": round(time.monotonic() - began, 3),
            },
            "lineage": lineage_of(workspace, base, made, parents[1:]),
        }
        files = {
            "report.json": json.dumps(report, ensure_ascii=False, indent=2).encode(),
            "report.md": markdown(report).encode(),
            "before.jsonl": _lines(before[0]),
            "after.jsonl": _lines(after[0]),
        }
        return workspace.put("report", name, files, parents, config, _figures(report)), report

    return first_makes(make, tuple[Artifact, dict[str, Any]])


def _figures(report: dict[str, Any]) -> dict[str, float]:
    """What a list shows of a report: accuracy, and the mean loss a token over all the general text."""
    found: dict[str, float] = {}
    totals = {"accuracy": report["accuracy"], "other_accuracy": (report["others"] or {}).get("accuracy")}
    for name, total in totals.items():
        if total is not None:
            found |= {f"{name}_{when}": total[when] for when in ("before", "after")}
    if tokens := sum(text["tokens"] for text in report["general"]):
        for when in ("before", "after"):
            found[f"general_loss_{when}"] = (
                sum(text["tokens"] * text[when] for text in report["general"]) / tokens
            )
    return found | {name: report["cost"][name] for name in ("seconds", "tokens", "energy_wh")}


def _measure(
    workspace: Workspace, model: Artifact, asked: Asked, progress: Progress
) -> tuple[list[Prediction], Losses]:
    opened = LocalModel.open(workspace, model.ref)
    losses = Losses()
    for dataset, split in asked.texts:
        rows = read_rows(workspace, dataset, split)
        try:
            found = text_loss(opened.engine, rows, _GENERAL_TOKENS, progress).as_dict()
        except NoTextLoss as error:
            found = {"not_measured": str(error)}
        losses.append({"data": dataset.ref, "split": split, **found})
    questions = [*asked.learned, *asked.others]
    with one_thread():
        answers = predict(
            opened, opened.score, questions, _ANSWER_TOKENS, write_labels=False, progress=progress
        )
    return answers, losses


def compared(
    before: tuple[Sequence[Prediction], Losses],
    after: tuple[Sequence[Prediction], Losses],
    rows: int | None = None,
) -> dict[str, Any]:
    """The figures of two measurements of the same rows, side by side.

    The first `rows` are of the tasks that were learned (default: all), the rest of `others`; the accuracy of none is
    None. Every `change` has a 95 % interval from a paired bootstrap: both models answered the same rows.
    """
    (old, old_losses), (new, new_losses) = before, after
    count = len(new) if rows is None else rows
    return {
        "tasks": compared_tasks(old[:count], new[:count]),
        "accuracy": compared_accuracy(old[:count], new[:count]) if count else None,
        "others": {
            "tasks": compared_tasks(old[count:], new[count:]),
            "accuracy": compared_accuracy(old[count:], new[count:]),
        }
        if len(new) > count
        else None,
        "general": [
            {
                **{name: b[name] for name in ("data", "split", "tokens", "of")},
                "before": a["loss"],
                "after": b["loss"],
                "forgotten": b["loss"] - a["loss"],
            }
            for a, b in zip(old_losses, new_losses, strict=True)
            if "loss" in a and "loss" in b
        ],
        "general_not_measured": next(
            (loss["not_measured"] for loss in old_losses if "not_measured" in loss), None
        ),
    }


def _lines(predictions: Sequence[Prediction]) -> bytes:
    return "".join(json.dumps(each.as_dict(), ensure_ascii=False) + "\n" for each in predictions).encode()
