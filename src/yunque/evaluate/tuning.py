"""Tuning with its report: what was learnt, what was forgotten, what it cost, and where it comes from."""

import json
import time
from collections.abc import Sequence
from typing import Any

from yunque.data.dataset import read_rows
from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.errors import UserError
from yunque.evaluate.answers import compared_accuracy, compared_tasks
from yunque.evaluate.evaluation import first_of_each
from yunque.evaluate.loss import NoTextLoss, text_loss
from yunque.evaluate.tasks import Prediction, one_thread, predict
from yunque.evaluate.tuning_lineage import general_datasets, general_split, lineage_of, task_datasets
from yunque.evaluate.tuning_report import markdown
from yunque.llm.local import LocalModel
from yunque.progress import Progress, Warn, silent
from yunque.train import TuneSettings, tune, tuning_rows
from yunque.train.cost import Cost
from yunque.train.distributed import first_makes
from yunque.workspace import Artifact, Workspace

__all__ = ["compared", "general_datasets", "general_split", "tune_with_report"]

_GENERAL_TOKENS = 20_000
_ANSWER_TOKENS = 40
# Other tasks may be many (a collection of FLAN's size), and each is answered twice.
_OTHER_ROWS_OF_EACH = 100

Losses = list[dict[str, Any]]


def tune_with_report(
    workspace: Workspace,
    base_ref: str,
    training: Sequence[Artifact],
    held_out: Artifact,
    general: Sequence[Artifact],
    settings: TuneSettings,
    progress: Progress = silent,
    tell: Warn = lambda _: None,
    on_bad: Warn | None = None,
    held_out_split: str = "heldout",
    other: Sequence[Artifact] | None = None,
) -> tuple[Artifact, Artifact, dict[str, Any]]:
    """Tune `base_ref` on the training rows of the datasets in `training`, and measure it before and after.

    `held_out` gives the rows to measure on (of its `held_out_split`), `general` datasets of text with a test or
    validation split, `other` datasets whose held-out rows are other tasks (default: those that the base and the
    models above it were tuned on). Rows that do not fit are told to `on_bad`, where it is there, and left out.

    Returns what was tuned, the report artifact (report.json, report.md, before.jsonl, after.jsonl) and the report. A
    report that exists for this model and these data is returned as it is. Raises UserError for data that lacks the
    rows, before any training.
    """
    base = workspace.get(base_ref, "model")
    data = [tuning_rows(workspace, dataset) for dataset in training]
    learned = [row for each in data for row in (*each.rows, *each.validation)]
    tests = read_instruction_split(workspace, held_out, held_out_split)
    if shared := _questions(learned) & _questions(tests):
        raise UserError(f"{len(shared)} held-out rows are among the training rows, so they can prove nothing")
    tests, others, sources = _divided(workspace, base, learned, tests, other)
    texts = [(dataset, general_split(dataset)) for dataset in general]
    tuned = tune(workspace, base.ref, data, settings, progress, tell, on_bad)

    def report_on_it() -> tuple[Artifact, Artifact, dict[str, Any]]:
        config = {
            "base": base.ref,
            "model": tuned.ref,
            "general_tokens": _GENERAL_TOKENS,
            "answer_tokens": _ANSWER_TOKENS,
            "split": held_out_split,
            "other": [dataset.ref for dataset in sources],
            "other_rows_of_each": _OTHER_ROWS_OF_EACH,
        }
        measured_on = list({each.ref: each for each in (held_out, *sources, *general)}.values())
        parents = (tuned, *measured_on)
        kept = workspace.find(f"{tuned.name}-tuning", "report")
        if kept and kept.config == config and kept.parents == tuple(parent.ref for parent in parents):
            return tuned, kept, json.loads(workspace.file(kept, "report.json").read_bytes())
        began = time.monotonic()
        measured = [_measure(workspace, model, [*tests, *others], texts, progress) for model in (base, tuned)]
        report = {
            **config,
            "training": [dataset.ref for dataset in training],
            "held_out": held_out.ref,
            "held_out_split": held_out_split,
            **compared(measured[0], measured[1], len(tests)),
            "cost": {
                **{name: tuned.figures[name] for name in Cost.__dataclass_fields__},
                "measuring_seconds": round(time.monotonic() - began, 3),
            },
            "lineage": lineage_of(workspace, base, tuned, measured_on),
            "settings": settings.model_dump(mode="json"),
        }
        files = {
            "report.json": json.dumps(report, ensure_ascii=False, indent=2).encode(),
            "report.md": markdown(report).encode(),
            "before.jsonl": _lines(measured[0][0]),
            "after.jsonl": _lines(measured[1][0]),
        }
        made = workspace.put("report", f"{tuned.name}-tuning", files, parents, config, _figures(report))
        return tuned, made, report

    # Of several processes, which tuned it together, the first one measures.
    return first_makes(report_on_it, tuple[Artifact, Artifact, dict[str, Any]])


def _questions(rows: Sequence[InstructionRow]) -> set[str]:
    return {row.question for row in rows}


def _divided(
    workspace: Workspace,
    base: Artifact,
    learned: Sequence[InstructionRow],
    tests: list[InstructionRow],
    other: Sequence[Artifact] | None,
) -> tuple[list[InstructionRow], list[InstructionRow], list[Artifact]]:
    """Held-out rows of the tasks that are tuned on, those of other tasks, and the datasets that gave the latter."""
    tasks = {row.task for row in learned}
    # Where no held-out task has the name of one that is tuned on, these are what tuning is to be good at.
    target = [row for row in tests if row.task in tasks] or tests
    others = [row for row in tests if row.task not in tasks] if len(target) < len(tests) else []
    known = _questions(tests)
    sources = list[Artifact]()
    for dataset in task_datasets(workspace, base.ref) if other is None else other:
        rows = read_instruction_split(workspace, dataset, "heldout")
        if other is not None and (shared := _questions(rows) & _questions(learned)):
            raise UserError(
                f"{len(shared)} rows of {dataset.ref} are among the training rows: take another --other"
            )
        fresh = [row for row in rows if row.question not in known and (other or row.task not in tasks)]
        if fresh:
            sources.append(dataset)
            others += fresh
            known |= _questions(fresh)
    return target, first_of_each(others, _OTHER_ROWS_OF_EACH), sources


def _figures(report: dict[str, Any]) -> dict[str, float]:
    """What a list shows of a report: accuracy, and the mean loss a token over all the general text."""
    found = {f"accuracy_{when}": report["accuracy"][when] for when in ("before", "after")}
    if others := report["others"]:
        found |= {f"other_accuracy_{when}": others["accuracy"][when] for when in ("before", "after")}
    if tokens := sum(text["tokens"] for text in report["general"]):
        for when in ("before", "after"):
            found[f"general_loss_{when}"] = (
                sum(text["tokens"] * text[when] for text in report["general"]) / tokens
            )
    return found | {name: report["cost"][name] for name in ("seconds", "tokens", "energy_wh")}


def _measure(
    workspace: Workspace,
    model: Artifact,
    rows: Sequence[InstructionRow],
    general: Sequence[tuple[Artifact, str]],
    progress: Progress,
) -> tuple[list[Prediction], Losses]:
    opened = LocalModel.open(workspace, model.ref)
    losses = Losses()
    for dataset, split in general:
        try:
            found = text_loss(
                opened.engine, read_rows(workspace, dataset, split), _GENERAL_TOKENS, progress
            ).as_dict()
        except NoTextLoss as error:
            found = {"not_measured": str(error)}
        losses.append({"data": dataset.ref, "split": split, **found})
    with one_thread():
        answers = predict(opened, opened.score, rows, _ANSWER_TOKENS, write_labels=False, progress=progress)
    return answers, losses


def compared(
    before: tuple[Sequence[Prediction], Losses],
    after: tuple[Sequence[Prediction], Losses],
    rows: int | None = None,
) -> dict[str, Any]:
    """The figures of two measurements of the same rows, side by side.

    The first `rows` are of the tasks that were tuned on (default: all), the rest of `others`. Every `change` has a
    95 % interval from a paired bootstrap: both models answered the same rows.
    """
    (old, old_losses), (new, new_losses) = before, after
    count = len(new) if rows is None else rows
    return {
        "tasks": compared_tasks(old[:count], new[:count]),
        "accuracy": compared_accuracy(old[:count], new[:count]),
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
