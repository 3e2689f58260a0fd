"""Tuning with its report: what was learnt, what was forgotten, what it cost, and where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.errors import UserError
from yunque.evaluate.before_after import Asked, compared, earlier_tasks, report_on, with_splits
from yunque.evaluate.evaluation import first_of_each
from yunque.evaluate.tuning_lineage import general_datasets, general_split
from yunque.progress import Progress, Warn, silent
from yunque.train import TuneSettings, tune, tuning_rows
from yunque.workspace import Artifact, Workspace

__all__ = ["HeldOut", "compared", "general_datasets", "general_split", "tune_with_report"]

# Other tasks may be many (a collection of FLAN's size), and each is answered twice.
_OTHER_ROWS_OF_EACH = 100

USUAL_SPLIT = "heldout"


@dataclass(frozen=True)
class HeldOut:
    """What a tuning is measured on: the rows of a `split` of datasets, `general` datasets of text with a test or
    validation split, and `other` datasets whose held-out rows are other tasks (None: those that the base and the
    models above it were tuned on)."""

    tasks: Sequence[Artifact]
    general: Sequence[Artifact] = ()
    split: str = USUAL_SPLIT
    other: Sequence[Artifact] | None = None


def tune_with_report(
    workspace: Workspace,
    base_ref: str,
    training: Sequence[Artifact],
    held_out: HeldOut,
    settings: TuneSettings,
    progress: Progress = silent,
    tell: Warn = lambda _: None,
    on_bad: Warn | None = None,
) -> tuple[Artifact, Artifact, dict[str, Any]]:
    """Tune `base_ref` on the training rows of the datasets in `training`, and measure it before and after.

    Rows that do not fit are told to `on_bad`, where it is there, and left out. Returns what was tuned, the report
    artifact and the report (see `report_on`). Raises UserError for data that lacks the rows, before any training.
    """
    base = workspace.get(base_ref, "model")
    data = [tuning_rows(workspace, dataset) for dataset in training]
    learned = [row for each in data for row in (*each.rows, *each.validation)]
    asked, sources = _asked(workspace, base, learned, held_out)
    tuned = tune(workspace, base.ref, data, settings, progress, tell, on_bad)
    config = {
        "split": held_out.split,
        "other": [dataset.ref for dataset in sources],
        "other_rows_of_each": _OTHER_ROWS_OF_EACH,
    }
    told = {
        "training": [dataset.ref for dataset in training],
        "held_out": [dataset.ref for dataset in held_out.tasks],
        "held_out_split": held_out.split,
        "settings": settings.model_dump(mode="json"),
    }
    report, found = report_on(workspace, "tuning", base, tuned, asked, config, told, progress)
    return tuned, report, found


def _questions(rows: Sequence[InstructionRow]) -> set[str]:
    return {row.question for row in rows}


def _asked(
    workspace: Workspace, base: Artifact, learned: Sequence[InstructionRow], held_out: HeldOut
) -> tuple[Asked, list[Artifact]]:
    """What the base and the tuned model are asked, and the datasets that gave rows of other tasks."""
    tests = list[InstructionRow]()
    for dataset in held_out.tasks:
        known = _questions(tests)
        rows = read_instruction_split(workspace, dataset, held_out.split)
        tests += [row for row in rows if row.question not in known]
    if shared := _questions(learned) & _questions(tests):
        raise UserError(f"{len(shared)} held-out rows are among the training rows, so they can prove nothing")
    tasks = {row.task for row in learned}
    target = [row for row in tests if row.task in tasks]
    if not target and held_out.split != USUAL_SPLIT:
        # A split of tasks that were left out of training is what such a tuning is to be good at.
        target = tests
    apart = [row for row in tests if row.task not in tasks] if len(target) < len(tests) else []
    others, sources = _others(workspace, base, learned, tests, held_out.other)
    on = [*held_out.tasks, *sources, *held_out.general]
    shown = first_of_each([*apart, *others], _OTHER_ROWS_OF_EACH)
    return Asked(target, shown, with_splits(held_out.general), on), sources


def _others(
    workspace: Workspace,
    base: Artifact,
    learned: Sequence[InstructionRow],
    tests: Sequence[InstructionRow],
    other: Sequence[Artifact] | None,
) -> tuple[list[InstructionRow], list[Artifact]]:
    """Held-out rows of other tasks that are not among `tests`, and the datasets that gave them."""
    tasks, known = {row.task for row in learned}, _questions(tests)
    others, sources = list[InstructionRow](), list[Artifact]()
    for dataset, rows in earlier_tasks(workspace, base, other):
        if other is not None and (shared := _questions(rows) & _questions(learned)):
            raise UserError(
                f"{len(shared)} rows of {dataset.ref} are among the training rows: take another --other"
            )
        fresh = [row for row in rows if row.question not in known and (other or row.task not in tasks)]
        if fresh:
            sources.append(dataset)
            others += fresh
            known |= _questions(fresh)
    return others, sources
