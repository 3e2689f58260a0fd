"""Task collections: a folder with `TASK.yaml`, how a task is asked, and `TASK.jsonl`, its rows, for each task.

    task: antonyms-en
    cluster: opposites
    language: en
    fields: [word, opposite]
    answer: "{opposite}"
    labels: null                 # or a list; `["{first}", "{second}"]` where each row has its own
    templates:
      - What is the opposite of {word}?
      - {instruction: "{word}. Its opposite?", answer: "{opposite}"}    # may have an answer and labels of its own
    inverted:                    # given the answer, the input is asked for (Longpre et al. 2023, arXiv:2301.13688)
      - {instruction: "Which word has the opposite {opposite}?", answer: "{word}"}

A row is `{"word": "hot", "opposite": "cold"}`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from yunque.data.json_lines import read_json_lines
from yunque.data.task_templates import LABELS_PLACE, Pattern, Template, parse_pattern
from yunque.errors import UserError

OnBad = Callable[[str], None]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NEEDED = ("task", "cluster", "language", "fields", "templates")
_OPTIONAL = ("answer", "labels", "inverted")
_TEMPLATE_PARTS = ("instruction", "answer", "labels")


@dataclass(frozen=True)
class TaskRow:
    """The fields of a row; its id is the task and a hash of what it says, so it stays when the file grows."""

    id: str
    values: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(self.values)


@dataclass(frozen=True)
class Task:
    """One task: how it is asked, and its rows. Tasks of one cluster have a skill in common."""

    name: str
    cluster: str
    language: str
    fields: tuple[str, ...]
    templates: tuple[Template, ...]
    inverted: tuple[Template, ...]
    rows: tuple[TaskRow, ...] = ()


class _Mistake(Exception):
    """What is wrong in a YAML file, and on which line."""

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


@dataclass(frozen=True)
class _Node:
    """A value of a YAML file with its line. Scalars are text: `yes`, `no` and `1` are words here, as they read."""

    value: "str | list[_Node] | dict[str, _Node] | None"
    line: int

    def text(self, what: str) -> str:
        if isinstance(self.value, list | dict):
            raise _Mistake(self.line, f"{what} must be text (put it in quotes if it begins with a brace)")
        if self.value is None or not self.value.strip():
            raise _Mistake(self.line, f"{what} is empty")
        return unicodedata.normalize("NFC", self.value.strip())

    def items(self, what: str) -> "list[_Node]":
        if not isinstance(self.value, list) or not self.value:
            raise _Mistake(self.line, f"{what} must be a list with something in it")
        return self.value

    def parts(self, what: str, known: tuple[str, ...]) -> "dict[str, _Node]":
        if not isinstance(self.value, dict):
            raise _Mistake(self.line, f"{what} must be a mapping of fields")
        for name, node in self.value.items():
            if name not in known:
                raise _Mistake(
                    node.line, f"{what} has the unknown field {name!r} (known: {', '.join(known)})"
                )
        return self.value


def _read_nodes(content: bytes) -> _Node:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Mistake(content[: error.start].count(b"\n") + 1, "is not UTF-8 text") from None
    try:
        # An alias is one line of text and may be a million values.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise _Mistake(line, "aliases (*name) are not read here: write it out")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return _node(root) if root else _Node(None, 1)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise _Mistake(mark.line + 1 if mark else 1, f"is not valid YAML ({problem})") from None
    except RecursionError:
        raise _Mistake(1, "is not valid YAML (too deep)") from None


def _node(node: yaml.Node) -> _Node:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        parts = dict[str, _Node]()
        for key, value in node.value:
            name = str(key.value)
            if name in parts:
                raise _Mistake(key.start_mark.line + 1, f"has the field {name!r} twice")
            parts[name] = _node(value)
        return _Node(parts, line)
    if isinstance(node, yaml.SequenceNode):
        return _Node([_node(item) for item in node.value], line)
    return _Node(None if node.tag == "tag:yaml.org,2002:null" else str(node.value), line)


def _pattern(node: _Node, what: str, known: set[str], needs_place: bool = True) -> Pattern:
    try:
        pattern = parse_pattern(node.text(what), known)
    except ValueError as error:
        raise _Mistake(node.line, f"{what} {error}") from None
    if needs_place and not pattern.places:
        raise _Mistake(node.line, f"{what} has no {{field}} in it, so it is the same for every row")
    return pattern


def _labels(node: _Node | None, fields: set[str]) -> tuple[Pattern, ...] | None:
    if node is None or node.value is None:
        return None
    labels = tuple(_pattern(item, "a label", fields, needs_place=False) for item in node.items("'labels'"))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise _Mistake(node.line, "'labels' must hold at least two labels, each once")
    return labels


def _template(node: _Node, name: str, fields: set[str], shared: Mapping[str, _Node]) -> Template:
    """One template; what it does not say itself is that of the task (`shared`)."""
    what = f"template {name}"
    known = fields | {LABELS_PLACE}
    own = {"instruction": node} if isinstance(node.value, str) else node.parts(what, _TEMPLATE_PARTS)
    for part in ("instruction", "answer"):
        if part not in own and part not in shared:
            raise _Mistake(node.line, f"{what} has no {part!r}")
    merged = {**shared, **own}
    labels = _labels(merged.get("labels"), fields)
    instruction = _pattern(merged["instruction"], f"the instruction of {what}", known)
    if LABELS_PLACE in instruction.places and labels is None:
        raise _Mistake(node.line, f"{what} lists the labels, and there are none")
    return Template(name, instruction, _pattern(merged["answer"], f"the answer of {what}", fields), labels)


def _parse_task(root: _Node, stem: str) -> Task:
    parts = root.parts("a task", (*_NEEDED, *_OPTIONAL))
    for name in _NEEDED:
        if name not in parts:
            raise _Mistake(root.line, f"the field {name!r} is missing")
    name, cluster, language = (parts[key].text(f"{key!r}") for key in ("task", "cluster", "language"))
    if name != stem:
        raise _Mistake(parts["task"].line, f"the task {name!r} must be called as its file is, {stem!r}")
    for key, value in (("task", name), ("cluster", cluster)):
        if not _NAME.fullmatch(value):
            raise _Mistake(parts[key].line, f"{key!r}: use lower-case letters, digits, '.', '_' and '-' only")
    fields = tuple(item.text("a field") for item in parts["fields"].items("'fields'"))
    if LABELS_PLACE in fields or len(set(fields)) != len(fields) or not all(map(str.isidentifier, fields)):
        raise _Mistake(
            parts["fields"].line, f"'fields' must be names, each once, and none of them {LABELS_PLACE!r}"
        )
    shared = {key: node for key, node in parts.items() if key in ("answer", "labels")}
    templates = tuple(
        _template(node, str(number), set(fields), shared)
        for number, node in enumerate(parts["templates"].items("'templates'"), start=1)
    )
    asked_back = parts["inverted"].items("'inverted'") if "inverted" in parts else []
    inverted = tuple(
        _template(node, f"inverted-{number}", set(fields), {})
        for number, node in enumerate(asked_back, start=1)
    )
    return Task(name, cluster, language, fields, templates, inverted)


def _row_parser(task: Task) -> Callable[[object], TaskRow]:
    seen = set[str]()

    def parse(value: object) -> TaskRow:
        if not isinstance(value, dict):
            raise ValueError("must be a JSON object")
        value = {unicodedata.normalize("NFC", name): text for name, text in value.items()}
        if unknown := sorted(set(value) - set(task.fields)):
            raise ValueError(f"unknown field {unknown[0]!r} (the task has: {', '.join(task.fields)})")
        values: dict[str, str] = {}
        for field in task.fields:
            if field not in value:
                raise ValueError(f"the field {field!r} is missing")
            if not isinstance(value[field], str):
                raise ValueError(f"the field {field!r} must be text, not {type(value[field]).__name__}")
            if not value[field].strip():
                raise ValueError(f"the field {field!r} is empty")
            if re.search("[\ud800-\udfff]", value[field]):
                raise ValueError(f"the field {field!r} holds half a character (a lone surrogate)")
            values[field] = unicodedata.normalize("NFC", value[field])
        for template in (*task.templates, *task.inverted):
            try:
                template.ask(values)
            except ValueError as error:
                raise ValueError(f"template {template.name}: {error}") from None
        content = json.dumps(values, ensure_ascii=False, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        if digest in seen:
            raise ValueError("says the same as a row above it")
        seen.add(digest)
        return TaskRow(f"{task.name}/{digest}", values)

    return parse


def read_task(path: Path, on_bad: OnBad | None = None) -> Task:
    """The task of a YAML file, with the rows of the JSON Lines file beside it.

    Raises UserError with file and line; with `on_bad` bad rows are told to it and left out.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        task = _parse_task(_read_nodes(content), path.stem)
    except _Mistake as mistake:
        raise UserError(f"{path}:{mistake.line}: {mistake}") from None
    rows = read_json_lines(path.with_suffix(".jsonl"), _row_parser(task), "row of a task", on_bad)
    return Task(**{**vars(task), "rows": tuple(rows)})


def read_tasks(folder: Path, on_bad: OnBad | None = None) -> list[Task]:
    """The tasks of a folder, by name.

    Every mistake raises UserError with file and line; with `on_bad` that sentence is handed over instead, and the row
    or (where its YAML is wrong or no row is right) the task is left out.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".yaml", ".jsonl")})
    tasks = list[Task]()
    for name in names:
        try:
            tasks.append(read_task(folder / f"{name}.yaml", on_bad))
        except UserError as error:
            if on_bad is None:
                raise
            on_bad(str(error))
    if not tasks:
        raise UserError(f"{folder}: holds no task (TASK.yaml with TASK.jsonl)")
    return tasks


def shipped_tasks() -> list[Task]:
    """The task collection that comes with Yunque: small tasks in English and Spanish."""
    with as_file(files("yunque") / "samples" / "tasks") as folder:
        return read_tasks(folder)
