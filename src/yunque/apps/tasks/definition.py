"""A task: a prompt with a few more fields, and a test set beside it. Adding one is adding two files.

task:
  main: text          # the input that a file or standard input fills
  metric: facts       # how `yunque task eval` counts
  long: reduce        # what is done with a text that outgrows the model's context
  step: summary       # the code that checks and finishes the answer (`yunque.apps.tasks.steps`)
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from yunque.apps.prompts import Prompt, load_prompt, put_prompt, read_prompt
from yunque.configuration import Settings, validated
from yunque.data.json_lines import read_json_lines
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace

SET_FILE = "set.jsonl"
Metric = Literal["accuracy", "rougeL", "chrf", "entity_f1", "facts", "lines_f1", "proven", "runs"]
Long = Literal["reduce", "join", "merge", "vote", "refuse"]


class TaskSettings(Settings):
    """What makes a prompt a task.

    `main` is the text that the task is about; a file fills it, or the input `file`.
    `long`: a long text's pieces are summed up and the sums again (`reduce`), their answers are joined (`join`), their
    lists are put together (`merge`), their labels are counted (`vote`), or it is refused. `variants` are the names of
    other tasks by the option that chooses them. `least_tokens`: an answer for which there is less room than that is
    not asked for; the text is cut in pieces instead.
    """

    main: str = "text"
    file: str | None = None
    metric: Metric
    long: Long = "refuse"
    step: str = "plain"
    variants: dict[str, str] = Field(default={})
    variant_of: str | None = None
    least_tokens: int = Field(default=48, ge=1)


@dataclass(frozen=True)
class Item:
    """One question of a test set with what is expected; `expected` is read by the task's metric."""

    id: str
    language: str
    inputs: dict[str, Any]
    expected: Any

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A prompt that is ready to use. `ref` says where it comes from: `yunque/NAME`, or a prompt of the workspace."""

    prompt: Prompt
    settings: TaskSettings
    ref: str
    set_path: Path | None

    @property
    def name(self) -> str:
        """What it is called."""
        return self.prompt.name

    @property
    def file_input(self) -> str:
        """The input that a file or standard input fills."""
        return self.settings.file or self.settings.main

    @property
    def metric(self) -> Metric:
        """How its test set is counted."""
        return self.settings.metric

    def items(self) -> list[Item]:
        """Its test set; raises UserError where it has none, or with the line that is wrong."""
        if self.set_path is None:
            raise UserError(
                f"the task {self.name} has no test set: add one with `yunque task add FILE --set ITEMS.jsonl`"
            )
        return read_items(self.set_path, self.prompt)


def task_of(prompt: Prompt, ref: str, set_path: Path | None) -> Task:
    """The task that a prompt describes; raises UserError where it describes none."""
    from yunque.apps.tasks.steps import STEPS

    if prompt.definition.task is None:
        raise UserError(f"{prompt.where}: is a prompt and no task: it has no field task")
    settings = validated(TaskSettings, prompt.definition.task, f"{prompt.where}: task")
    if settings.step not in STEPS:
        raise UserError(f"{prompt.where}: task.step: {settings.step!r} is none of {', '.join(sorted(STEPS))}")
    for field, name in (("main", settings.main), ("file", settings.file or settings.main)):
        if name not in prompt.inputs:
            raise UserError(f"{prompt.where}: task.{field}: there is no input {name!r}")
    if settings.long != "refuse" and prompt.inputs[settings.main].type != "string":
        raise UserError(f"{prompt.where}: task.main: {settings.main!r} must be a text to be cut in pieces")
    return Task(prompt, settings, ref, set_path)


def read_items(path: Path, prompt: Prompt) -> list[Item]:
    """The items of a test set, one JSON object a line; raises UserError with file and line."""

    def parse(values: Any) -> Item:
        if not isinstance(values, dict) or set(values) - {"id", "language", "inputs", "expected"}:
            raise ValueError('must be {"language": ..., "inputs": {...}, "expected": ...}')
        missing = {"language", "inputs", "expected"} - set(values)
        if missing or not isinstance(values["inputs"], dict):
            raise ValueError(f"has no {', '.join(sorted(missing)) or 'inputs'}")
        try:
            prompt.definition.checked(values["inputs"], "inputs")
        except UserError as error:
            raise ValueError(str(error)) from None
        said = json.dumps([values["language"], values["inputs"]], ensure_ascii=False, sort_keys=True)
        identity = str(values.get("id") or hashlib.sha256(said.encode()).hexdigest()[:10])
        return Item(identity, str(values["language"]), values["inputs"], values["expected"])

    def refuse(sentence: str) -> None:
        raise UserError(sentence)

    return read_json_lines(path, parse, "item of a test set", refuse)


def shipped_names() -> list[str]:
    """The tasks that come with Yunque, by name."""
    folder = files("yunque") / "samples" / "app_tasks"
    return sorted(
        one.name.removesuffix(".prompt") for one in folder.iterdir() if one.name.endswith(".prompt")
    )


@lru_cache(maxsize=64)
def shipped_task(name: str) -> Task:
    """A task that comes with Yunque."""
    with as_file(files("yunque") / "samples" / "app_tasks") as folder:
        items = folder / f"{name}.jsonl"
        prompt = read_prompt(folder / f"{name}.prompt")
        return task_of(prompt, f"yunque/{name}", items if items.is_file() else None)


def find_task(workspace: Workspace | None, name: str) -> Task:
    """The task called `name`: a prompt of the workspace that is one, else one that comes with Yunque."""
    if workspace and ("/" in name or "@" in name or _is_task_of(workspace, name)):
        return _kept_task(workspace, name)
    if name in shipped_names():
        return shipped_task(name)
    known = sorted(
        {*shipped_names(), *(task.name for task in kept_tasks(workspace))} if workspace else shipped_names()
    )
    raise UserError(f"there is no task {name!r} (there is {', '.join(known)})")


def kept_tasks(workspace: Workspace) -> Iterator[Task]:
    """The tasks that were added to a workspace."""
    for artifact in workspace.list("prompt"):
        if artifact.figures.get("task"):
            yield _kept_task(workspace, artifact.ref)


def add_task(workspace: Workspace, path: Path, set_path: Path | None) -> Artifact:
    """Keep a task's prompt with its test set as `prompt/NAME`."""
    prompt = read_prompt(path)
    task = task_of(prompt, str(path), set_path)
    beside: dict[str, bytes] = {}
    if set_path:
        items = task.items()
        beside[SET_FILE] = "".join(
            json.dumps(item.as_dict(), ensure_ascii=False) + "\n" for item in items
        ).encode()
    return put_prompt(workspace, prompt, beside, {"task": True})


def _is_task_of(workspace: Workspace, name: str) -> bool:
    artifact = workspace.find(f"prompt/{name}")
    return artifact is not None and bool(artifact.figures.get("task"))


def _kept_task(workspace: Workspace, ref: str) -> Task:
    prompt, artifact = load_prompt(workspace, ref)
    beside = workspace.file(artifact, SET_FILE) if SET_FILE in artifact.files else None
    return task_of(prompt, artifact.ref, beside)
