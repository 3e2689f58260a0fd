"""Zero-shot: instruction tuning on N tasks helps with tasks never seen, and more so as N grows.

python examples/zero_shot/run.py
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from combinations import Combination, row, tasks
from instruction_induction import read_instruction_induction
from recipe import Options, Outcome, Table, greedy_texts, run_recipe

from yunque.cli.show import bars
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.task_collections import read_tasks
from yunque.data.task_rendering import HELD_OUT, TRAIN, UNSEEN, TaskSettings, render_tasks
from yunque.evaluate.metrics import bootstrap_interval, exact_match
from yunque.evaluate.tasks import predict
from yunque.generate.conversation import encode_prompt
from yunque.llm.local import LocalModel
from yunque.tokenizer.training import train_tokenizer
from yunque.train import TuneSettings, tune, tuning_rows
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings, NewModelSettings, make_model
from yunque.workspace import Artifact, Workspace

COUNTS = (1, 4, 8, 16, 30)
SEEDS = (0, 1, 2)
ROWS, TEST = 4_000, 120
EPOCHS, BATCH = 7, 64


@dataclass(frozen=True)
class Part:
    """Rows of N tasks to train on, other rows of the same tasks, and rows of the tasks never seen."""

    train: Sequence[InstructionRow]
    seen: Sequence[InstructionRow]
    unseen: Sequence[InstructionRow]


def _own_part(count: int, rows: int, test: int, seed: int) -> Part:
    """As many rows whatever the number of tasks."""
    trained, unseen = tasks(seed)
    random_ = random.Random(seed)
    chosen = trained[:count]
    learned = [row(chosen[number % count], number, random_) for number in range(rows)]
    questions = {one.question for one in learned}

    def others(of: Sequence[Combination]) -> list[InstructionRow]:
        found = [row(of[number % len(of)], rows + number, random_) for number in range(test)]
        return [one for one in found if one.question not in questions]

    return Part(learned, others(chosen), others(unseen))


def _given_part(path: Path, count: int, rows: int, test: int, seed: int) -> Part:
    """Tasks of a collection, a quarter of them never trained on; an answer is chosen among a few of the task's."""
    found = read_tasks(path) if any(path.glob("*.yaml")) else read_instruction_induction(path, rows)
    names = sorted(task.name for task in found)
    random_ = random.Random(seed)
    held_out = tuple(random_.sample(names, max(1, len(names) // 4)))
    count = min(count, len(names) - len(held_out))
    settings = TaskSettings(
        held_out_tasks=held_out, train_tasks=count, templates_per_row=2, shots=(0,), inversion=0.0, seed=seed
    )
    splits = render_tasks(found, settings).splits
    train = list(splits[TRAIN])
    random_.shuffle(train)
    learned = [train[number % len(train)] for number in range(rows)]
    learned = [replace(one, id=f"{one.id}-{number}") for number, one in enumerate(learned)]
    return Part(learned, *(_with_choices(splits.get(name, ()), test, seed) for name in (HELD_OUT, UNSEEN)))


def _with_choices(rows: Sequence[InstructionRow], most: int, seed: int) -> list[InstructionRow]:
    """At most so many of the rows; those without labels get three answers of other rows to choose from."""
    random_ = random.Random(seed)
    chosen = random_.sample(list(rows), min(most, len(rows)))
    made = list[InstructionRow]()
    for one in chosen:
        wrong = sorted({other.answer for other in rows if other.task == one.task} - {one.answer})
        labels = one.labels or (one.answer, *random_.sample(wrong, min(3, len(wrong))))
        if len(labels) > 1:
            made.append(replace(one, labels=tuple(labels)))
    return made


def _correct(workspace: Workspace, model: Artifact, rows: Sequence[InstructionRow]) -> list[float]:
    """1 for a row that is answered right: the likeliest of its labels, or without labels what the model writes."""
    opened = LocalModel.open(workspace, model.ref)
    if all(one.labels for one in rows):
        return [float(each.correct) for each in predict(opened, opened.score, rows, 8, write_labels=False)]
    engine = opened.engine
    prompts = [encode_prompt(engine.tokenizer, engine.model, [("user", one.question)]) for one in rows]
    written = greedy_texts(engine, prompts, 16)
    return [float(exact_match(text, one.answer)) for text, one in zip(written, rows, strict=True)]


def by_task(rows: Sequence[InstructionRow], scores: Sequence[float]) -> list[float]:
    """The mean score of each task, by name."""
    found: dict[str, list[float]] = {}
    for one, score in zip(rows, scores, strict=True):
        found.setdefault(one.task, []).append(score)
    return [sum(found[task]) / len(found[task]) for task in sorted(found)]


def mean_of_tasks(tasks_of_seeds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The mean over the tasks of all seeds, and the ends of its 95 % interval.

    Tasks are resampled and not rows: the rows of a task are right or wrong together.
    """
    every = [score for tasks_of_seed in tasks_of_seeds for score in tasks_of_seed]
    return sum(every) / len(every), *bootstrap_interval(every)


def _tuned(options: Options, fresh: Artifact, part: Part, name: str, seed: int) -> Artifact:
    data = write_instructions(options.workspace, name, {"train": part.train})
    settings = TuneSettings(
        name=name,
        optimizer=OptimizerSettings(learning_rate=2e-3),
        epochs=0.1 if options.quick else EPOCHS * options.scale,
        batch_size=BATCH,
        replay=0,
        seed=seed,
        precision="float32",
    )
    return tune(options.workspace, fresh.ref, [tuning_rows(options.workspace, data)], settings, bars)


def _parts(options: Options, count: int, seed: int) -> Part:
    rows, test = (64, 6) if options.quick else (ROWS, TEST)
    if options.data is None:
        return _own_part(count, rows, test, seed)
    return _given_part(options.data, count, rows, test, seed)


def experiment(options: Options) -> Outcome:
    """Tune fresh models on more and more tasks, with as many rows and steps, and ask them what they never saw."""
    workspace = options.workspace
    counts, seeds = ((1, 30), (0,)) if options.quick else (COUNTS, SEEDS)
    # One tokenizer for all, so that nothing but the tasks differs.
    every_row = _parts(options, max(counts), 0).train
    every = write_instructions(workspace, "every-task", {"train": every_row})
    tokenizer = train_tokenizer(workspace, "pieces", [every.ref], 1024)
    shape = ModelSettings(hidden_size=96, layers=2, context=1024 if options.data else 128)
    rows, changes = [], list[float]()
    for count in (0, *counts):
        seen, unseen, trained = list[float](), list[list[float]](), count
        for seed in seeds:
            fresh = make_model(
                workspace,
                NewModelSettings(name=f"fresh-{seed}", tokenizer=tokenizer.ref, model=shape, seed=seed),
            )
            part = _parts(options, max(count, 1), seed)
            trained = len({one.task for one in part.train}) if count else 0
            model = _tuned(options, fresh, part, f"tasks-{count}-{seed}", seed) if count else fresh
            unseen.append(by_task(part.unseen, _correct(workspace, model, part.unseen)))
            if count:
                seen += by_task(part.seen, _correct(workspace, model, part.seen))
        mean, low, high = mean_of_tasks(unseen)
        changes.append(mean)
        rows.append(
            [
                f"{trained}",
                f"{sum(seen) / len(seen):.0%}" if seen else "",
                f"{mean:.0%} ({low:.0%} to {high:.0%})",
                ", ".join(f"{sum(each) / len(each):.0%}" for each in unseen),
            ]
        )
    columns = ("tasks", "new rows of those tasks", "tasks never seen (95 % interval)", "by seed")
    title = f"Right answers, zero-shot; every model read {len(every_row):,} rows as often"
    finding = (
        f"Tasks never seen: {changes[0]:.0%} without tuning, {changes[-1]:.0%} after {rows[-1][0]} tasks."
    )
    return Outcome([Table(title, columns, rows)], [finding])


if __name__ == "__main__":
    run_recipe("zero-shot", __doc__, experiment, "a collection of tasks, or the folder instruction_induction")
