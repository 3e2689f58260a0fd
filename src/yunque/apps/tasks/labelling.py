"""Labelling a column of a CSV file with models and people, so that a kill loses nothing and doubts go to a person.

Beside the result stand two files: `.labels.jsonl`, every label as it was given, by models and in decisions (row
numbers, labels and hashes, none of the text), and `.doubts.csv`, the rows on which nobody is in the majority, for a
person to fill in the column `decision`.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yunque.apps.structured import NoValidAnswer
from yunque.apps.tasks.agreement import cohen_kappa, krippendorff_alpha
from yunque.apps.tasks.definition import Task
from yunque.apps.tasks.running import run_task
from yunque.errors import UserError
from yunque.llm.face import Cost, LanguageModel, Usage
from yunque.progress import Progress, silent
from yunque.workspace import Workspace
from yunque.workspace.files import atomic_write

LABEL, HOW = "label", "label_by"
_MOST_CELL = 5_000_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A CSV file: its columns, its rows by number (from 1), and the rows that could not be read."""

    columns: list[str]
    rows: dict[int, dict[str, str]]
    bad: dict[int, str]
    delimiter: str


@dataclass(frozen=True)
class LabelReport:
    """What came of labelling. `kappa` is Cohen's for each pair of raters, `alpha` Krippendorff's for all of them."""

    rows: int
    labelled: int
    doubts: int
    decided: int
    failed: dict[int, str]
    counts: dict[str, int]
    kappa: dict[str, float | None]
    alpha: float | None
    usage: Usage
    cost: Cost | None
    calls: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rater:
    """A model that labels; with `reversed` it is shown the labels in reversed order, to see whether that matters."""

    model: LanguageModel
    reversed: bool = False

    @property
    def name(self) -> str:
        """The name of its column."""
        return f"{self.model.name} (labels reversed)" if self.reversed else self.model.name


@dataclass(frozen=True)
class Labelling:
    """What is labelled, with what, and where it goes. `people` are columns of the file that persons filled in."""

    table: Table
    column: str
    labels: Sequence[str]
    out: Path
    hint: str | None = None
    people: Sequence[str] = ()


def read_table(path: Path) -> Table:
    """A CSV file in UTF-8, with a comma, semicolon or tabulator between cells. A row that is wrong is told of, and
    the others are read. Raises UserError for a file that is no table."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: save it as CSV UTF-8") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    csv.field_size_limit(_MOST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, bad = dict[int, dict[str, str]](), dict[int, str]()
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise UserError(f"{path}:1: {error}") from None
    if not any(columns):
        raise UserError(f"{path}:1: the first line must name the columns")
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}:1: two columns have the same name")
    for number, cells in _numbered(reader, bad):
        if len(cells) == len(columns):
            rows[number] = dict(zip(columns, cells, strict=True))
        elif any(cells):
            bad[number] = (
                f"line {reader.line_num} has {len(cells)} cells, and there are {len(columns)} columns"
            )
    return Table(columns, rows, bad, delimiter)


def _numbered(reader: Iterator[list[str]], bad: dict[int, str]) -> Iterator[tuple[int, list[str]]]:
    number = 0
    while True:
        number += 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad[number] = str(error)


def label_rows(
    task: Task,
    work: Labelling,
    raters: Sequence[Rater],
    workspace: Workspace | None = None,
    decisions: Path | None = None,
    send_personal_data: bool = False,
    progress: Progress = silent,
) -> LabelReport:
    """Label every row and write the result. Labels given before (by a run that was killed) are not asked for again.

    A row that no model can label is told of in the report and goes to the doubts. Raises UserError for a column that
    is not there, and ModelUnavailable when a model is gone: what was labelled is kept.
    """
    _check(work, raters)
    kept = _Kept(work.out.with_suffix(".labels.jsonl"))
    queue = work.out.with_suffix(".doubts.csv")
    for number, label in (_read_decisions(decisions, work) if decisions else {}).items():
        if kept.get(number, _decision_key(work, number)) != label:
            kept.add(number, _decision_key(work, number), label)
    filled = _filled_in(queue)
    failed = dict(work.table.bad)
    spent: list[tuple[Usage, Cost | None]] = []
    with progress("Labelling", total=len(work.table.rows) * len(raters)) as bar:
        for number, row in work.table.rows.items():
            text = row[work.column].strip()
            for name in work.people:
                if row[name].strip() and row[name].strip() not in work.labels:
                    failed[number] = f"{name}: {row[name].strip()[:40]!r} is none of the labels"
            if not text:
                failed[number] = "the cell is empty"
            for rater in raters:
                key = _key(task, work, rater, text)
                if text and kept.get(number, key) is None:
                    try:
                        label, usage, cost = _label(task, work, rater, text, workspace, send_personal_data)
                        spent.append((usage, cost))
                        kept.add(number, key, label)
                    except (NoValidAnswer, UserError) as error:
                        if isinstance(error, NoValidAnswer):
                            spent.append((error.usage, error.cost))
                        failed[number] = f"{rater.name}: {error}"
                bar.advance(1, f"row {number}")
    given = {
        number: [
            *(kept.get(number, _key(task, work, rater, row[work.column].strip())) for rater in raters),
            *(row[name].strip() if row[name].strip() in work.labels else None for name in work.people),
        ]
        for number, row in work.table.rows.items()
    }
    names = [*(rater.name for rater in raters), *work.people]
    said = {number: kept.anywhere(number, _decision_key(work, number)) for number in given}
    decided = {number: label for number, label in said.items() if label is not None and label in work.labels}
    return _written(work, names, given, decided, filled, failed, spent)


def _check(work: Labelling, raters: Sequence[Rater]) -> None:
    for name in (work.column, *work.people):
        if name not in work.table.columns:
            raise UserError(f"there is no column {name!r} (there is {', '.join(work.table.columns)})")
    if len(set(work.labels)) < 2 or not all(label.strip() for label in work.labels):
        raise UserError("labels: at least two different ones are needed, such as --labels yes,no")
    if not raters and not work.people:
        raise UserError(
            "nobody labels: name a model with -m, or a column that a person filled in with --person"
        )
    names = [rater.name for rater in raters]
    if len(set(names)) < len(names):
        raise UserError("two of the models are the same one")


def _label(
    task: Task,
    work: Labelling,
    rater: Rater,
    text: str,
    workspace: Workspace | None,
    send_personal_data: bool,
) -> tuple[str, Usage, Cost | None]:
    labels = list(reversed(work.labels)) if rater.reversed else list(work.labels)
    values = {"text": text, "labels": labels, "hint": work.hint}
    answer = run_task(task, rater.model, values, None, workspace, send_personal_data)
    return str(answer.value["label"]), answer.usage, answer.cost


def _key(task: Task, work: Labelling, rater: Rater, text: str) -> str:
    """A hash of all that a label depends on: another prompt, model, label or text is labelled anew."""
    said = [task.prompt.source, rater.name, sorted(work.labels), work.hint, text]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _decision_key(work: Labelling, number: int) -> str:
    """A hash of the text that a person decided on: the decision is for that text, whatever else changes."""
    said = ["decision", work.table.rows[number][work.column]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


class _Kept:
    """Labels as they were given, on disk after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._labels: dict[tuple[int, str], str] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    said = json.loads(line)
                    self._labels[said["row"], said["key"]] = said["label"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a kill cut

    def get(self, row: int, key: str) -> str | None:
        """The label that was given."""
        return self._labels.get((row, key))

    def anywhere(self, row: int, key: str) -> str | None:
        """The label that was given in this row, or else in another one (rows move), if it was always the same."""
        if (row, key) in self._labels:
            return self._labels[row, key]
        others = {label for (_, other), label in self._labels.items() if other == key}
        return others.pop() if len(others) == 1 else None

    def add(self, row: int, key: str, label: str) -> None:
        """Keep a label."""
        self._labels[row, key] = label
        line = json.dumps({"row": row, "key": key, "label": label}, ensure_ascii=False)
        with self._path.open("a+b") as file:
            # After a kill the last line may lack its end.
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(line.encode() + b"\n")


def _read_decisions(path: Path, work: Labelling) -> dict[int, str]:
    """What a person decided, by row; raises UserError for a label that is none, and for a row whose text is not the
    one that was decided on."""
    decided: dict[int, str] = {}
    for line, row in _filled_in(path, must_exist=True):
        label, said = row["decision"].strip(), row["row"].strip()
        if not said.isdecimal() or int(said) not in work.table.rows:
            raise UserError(f"{path}:{line}: there is no row {said!r}")
        if label not in work.labels:
            raise UserError(f"{path}:{line}: {label!r} is none of {', '.join(work.labels)}")
        if not _is_same(row["text"], work.table.rows[int(said)][work.column]):
            raise UserError(
                f"{path}:{line}: row {said} has another text now: write the number of the row with this text"
            )
        decided[int(said)] = label
    return decided


def _filled_in(path: Path, must_exist: bool = False) -> list[tuple[int, dict[str, str]]]:
    """The rows of a file of doubts that a person filled in, with their numbers in the file; raises UserError for one
    that cannot be read: it would be lost when the file is written anew."""
    if not must_exist and not path.exists():
        return []
    table = read_table(path)
    if not {"row", "text", "decision"} <= set(table.columns):
        raise UserError(f"{path}:1: must have the columns row, text and decision, as the file of doubts has")
    for number, fault in table.bad.items():
        raise UserError(f"{path}:{number + 1}: {fault}")
    return [(number + 1, row) for number, row in table.rows.items() if row["decision"].strip()]


def _is_same(shown: str, text: str) -> bool:
    """Whether a text is the one that was shown in the doubts; a spreadsheet may have changed its white space."""
    return " ".join(shown.split()) in (" ".join(text.split()), " ".join(_harmless(text).split()))


def majority(given: Sequence[str | None]) -> str | None:
    """The label that more than half of those gave who gave any; None where there is none."""
    labels = [label for label in given if label is not None]
    if not labels:
        return None
    label, count = Counter(labels).most_common(1)[0]
    return label if 2 * count > len(labels) else None


def _written(
    work: Labelling,
    names: Sequence[str],
    given: Mapping[int, Sequence[str | None]],
    decided: Mapping[int, str],
    filled: Sequence[tuple[int, Mapping[str, str]]],
    failed: Mapping[int, str],
    spent: Sequence[tuple[Usage, Cost | None]],
) -> LabelReport:
    """Write the result and the doubts, and sum up."""
    final: dict[int, tuple[str, str]] = {}
    doubts: list[int] = []
    for number, labels in given.items():
        chosen = majority(labels)
        if number in decided:
            final[number] = decided[number], "person"
        elif chosen is None or any(label is None for label in labels[: len(names) - len(work.people)]):
            doubts.append(number)
            final[number] = "", "doubt"
        else:
            final[number] = chosen, "agreement" if len(set(labels) - {None}) == 1 else "majority"
    columns = [*work.table.columns, LABEL, HOW, *(f"label: {name}" for name in names)]
    lines = [
        [*work.table.rows[number].values(), *final[number], *(label or "" for label in given[number])]
        for number in given
    ]
    atomic_write(work.out, _csv([columns, *lines], work.table.delimiter), 0o600)
    _write_doubts(work, names, {number: given[number] for number in doubts}, decided, filled, failed)
    pairs = [(a, b) for b in range(len(names)) for a in range(b)]
    kappa: dict[str, float | None] = {}
    for a, b in pairs:
        both = [(row[a], row[b]) for row in given.values() if row[a] is not None and row[b] is not None]
        kappa[f"{names[a]} / {names[b]}"] = cohen_kappa(
            [str(one) for one, _ in both], [str(other) for _, other in both]
        )
    usage = sum((one for one, _ in spent), Usage(0, 0))
    costs = [cost for _, cost in spent]
    cost = None if None in costs else sum((one for one in costs if one), Cost(0.0))
    counts = Counter(label for label, _ in final.values() if label)
    return LabelReport(
        len(work.table.rows) + len(work.table.bad), sum(counts.values()), len(doubts), len(decided), dict(failed),
        dict(counts.most_common()), kappa, krippendorff_alpha(list(given.values())) if pairs else None,
        usage, cost, len(spent),
    )  # fmt: skip


def _write_doubts(
    work: Labelling,
    names: Sequence[str],
    doubts: Mapping[int, Sequence[str | None]],
    decided: Mapping[int, str],
    filled: Sequence[tuple[int, Mapping[str, str]]],
    failed: Mapping[int, str],
) -> None:
    """Write the rows in doubt for a person. What was filled in already and is not decided stays in its cell; where
    its row is in doubt no more, or has another text, it stays in a row of its own."""
    waiting, others = dict[int, str](), list[Mapping[str, str]]()
    for _, row in filled:
        number = int(row["row"]) if row["row"].strip().isdecimal() else -1
        is_row = number in work.table.rows and _is_same(row["text"], work.table.rows[number][work.column])
        if is_row and decided.get(number) == row["decision"].strip():
            continue
        if is_row and number in doubts and number not in waiting:
            waiting[number] = row["decision"]
        else:
            others.append(row)
    queue = work.out.with_suffix(".doubts.csv")
    if not doubts and not others:
        queue.unlink(missing_ok=True)
        return
    told = [
        [str(number), _harmless(work.table.rows[number][work.column]), *(label or "" for label in labels),
         failed.get(number, "they do not agree"), waiting.get(number, "")]
        for number, labels in doubts.items()
    ]  # fmt: skip
    told += [
        [row["row"], row["text"], *("" for _ in names), "filled in, and not in doubt now", row["decision"]]
        for row in others
    ]
    atomic_write(
        queue, _csv([["row", "text", *names, "why", "decision"], *told], work.table.delimiter), 0o600
    )


def _harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: a person opens the doubts in one."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _csv(lines: Sequence[Sequence[str]], delimiter: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return text.getvalue()
