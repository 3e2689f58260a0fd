"""Forgetting: single-task tuning forgets, multi-task forgets less, `--protect` forgets least: a matrix, task by task.

python examples/forgetting/run.py
"""

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipe import Options, Outcome, Table, run_recipe

import tasks
from yunque.cli.show import bars
from yunque.data.instructions import InstructionRow, read_instructions, write_instructions
from yunque.data.prepare import AddSettings, add, split
from yunque.data.split import SplitSettings
from yunque.errors import UserError
from yunque.evaluate.forgetting import forgetting_matrix
from yunque.tokenizer.training import train_tokenizer
from yunque.train import PretrainSettings, TuneSettings, pretrain, tune, tuning_rows
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings
from yunque.workspace import Artifact

SEEDS = (0, 1, 2)
OF_EACH, NEW_ROWS, TEST = 800, 400, 40
READ_STEPS, KNOWN_EPOCHS, NEW_EPOCHS = 200, 6, 6


@dataclass(frozen=True)
class Rows:
    """Rows of the tasks that the base learns, rows of the new one, and others to measure all of them on."""

    known: Sequence[InstructionRow]
    new: Sequence[InstructionRow]
    test: Sequence[InstructionRow]
    new_task: str

    @property
    def beside(self) -> list[InstructionRow]:
        """The rows that multi-task tuning reads beside the new ones: of half of the known tasks."""
        names = sorted({row.task for row in self.known})
        some = set(names[: (len(names) + 1) // 2])
        return [row for row in self.known if row.task in some][: len(self.new)]


def _own_rows(quick: bool) -> Rows:
    of_each, new, test = (24, 24, 2) if quick else (OF_EACH, NEW_ROWS, TEST)
    measured = tasks.rows((*tasks.KNOWN, tasks.NEW), test, 1, set())
    asked = {row.question for row in measured}
    return Rows(
        tasks.rows(tasks.KNOWN, of_each, 2, asked),
        tasks.rows((tasks.NEW,), new, 3, asked),
        measured,
        tasks.NEW,
    )


def _given_rows(path: Path) -> Rows:
    """Instruction rows of three tasks or more; the last by name is the new one, a tenth of each is to measure on."""
    every = read_instructions(path)
    names = sorted({row.task for row in every})
    if len(names) < 3:
        raise UserError(f"--data: {path} has rows of {len(names)} tasks, and forgetting needs three or more")
    random.Random(1).shuffle(every)
    test = [row for name in names for row in [one for one in every if one.task == name][:TEST]]
    asked = {row.question for row in test}
    rest = [row for row in every if row.question not in asked]
    known = [row for row in rest if row.task != names[-1]]
    return Rows(known, [row for row in rest if row.task == names[-1]], test, names[-1])


def _tuned(options: Options, base: str, data: Artifact, name: str, epochs: float, **more: Any) -> Artifact:
    settings = TuneSettings(
        name=name,
        optimizer=OptimizerSettings(learning_rate=more.pop("rate", 1e-3)),
        epochs=0.1 if options.quick else epochs * options.scale,
        batch_size=8 if options.quick else 32,
        precision="float32",
        **more,
    )
    return tune(options.workspace, base, [tuning_rows(options.workspace, data)], settings, bars)


def _base(options: Options, rows: Rows) -> tuple[Artifact, Artifact, Artifact]:
    """A model that has read general text and knows some tasks; the rows of these, and the text."""
    workspace = options.workspace
    with as_file(files("yunque") / "samples" / "airline") as folder:
        added, _ = add(workspace, "airline", [folder], AddSettings(anonymize=False), bars)
    text = split(workspace, added.ref, SplitSettings(), bars)
    known = write_instructions(workspace, "known-tasks", {"train": rows.known, "heldout": rows.test})
    tokenizer = train_tokenizer(workspace, "pieces", [text.ref, known.ref], 1024)
    settings = PretrainSettings(
        name="reader",
        data=(text.ref,),
        tokenizer=tokenizer.ref,
        model=ModelSettings(hidden_size=96, layers=3, context=256),
        batch_size=2 if options.quick else 4,
        steps=options.steps(READ_STEPS),
        precision="float32",
    )
    reader = pretrain(workspace, settings, bars)
    base = _tuned(
        options, reader.ref, known, "base", KNOWN_EPOCHS, rate=2e-3, replay=2, replay_data=(text.ref,)
    )
    return base, known, text


# Tunings on the new rows alone, apart from what is read beside them: the rows of known tasks, where any are, the base
# model's lineage gives (replay_tasks). No way is given them as text too.
_PROTECTED: dict[str, dict[str, Any]] = {
    "protected": {"protect": True},
    "protected-text": {"protect": True, "replay_tasks": False},
}
_NAMES = (
    "base",
    "single task",
    "multi-task",
    "single task, --protect",
    "single task, --protect replay_tasks=false",
)


def _models(options: Options, rows: Rows, base: Artifact, text: Artifact, seed: int) -> list[str]:
    """The base tuned on the new task: alone, beside others, and protected in two ways; in the order of `_NAMES`."""
    workspace = options.workspace
    alone = write_instructions(workspace, "new-task", {"train": rows.new})
    beside = write_instructions(workspace, "new-task-and-others", {"train": [*rows.new, *rows.beside]})
    single = _tuned(options, base.ref, alone, f"single-{seed}", NEW_EPOCHS, replay=0, seed=seed)
    # As often through the new rows as the others.
    multi = _tuned(options, base.ref, beside, f"multi-{seed}", NEW_EPOCHS, replay=0, seed=seed)
    protected = [
        _tuned(
            options,
            base.ref,
            alone,
            f"{name}-{seed}",
            NEW_EPOCHS,
            replay_data=(text.ref,),
            seed=seed,
            **settings,
        )
        for name, settings in _PROTECTED.items()
    ]
    return [model.ref for model in (single, multi, *protected)]


def _cell(matrices: Sequence[Mapping[str, Any]], model: int, column: int) -> str:
    """The mean over the seeds."""
    values = [matrix["cells"][model][column]["value"] for matrix in matrices]
    mean = sum(values) / len(values)
    return f"{mean:.0%}" if matrices[0]["columns"][column]["kind"] == "accuracy" else f"{mean:.2f}"


def _forgotten(matrices: Sequence[Mapping[str, Any]], model: int, new: str) -> list[float]:
    """For each seed, the mean accuracy that was lost on the tasks other than the new one."""
    lost = []
    for matrix in matrices:
        cells = [
            cell["forgotten"]
            for cell, column in zip(matrix["cells"][model], matrix["columns"], strict=True)
            if column["kind"] == "accuracy" and column["name"] != new
        ]
        lost.append(sum(cells) / len(cells))
    return lost


def experiment(options: Options) -> Outcome:
    """Teach a base a new task in three ways, and measure every task after each."""
    workspace = options.workspace
    rows = _own_rows(options.quick) if options.data is None else _given_rows(options.data)
    base, known, text = _base(options, rows)
    matrices = []
    for seed in (0,) if options.quick else SEEDS:
        models = [base.ref, *_models(options, rows, base, text, seed)]
        report, matrix = forgetting_matrix(workspace, models, [known], [text], progress=bars)
        matrices.append(matrix)
    columns = matrices[0]["columns"]
    # The new task first, then the others by name, then the text.
    order = sorted(
        range(len(columns)),
        key=lambda n: (columns[n]["name"] != rows.new_task, columns[n]["kind"], columns[n]["name"]),
    )
    lines, lost = [], dict[str, float]()
    for number, name in enumerate(_NAMES):
        each = _forgotten(matrices, number, rows.new_task)
        lost[name] = sum(each) / len(each)
        spread = f"{lost[name]:+.0%} ({min(each):+.0%} to {max(each):+.0%})" if number else ""
        lines.append([name, *(_cell(matrices, number, column) for column in order), spread])
    headings = [
        columns[n]["name"] + (" (new)" if columns[n]["name"] == rows.new_task else "")
        if columns[n]["kind"] == "accuracy"
        else f"loss on {columns[n]['name']}"
        for n in order
    ]
    title = f"Right answers by task, the mean of {len(matrices)} seeds; {sum(c.get('rows', 0) for c in columns)} rows"
    table = Table(title, ("model", *headings, "forgotten (least and most of the seeds)"), lines)
    beside = ", ".join(sorted({row.task for row in rows.beside}))
    findings = [
        f"Multi-task tuning reads rows of {beside}; --protect reads rows of all the known tasks, "
        "and with replay_tasks=false rows of none.",
        "Forgotten on the known tasks: "
        + ", ".join(f"{name} {lost[name]:+.0%}" for name in _NAMES[1:])
        + ".",
    ]
    chart = workspace.root / "forgetting.png"
    chart.write_bytes(workspace.file(report, "matrix.png").read_bytes())
    return Outcome([table], findings, [chart])


if __name__ == "__main__":
    run_recipe("forgetting", __doc__, experiment, "instruction rows (JSON Lines) of three tasks or more")
