"""What learning from preferences did beside what it was for: the report of `yunque align dpo`, `ppo` and `grpo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yunque.evaluate.before_after import Asked, earlier_tasks, report_on, with_splits
from yunque.evaluate.evaluation import first_of_each
from yunque.evaluate.tuning_lineage import general_datasets
from yunque.progress import Progress, silent
from yunque.train.alignment import AlignSettings
from yunque.workspace import Artifact, Workspace

# Fewer than after a tuning: tasks are not what was trained, and each row is answered twice.
_OTHER_ROWS_OF_EACH = 25

# Figures of an aligned model that tell what it learned.
_LEARNED = (
    "held_out_accuracy",
    "held_out_margin",
    "held_out_rows",
    "reward_before",
    "reward_after",
    "measured_on",
    "kl",
)


@dataclass(frozen=True)
class Kept:
    """What an aligned model is to keep: datasets of text with a test or validation split, and of instructions with
    held-out rows."""

    general: Sequence[Artifact]
    tasks: Sequence[Artifact] | None

    @classmethod
    def of(
        cls, workspace: Workspace, base_ref: str, general: Sequence[Artifact], tasks: Sequence[Artifact]
    ) -> "Kept":
        """The datasets that are named, else those that the base and the models above it learned from.

        Raises UserError for a dataset without rows to measure on.
        """
        texts = list(general) or general_datasets(workspace, base_ref)
        with_splits(texts)
        earlier_tasks(workspace, workspace.get(base_ref, "model"), tasks or None)
        return cls(texts, tasks or None)


def report_on_alignment(
    workspace: Workspace,
    base_ref: str,
    made: Artifact,
    kept: Kept,
    settings: AlignSettings,
    progress: Progress = silent,
) -> tuple[Artifact, dict[str, Any]]:
    """Measure an aligned model and its base on text and tasks; the report artifact NAME-alignment and the report.

    `accuracy` is None, and `aligned` has what was learned: the figures of the model that the training measured.
    """
    base = workspace.get(base_ref, "model")
    found = [(dataset, rows) for dataset, rows in earlier_tasks(workspace, base, kept.tasks) if rows]
    every = {row.question: row for _, rows in found for row in rows}
    others = first_of_each(list(every.values()), _OTHER_ROWS_OF_EACH)
    sources = [dataset for dataset, _ in found]
    asked = Asked([], others, with_splits(kept.general), [*sources, *kept.general])
    config = {
        "other": [dataset.ref for dataset in sources],
        "other_rows_of_each": _OTHER_ROWS_OF_EACH,
    }
    told = {
        "aligned": {name: made.figures[name] for name in _LEARNED if name in made.figures},
        "settings": settings.model_dump(mode="json"),
    }
    return report_on(workspace, made.config["objective"], base, made, asked, config, told, progress)
