"""Task collections as instruction rows: many templates, zero-shot and few-shot, some the other way round.

After FLAN (Wei et al. 2021, arXiv:2109.01652; Chung et al. 2022, arXiv:2210.11416) and the Flan Collection (Longpre
et al. 2023, arXiv:2301.13688): templates of natural language, zero-shot and few-shot prompts mixed, input inversion,
and whole tasks or clusters of tasks held out, so that what is measured on them was learnt elsewhere.
"""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from yunque.configuration import Settings
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.task_collections import Task, TaskRow, read_tasks
from yunque.data.task_templates import Template
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

TRAIN, HELD_OUT, UNSEEN = SPLITS = ("train", "heldout", "unseen")
ZERO_SHOT, FEW_SHOT = "zero-shot", "few-shot"
MOST_SHOTS = 100


class TaskSettings(Settings):
    """How tasks become instruction rows.

    `few_shot_share` of the training rows have examples before them, as many as one of `shots` says; a 0 in `shots`
    is the zero-shot rest, and where it is missing every row has examples. `inversion` is the share that is asked the
    other way round. Of `templates_per_row` templates each makes a training row; the rows of `heldout` and `unseen`
    have one, in turn, zero-shot and not inverted. `train_tasks` keeps that many tasks for training (those of a
    smaller number are among those of a larger). A few-shot prompt above `max_characters` loses examples.
    """

    shots: tuple[Annotated[int, Field(ge=0, le=MOST_SHOTS)], ...] = Field(default=(0, 2), min_length=1)
    few_shot_share: float = Field(default=0.3, ge=0, le=1)
    inversion: float = Field(default=0.1, ge=0, le=1)
    templates_per_row: int = Field(default=1, ge=1)
    held_out_tasks: tuple[str, ...] = ()
    held_out_clusters: tuple[str, ...] = ()
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    train_tasks: int | None = Field(default=None, ge=1)
    max_characters: int = Field(default=2000, ge=1)
    seed: int = 0


@dataclass(frozen=True)
class RenderedTasks:
    """The rows of each split; what came of each task; and how many training rows were left out because what they
    ask is asked in a split for measuring too."""

    splits: Mapping[str, Sequence[InstructionRow]]
    tasks: Sequence[Mapping[str, Any]]
    overlapping: int


@dataclass(frozen=True)
class _Prompt:
    """A training row, and every instruction that stands in it."""

    row: InstructionRow
    asked: frozenset[str]


def render_tasks(tasks: Sequence[Task], settings: TaskSettings) -> RenderedTasks:
    """The tasks as rows of the splits `train`, `heldout` and `unseen`, the last two without what is empty.

    What a task becomes depends on the seed and on its own rows, not on which other tasks there are. Raises UserError
    for a task or cluster that is not there, and for a task that is not unseen because a trained one is worded alike.
    """
    trained, unseen = _divided(tasks, settings)
    _check_wording(trained, unseen, with_inverted=settings.inversion > 0)
    parts = {task.name: _parted(task, settings) for task in trained}
    heldout = [row for task in trained for row in _measured(task, parts[task.name][1])]
    never = [row for task in unseen for row in _measured(task, _in_order(task.rows, settings.seed))]
    measured = {row.instruction for row in (*heldout, *never)}
    train, overlapping = list[InstructionRow](), 0
    for task in trained:
        for prompt in _trained(task, parts[task.name][0], settings):
            if prompt.asked & measured:
                overlapping += 1
            else:
                train.append(prompt.row)
    if not train:
        raise UserError("there is no row left to train on: hold out less, or add rows or tasks")
    splits = {TRAIN: train, HELD_OUT: heldout, UNSEEN: never}
    kept = {name: rows for name, rows in splits.items() if rows}
    chosen = sorted((*trained, *unseen), key=lambda task: task.name)
    return RenderedTasks(kept, [_told(task, kept) for task in chosen], overlapping)


def _divided(tasks: Sequence[Task], settings: TaskSettings) -> tuple[list[Task], list[Task]]:
    """The tasks to train on, and those held out."""
    for wanted, known, noun in (
        (settings.held_out_tasks, {task.name for task in tasks}, "task"),
        (settings.held_out_clusters, {task.cluster for task in tasks}, "cluster"),
    ):
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"there is no {noun} {name!r} to hold out (there is: {', '.join(sorted(known))})"
                )
    unseen = [
        task
        for task in tasks
        if task.name in settings.held_out_tasks or task.cluster in settings.held_out_clusters
    ]
    held_out = {task.name for task in unseen}
    trained = [task for task in tasks if task.name not in held_out]
    if settings.train_tasks is not None:
        if settings.train_tasks > len(trained):
            raise UserError(
                f"{settings.train_tasks} tasks to train on were asked for, and there are {len(trained)}"
            )
        ranked = sorted((task.name for task in trained), key=lambda name: _rank(settings.seed, "task", name))
        trained = [task for task in trained if task.name in ranked[: settings.train_tasks]]
    if not trained:
        raise UserError("every task is held out: leave one at least to train on")
    return trained, unseen


def _check_wording(trained: Sequence[Task], unseen: Sequence[Task], with_inverted: bool) -> None:
    """A task that is asked in the words of a trained one is not unseen."""
    known = {
        template.instruction.wording: (task, template)
        for task in trained
        for template in (*task.templates, *(task.inverted if with_inverted else ()))
    }
    for task in unseen:
        for template in task.templates:
            # A template of nothing but places has no words to know it by.
            if any(template.instruction.wording) and template.instruction.wording in known:
                other, same = known[template.instruction.wording]
                raise UserError(
                    f"{task.name} is held out, but its template {template.name} is worded as template {same.name} of "
                    f"{other.name}, which is trained on: hold out both, or word one of them otherwise"
                )


def _rank(*parts: object) -> str:
    """A place in an order that looks random and depends on `parts` only."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _in_order(rows: Iterable[TaskRow], seed: int) -> list[TaskRow]:
    return sorted(rows, key=lambda row: _rank(seed, row.id))


def _parted(task: Task, settings: TaskSettings) -> tuple[list[TaskRow], list[TaskRow]]:
    """The rows to train on, and those held out: about `held_out_share`, and one at least where there are two groups.

    Rows that a template asks in the same words (one word, two translations) stay together.
    """
    groups = _groups(task)
    first = {group[0].id: group for group in groups}
    ranked = sorted(first, key=lambda name: _rank(settings.seed, "heldout", name))
    wanted = max(1, round(settings.held_out_share * len(task.rows))) if settings.held_out_share else 0
    held_out, trained = list[TaskRow](), list[TaskRow]()
    for number, name in enumerate(ranked):
        last = number == len(ranked) - 1 and not trained
        (trained if len(held_out) >= wanted or last else held_out).extend(first[name])
    return _in_order(trained, settings.seed), _in_order(held_out, settings.seed)


def _groups(task: Task) -> list[list[TaskRow]]:
    """The rows of a task, those together that some template asks in the same words."""
    above = list(range(len(task.rows)))

    def root(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    asked: dict[tuple[str, str], int] = {}
    for number, row in enumerate(task.rows):
        for template in task.templates:
            same = asked.setdefault((template.name, template.ask(row.values).instruction), number)
            low, high = sorted((root(same), root(number)))
            above[high] = low
    groups: defaultdict[int, list[TaskRow]] = defaultdict(list)
    for number, row in enumerate(task.rows):
        groups[root(number)].append(row)
    return list(groups.values())


def _measured(task: Task, rows: Sequence[TaskRow]) -> list[InstructionRow]:
    """Rows for measuring: one of the templates each, in turn, zero-shot."""
    templates = task.templates
    return [_row(task, row, templates[number % len(templates)], []) for number, row in enumerate(rows)]


def _trained(task: Task, rows: Sequence[TaskRow], settings: TaskSettings) -> list[_Prompt]:
    """The training rows of a task, with its few-shot and inverted ones."""
    prompts = dict[tuple[str, str], _Prompt]()
    for row in rows:
        chance = random.Random(_rank(settings.seed, "ways", row.id))
        count = min(settings.templates_per_row, len(task.templates))
        for template in chance.sample(task.templates, count):
            if task.inverted and chance.random() < settings.inversion:
                template = chance.choice(task.inverted)
            examples = _examples(
                rows, row, template, _shots(chance, settings), chance, settings.max_characters
            )
            prompt = _Prompt(
                _row(task, row, template, examples),
                frozenset(template.ask(each.values).instruction for each in (*examples, row)),
            )
            # Two templates of a row may have become the same inverted one.
            prompts[row.id, prompt.row.template] = prompt
    return list(prompts.values())


def _shots(chance: random.Random, settings: TaskSettings) -> int:
    some = [count for count in settings.shots if count]
    if not some or (0 in settings.shots and chance.random() >= settings.few_shot_share):
        return 0
    return chance.choice(some)


def _examples(
    rows: Sequence[TaskRow],
    row: TaskRow,
    template: Template,
    shots: int,
    chance: random.Random,
    max_characters: int,
) -> list[TaskRow]:
    """Other training rows of the task as examples; the last go while the prompt is too long.

    None of them asks what the row asks: it would tell the answer, or another one.
    """
    if not shots:
        return []
    own = template.ask(row.values).instruction
    drawn = (
        other for other in chance.sample(rows, len(rows)) if template.ask(other.values).instruction != own
    )
    examples = list(islice(drawn, shots))
    while examples and len(_prompt(row, template, examples)) > max_characters:
        examples.pop()
    return examples


def _prompt(row: TaskRow, template: Template, examples: Sequence[TaskRow]) -> str:
    solved = [template.ask(example.values) for example in examples]
    blocks = [f"{each.instruction}\n{each.answer}" for each in solved]
    return "\n\n".join([*blocks, template.ask(row.values).instruction])


def _row(task: Task, row: TaskRow, template: Template, examples: Sequence[TaskRow]) -> InstructionRow:
    asked = template.ask(row.values)
    form = f"{FEW_SHOT}-{len(examples)}" if examples else ZERO_SHOT
    shown = [example.id.removeprefix(f"{task.name}/") for example in examples]
    return InstructionRow(
        id="/".join([row.id, template.name, form, *shown]),
        task=task.name,
        language=task.language,
        template=f"{task.name}/{template.name}/{form}",
        instruction=_prompt(row, template, examples),
        input="",
        answer=asked.answer,
        labels=asked.labels,
    )


def rows_in(row: InstructionRow) -> tuple[str, ...]:
    """The ids of the rows that an instruction row asks (the first) and shows as examples; its own where it is of no
    collection."""
    task, *parts = row.id.split("/")
    template = row.template.split("/")
    if len(parts) < 3 or template != [task, *parts[1:3]] or task != row.task:
        return (row.id,)
    return tuple(f"{task}/{name}" for name in (parts[0], *parts[3:]))


def _told(task: Task, splits: Mapping[str, Sequence[InstructionRow]]) -> dict[str, Any]:
    """What came of a task, in numbers; a training row is counted as zero-shot or few-shot, inverted or not."""
    counts = {split: [row for row in rows if row.task == task.name] for split, rows in splits.items()}
    forms = Counter(row.template.rsplit("/", 1)[1] for row in counts[TRAIN])
    return {
        "task": task.name,
        "cluster": task.cluster,
        "language": task.language,
        "rows": len(task.rows),
        "templates": len(task.templates),
        "inverted_templates": len(task.inverted),
        **{split: len(counts.get(split, ())) for split in SPLITS},
        "forms": dict(sorted(forms.items(), reverse=True)),
        "inverted": sum("/inverted-" in row.template for row in counts[TRAIN]),
    }


def add_tasks(
    workspace: Workspace,
    name: str,
    folder: Path | None,
    settings: TaskSettings,
    on_bad: Callable[[str], None] | None = None,
) -> tuple[Artifact, RenderedTasks]:
    """Keep the tasks of a folder (the shipped ones where it is None) as the dataset of instructions `name`.

    `on_bad` is that of `read_tasks`. The dataset has `card.json` with what came of each task.
    """
    with as_file(files("yunque") / "samples" / "tasks") as shipped:
        place = shipped if folder is None else folder
        tasks = read_tasks(place, on_bad)
        sources = [
            {
                "file": f"samples/tasks/{path.name}" if folder is None else str(path),
                "sha256": sha256_of(path),
            }
            for task in tasks
            for path in (place / f"{task.name}.yaml", place / f"{task.name}.jsonl")
        ]
    rendered = render_tasks(tasks, settings)
    unseen = sum(1 for task in rendered.tasks if task[UNSEEN])
    card = {
        "tasks": rendered.tasks,
        "trained_tasks": len(rendered.tasks) - unseen,
        "unseen_tasks": unseen,
        "clusters": len({task["cluster"] for task in rendered.tasks}),
        "overlapping": rendered.overlapping,
    }
    artifact = write_instructions(
        workspace, name, rendered.splits, sources, settings.model_dump(mode="json"), card
    )
    return artifact, rendered
