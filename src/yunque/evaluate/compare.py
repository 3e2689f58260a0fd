"""Models held against each other on one test set: quality with its interval, cost, latency and privacy."""

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.evaluate.metrics import bootstrap_interval, exact_match, text_metrics
from yunque.evaluate.model_list import list_models
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, LanguageModel, Message, ModelUnavailable, Prompt
from yunque.llm.retrying import Refusal
from yunque.llm.routing import artifact_of
from yunque.llm.wrapped import Wrapped
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

METRICS = ("exact_match", "rouge1", "rouge2", "rougeL", "bleu", "chrf")
_OF_A_HUNDRED = ("bleu", "chrf")
_GIVEN_UP_AFTER = 3
"""Questions that a model leaves unanswered one after the other, before it is asked no more."""


@dataclass(frozen=True)
class Scored:
    """How one question was answered: `score` from 0 to 1; `usd` is None where no price is known."""

    id: str
    score: float
    answer: str
    error: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = None
    prices_of: str = ""


@dataclass(frozen=True)
class TestSet:
    """Questions whose answers can be judged. `content` is all that the outcome depends on, beside the model.

    `judge` asks a model one of them; it raises ModelUnavailable alone.
    """

    __test__ = False  # for pytest, which takes the name for its own

    name: str
    metric: str
    ids: tuple[str, ...]
    content: str
    judge: Callable[[str, LanguageModel], Scored]


@dataclass(frozen=True)
class Compared:
    """What came out for one model. `error` says why it has no (or too few) answers; figures are over `answered`.

    Of these `without_answer` could not be had in the form that was asked for, or were too long, and count as wrong.
    """

    model: str
    privacy: str
    answered: int
    without_answer: int = 0
    score: float | None = None
    low: float | None = None
    high: float | None = None
    usd: float | None = None
    prices_of: str = ""
    tokens: int = 0
    seconds: float | None = None
    tokens_a_second: float | None = None
    behind_best: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def usd_for_1000(self) -> float | None:
        """US dollars for a thousand answers."""
        return None if self.usd is None or not self.answered else 1000 * self.usd / self.answered

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "usd_for_1000": self.usd_for_1000}


def file_test_set(path: Path, metric: str = "rougeL", max_new_tokens: int = 128) -> TestSet:
    """The questions of a JSONL file, a line `{"input": TEXT, "expected": TEXT}` each (an `id`, too, if it has one).

    Raises UserError naming file and line.
    """
    if metric not in METRICS:
        raise UserError(f"{metric!r} is not a metric: use {', '.join(METRICS)}")
    rows: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        row = _row(line, f"{path}:{number}")
        id = str(row.get("id", number))
        if id in rows:
            raise UserError(f"{path}:{number}: the id {id!r} is there twice")
        rows[id] = row["input"], row["expected"]
    if not rows:
        raise UserError(f"{path}: holds no question")
    config = GenerationConfig(max_new_tokens=max_new_tokens)

    def judge(id: str, model: LanguageModel) -> Scored:
        asked, expected = rows[id]
        started = time.monotonic()
        try:
            said = model.chat([Message("user", asked)], config)
        except UserError as error:
            return Scored(id, 0.0, "", str(error), time.monotonic() - started)
        seconds, cost = time.monotonic() - started, said.cost
        return Scored(
            id,
            _score(metric, said.text, expected),
            said.text,
            "",
            seconds,
            said.usage.prompt_tokens,
            said.usage.completion_tokens,
            cost.usd if cost else None,
            cost.prices_of if cost else "",
        )

    content = json.dumps([rows, metric, max_new_tokens], sort_keys=True, ensure_ascii=False)
    return TestSet(path.name, metric, tuple(rows), content, judge)


def task_test_set(workspace: Workspace, name: str, limit: int | None = None, language: str = "") -> TestSet:
    """The test set of a task (`yunque task`); raises UserError where there is none."""
    from yunque.evaluate.task_sets import evaluate_item, open_task, task_items

    task = open_task(workspace, name)
    items = {item.id: item for item in task_items(task, limit=limit, language=language or None)}
    if not items:
        raise UserError(f"the task {name} has no question{f' in {language!r}' if language else ''}")

    def judge(id: str, model: LanguageModel) -> Scored:
        told = evaluate_item(workspace, task, items[id], model)
        usage, cost = told.usage, told.cost
        return Scored(
            id,
            told.score,
            told.answer,
            told.error,
            told.seconds,
            usage.prompt_tokens,
            usage.completion_tokens,
            cost.usd if cost else None,
            cost.prices_of if cost else "",
        )

    content = json.dumps([name, [repr(item) for item in items.values()]], ensure_ascii=False)
    return TestSet(task.name, task.metric, tuple(items), content, judge)


def compare_models(
    workspace: Workspace,
    models: Sequence[str],
    tests: TestSet,
    opened: Callable[[str], LanguageModel],
    progress: Progress = silent,
) -> tuple[Artifact | None, list[Compared]]:
    """Ask every model every question, and keep what came out as an evaluation; best first.

    A model that cannot be asked does not stop the others. What was answered before a kill is not asked again. There
    is no artifact where no model answered.
    """
    names = [_full_name(workspace, name) for name in dict.fromkeys(models)]
    run = _Run(workspace, tests)
    answers: dict[str, list[Scored]] = {}
    errors: dict[str, str] = {}
    with progress(f"{tests.name}, {len(names)} models", total=len(names) * len(tests.ids)) as bar:
        for name in names:
            answers[name], errors[name] = run.answers(name, opened, bar.advance)
    privacy = {each.name: each.privacy for each in list_models(workspace, names).models}
    compared = [_compared(name, privacy.get(name, ""), answers[name], errors[name]) for name in names]
    compared = _behind_best(compared, answers)
    if not any(each.answered for each in compared):
        return None, compared
    made = _kept(workspace, tests, compared, answers)
    if not any(errors.values()):
        run.remove()
    return made, compared


class _Run:
    """Answers that were given already, a file for each model: a kill loses none."""

    def __init__(self, workspace: Workspace, tests: TestSet) -> None:
        digest = hashlib.sha256(tests.content.encode()).hexdigest()[:16]
        self._folder = workspace.runs / f"compare-{digest}"
        self._tests = tests

    def answers(
        self, name: str, opened: Callable[[str], LanguageModel], advance: Callable[[float, str], None]
    ) -> tuple[list[Scored], str]:
        """A model's answers in the order of the questions, and why there are not more."""
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.jsonl"
        done = {scored.id: scored for scored in _read_answers(path) if scored.id in self._tests.ids}
        advance(len(done), name)
        error, missed = "", 0
        try:
            model = _Refusing(opened(name)) if len(done) < len(self._tests.ids) else None
            for id in self._tests.ids:
                if id in done or model is None:
                    continue
                try:
                    done[id] = self._tests.judge(id, model)
                except ModelUnavailable as unavailable:
                    error, missed = str(unavailable), missed + 1
                    if missed == _GIVEN_UP_AFTER:
                        break
                    continue
                missed = 0
                _append(path, done[id])
                advance(1, name)
        except (UserError, ModelUnavailable) as refused:
            error = str(refused)
        if len(done) == len(self._tests.ids):
            error = ""
        return [done[id] for id in self._tests.ids if id in done], error

    def remove(self) -> None:
        """All is kept elsewhere by now."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Refusing(Wrapped):
    """A model that a policy or a budget keeps from being asked is not there; it did not answer wrongly."""

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        with _told_as_unavailable():
            return self.model.chat(messages, config)

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        with _told_as_unavailable():
            return self.model.complete(prompt, config)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        with _told_as_unavailable():
            yield from self.model.stream_chat(messages, config)

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        with _told_as_unavailable():
            yield from self.model.stream_complete(prompt, config)


@contextmanager
def _told_as_unavailable() -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        raise ModelUnavailable(str(refusal)) from None


def _append(path: Path, scored: Scored) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(scored), ensure_ascii=False) + "\n")


def _read_answers(path: Path) -> Iterator[Scored]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            yield Scored(**json.loads(line))
        except (ValueError, TypeError):
            continue  # the line that a kill cut in two


def _compared(name: str, privacy: str, answers: Sequence[Scored], error: str) -> Compared:
    if not answers:
        return Compared(name, privacy, 0, error=error or "gave no answer")
    scores = [each.score for each in answers]
    low, high = bootstrap_interval(scores)
    # What was refused before it was sent (too long a question) cost nothing.
    costs = [0.0 if _is_unbilled(each) else each.usd for each in answers]
    written = [each for each in answers if each.completion_tokens and each.seconds]
    return Compared(
        name,
        privacy,
        len(answers),
        sum(bool(each.error) for each in answers),
        statistics.fmean(scores),
        low,
        high,
        None if None in costs else sum(cost or 0.0 for cost in costs),
        max(each.prices_of for each in answers),
        sum(each.prompt_tokens + each.completion_tokens for each in answers),
        statistics.median(each.seconds for each in answers),
        sum(each.completion_tokens for each in written) / sum(each.seconds for each in written)
        if written
        else None,
        error=error,
    )


def _is_unbilled(scored: Scored) -> bool:
    return (
        bool(scored.error) and scored.usd is None and not (scored.prompt_tokens or scored.completion_tokens)
    )


def _behind_best(compared: Sequence[Compared], answers: dict[str, list[Scored]]) -> list[Compared]:
    """Best first, each with its distance to the best on the questions that both answered (paired bootstrap)."""
    ranked = sorted(compared, key=lambda each: (each.score is None, -(each.score or 0.0), each.model))
    best = {scored.id: scored.score for scored in answers[ranked[0].model]}
    told = []
    for each in ranked:
        pairs = [scored.score - best[scored.id] for scored in answers[each.model] if scored.id in best]
        if each is ranked[0] or not pairs:
            told.append(each)
            continue
        low, high = bootstrap_interval(pairs)
        behind = {"change": statistics.fmean(pairs), "low": low, "high": high, "questions": float(len(pairs))}
        told.append(Compared(**{**_fields(each), "behind_best": behind}))
    return told


def _fields(compared: Compared) -> dict[str, Any]:
    return {name: getattr(compared, name) for name in Compared.__dataclass_fields__}


def _kept(
    workspace: Workspace, tests: TestSet, compared: Sequence[Compared], answers: dict[str, list[Scored]]
) -> Artifact:
    results = {
        "task": tests.name,
        "metric": tests.metric,
        "questions": len(tests.ids),
        "models": [each.as_dict() for each in compared],
    }
    lines = [
        json.dumps({"model": name, **asdict(scored)}, ensure_ascii=False) + "\n"
        for name, each in answers.items()
        for scored in each
    ]
    files: dict[str, bytes | Path] = {
        "results.json": json.dumps(results, ensure_ascii=False, indent=2).encode(),
        "answers.jsonl": "".join(lines).encode(),
    }
    parents = [artifact for name in answers if (artifact := artifact_of(workspace, name))]
    config = {"task": tests.name, "metric": tests.metric, "models": list(answers)}
    scores = {each.model: each.score for each in compared if each.score is not None and not each.error}
    letters = "".join(char if char.isascii() and char.isalnum() else "-" for char in tests.name.lower())
    name = f"compare-{letters.strip('-')[:50] or 'models'}"
    return workspace.put("evaluation", name, files, parents, config, {"scores": scores})


def _full_name(workspace: Workspace, name: str) -> str:
    artifact = artifact_of(workspace, name)
    return artifact.ref if artifact else name


def _score(metric: str, answer: str, expected: str) -> float:
    if metric == "exact_match":
        return float(exact_match(answer, expected))
    value = text_metrics([answer], [expected])[metric]
    return value / 100 if metric in _OF_A_HUNDRED else value


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise UserError(f"{where}: is not JSON") from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: must be an object {{"input": TEXT, "expected": TEXT}}')
    for name in ("input", "expected"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UserError(f"{where}: {name} must be a text")
    return row


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): U+2028 and its like are inside of a text.
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
