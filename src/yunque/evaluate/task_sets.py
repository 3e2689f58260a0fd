"""How well a model does a task: its test set, item by item, counted by the metric that the task names."""

import ast
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from yunque.apps.structured import NoValidAnswer
from yunque.apps.tasks.definition import Item, Metric, Task, find_task
from yunque.apps.tasks.running import TaskAnswer, run_task
from yunque.apps.tasks.sandbox import run_tests
from yunque.apps.tasks.sentences import words_of
from yunque.errors import UserError
from yunque.evaluate.metrics import bootstrap_interval, canonical, chrf, exact_match, rouge
from yunque.llm.face import Cost, LanguageModel, Usage
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

_TOKEN = re.compile(r"\d+(?:[.,:]\d+)*|\w+|%")

Count = Callable[[TaskAnswer, Item], float]


@dataclass(frozen=True)
class ItemResult:
    """How one item went: `score` from 0 to 1; an answer that could not be had scores 0, and `error` says why."""

    id: str
    language: str
    score: float
    answer: str
    error: str
    seconds: float
    usage: Usage
    cost: Cost | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class TaskReport:
    """How a model did a task: the mean score with its 95 % bootstrap interval (`low` to `high`), by language too."""

    task: str
    model: str
    metric: str
    score: float
    low: float
    high: float
    by_language: dict[str, float]
    usage: Usage
    cost: Cost | None
    seconds: float
    items: tuple[ItemResult, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def open_task(workspace: Workspace | None, name: str) -> Task:
    """The task called `name`; raises UserError with those that there are."""
    return find_task(workspace, name)


def task_items(task: Task, limit: int | None = None, language: str | None = None) -> list[Item]:
    """The items of a task's test set, in one language only where one is given; `limit` are taken of each language."""
    kept: list[Item] = []
    counts: dict[str, int] = {}
    for item in task.items():
        counts[item.language] = counts.get(item.language, 0) + 1
        if language in (None, item.language) and (limit is None or counts[item.language] <= limit):
            kept.append(item)
    if not kept:
        raise UserError(f"the test set of {task.name} has no item in the language {language!r}")
    return kept


def evaluate_item(
    workspace: Workspace | None,
    task: Task,
    item: Item,
    model: LanguageModel,
    send_personal_data: bool = False,
) -> ItemResult:
    """Ask one item. An answer that is wrong, invalid or too long for the model scores 0; raises ModelUnavailable."""
    started = time.monotonic()
    language = None if task.settings.step == "translation" else item.language
    try:
        answer = run_task(task, model, item.inputs, language, workspace, send_personal_data)
    except (NoValidAnswer, UserError) as error:
        usage, cost = (
            (error.usage, error.cost) if isinstance(error, NoValidAnswer) else (Usage(0, 0), Cost(0.0))
        )
        return ItemResult(
            item.id, item.language, 0.0, "", str(error), time.monotonic() - started, usage, cost
        )
    seconds = time.monotonic() - started
    score = COUNTS[task.metric](answer, item)
    return ItemResult(item.id, item.language, score, answer.text, "", seconds, answer.usage, answer.cost)


def evaluate_task(
    workspace: Workspace | None,
    task: Task,
    model: LanguageModel,
    limit: int | None = None,
    language: str | None = None,
    send_personal_data: bool = False,
    progress: Progress = silent,
) -> TaskReport:
    """Ask every item and count; raises ModelUnavailable."""
    results: list[ItemResult] = []
    chosen = task_items(task, limit, language)
    with progress(f"{task.name} on {model.name}", total=len(chosen)) as bar:
        for item in chosen:
            results.append(evaluate_item(workspace, task, item, model, send_personal_data))
            bar.advance(1, f"{item.id}: {results[-1].score:.2f}")
    return report_of(task, model.name, results)


def report_of(task: Task, model: str, results: Sequence[ItemResult]) -> TaskReport:
    """The figures of a task's results."""
    scores = [result.score for result in results]
    low, high = bootstrap_interval(scores)
    groups: dict[str, list[float]] = {}
    for result in results:
        groups.setdefault(result.language, []).append(result.score)
    costs = [result.cost for result in results]
    return TaskReport(
        task.name, model, task.metric, _mean(scores), low, high,
        {language: _mean(group) for language, group in sorted(groups.items())},
        sum((result.usage for result in results), Usage(0, 0)),
        None if None in costs else sum((cost for cost in costs if cost), Cost(0.0)),
        sum(result.seconds for result in results), tuple(results),
    )  # fmt: skip


def keep_report(workspace: Workspace, task: Task, report: TaskReport, name: str) -> Artifact:
    """Keep a report as an artifact of kind evaluation; its parents are the task and the model, if the workspace has
    them."""
    import json

    refs = (task.ref if task.ref.startswith("prompt/") else "", report.model)
    parents = [
        found for ref in refs if ref.startswith(("prompt/", "model/")) if (found := workspace.find(ref))
    ]
    content = json.dumps(report.as_dict(), ensure_ascii=False, indent=2).encode()
    figures = {
        report.metric: report.score,
        "low": report.low,
        "high": report.high,
        "items": len(report.items),
    }
    config = {"task": task.ref, "model": report.model, "metric": report.metric}
    return workspace.put("evaluation", name, {"results.json": content}, parents, config, figures)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _accuracy(answer: TaskAnswer, item: Item) -> float:
    said = (
        answer.value["label"] if isinstance(answer.value, dict) and "label" in answer.value else answer.text
    )
    return float(exact_match(str(said), str(_expected(item, "label"))))


def _rouge_l(answer: TaskAnswer, item: Item) -> float:
    return text_rouge_l(answer.text, item.expected)


def _chrf(answer: TaskAnswer, item: Item) -> float:
    return text_chrf(answer.text, item.expected)


def _entity_f1(answer: TaskAnswer, item: Item) -> float:
    wanted = {(canonical(one["text"]), one["kind"]) for one in _expected(item, "entities")}
    found = {(canonical(one["text"]), one["kind"]) for one in answer.value["entities"]}
    return f1(found, wanted)


def _lines_f1(answer: TaskAnswer, item: Item) -> float:
    found = {one["line"] for listed in answer.value.values() for one in listed}
    return f1(found, set(_expected(item, "lines")))


def f1(found: set[Any], wanted: set[Any]) -> float:
    """The harmonic mean of precision and recall; 1 where nothing was wanted and nothing found."""
    if not found and not wanted:
        return 1.0
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def _facts(answer: TaskAnswer, item: Item) -> float:
    """The share of the facts that are there, each in one of its wordings; too many words take the surplus off.

    A wording is there as whole words: `no` is not in "now". One that ends in `*` is the beginning of a word. Numbers
    are compared as numbers: 1.200, 1,200 and 1200 are the same one, and so are 14:00 and 14, 09:30 and 9:30.

    Where the answer may be unknown, it must be known or not as is expected.
    """
    expected = item.expected
    if "known" in expected and answer.value["known"] != expected["known"]:
        return 0.0
    said = _new_words(answer)
    facts = _expected(item, "facts")
    share = _mean([any(says(said, way) for way in ways) for ways in facts]) if facts else 1.0
    most, count = expected.get("max_words"), len(words_of(answer.text))
    return share * most / count if most and count > most else share


def says(text: str, wording: str) -> bool:
    """Whether a text has a wording, as its own words and numbers; a wording of signs alone stands as it is."""
    words, wanted = _tokens(text), _tokens(wording.removesuffix("*"))
    if not wanted:
        return canonical(wording) in canonical(text)
    *firsts, last = wanted
    for start in range(len(words) - len(firsts)):
        found = words[start + len(firsts)]
        is_last = found.startswith(last) if wording.endswith("*") else found == last
        if is_last and words[start : start + len(firsts)] == firsts:
            return True
    return False


def _tokens(text: str) -> list[str]:
    """Words, numbers in one form, and per cent signs."""
    return [_number(one) if one[0].isdecimal() else one for one in _TOKEN.findall(canonical(text))]


def _number(word: str) -> str:
    if time_of_day := re.fullmatch(r"0?(\d{1,2})(:\d\d)", word):
        hour, minutes = time_of_day.groups()
        return hour if minutes == ":00" else hour + minutes
    if re.fullmatch(r"\d{1,3}([.,]\d{3})+", word) and not word.startswith("0"):
        return re.sub("[.,]", "", word)
    whole, point, decimals = word.replace(",", ".").partition(".")
    if not whole.isdecimal() or (point and not decimals.isdecimal()):
        return word
    decimals = decimals.rstrip("0")
    return f"{int(whole)}.{decimals}" if decimals else str(int(whole))


def _new_words(answer: TaskAnswer) -> str:
    """What a model wrote: of docstrings and of quoted answers not what was there before."""
    if isinstance(answer.value, Mapping):
        if "docstrings" in answer.value:
            return " ".join(answer.value["docstrings"].values())
        if "quote" in answer.value:
            return str(answer.value["answer"])
    return answer.text


def _proven(answer: TaskAnswer, item: Item) -> float:
    """The share of the tests that pass, if they notice a change in the code; else 0."""
    del item
    results = answer.value["results"]
    return _mean([one["passed"] for one in results]) if answer.value["proven"] and results else 0.0


def _runs(answer: TaskAnswer, item: Item) -> float:
    """The share of the item's checks that hold for the code, run in the sandbox."""
    checks = [str(check) for check in _expected(item, "checks")]
    for check in checks:
        ast.parse(check, mode="eval")
    tests = "from subject import *\n" + "".join(
        f"def test_{number}():\n    assert {check}\n" for number, check in enumerate(checks)
    )
    return len(run_tests(answer.value["code"], tests).passed) / len(checks)


def _expected(item: Item, name: str) -> Any:
    try:
        return item.expected[name]
    except (KeyError, TypeError):
        raise UserError(f"the item {item.id}: its expected must have {name!r}") from None


def exact(answer: Any, expected: Any) -> float:
    """1 where an answer is the one expected: the same value, or the same text but for case and white space."""
    if isinstance(answer, str) and isinstance(expected, str):
        return float(exact_match(answer, expected))
    return float(answer == expected)


def text_rouge_l(answer: Any, expected: Any) -> float:
    """ROUGE-L of two texts, 0 to 1."""
    return rouge([str(answer)], [str(expected)])["rougeL"]


def text_chrf(answer: Any, expected: Any) -> float:
    """chrF of two texts, 0 to 1."""
    return chrf([str(answer)], [str(expected)]) / 100


ANSWER_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "exact": exact,
    "rougeL": text_rouge_l,
    "chrf": text_chrf,
}
"""How one answer is counted where there is no task: for choosing examples."""

COUNTS: dict[Metric, Count] = {
    "accuracy": _accuracy,
    "rougeL": _rouge_l,
    "chrf": _chrf,
    "entity_f1": _entity_f1,
    "lines_f1": _lines_f1,
    "facts": _facts,
    "proven": _proven,
    "runs": _runs,
}
