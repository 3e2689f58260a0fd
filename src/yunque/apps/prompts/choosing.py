"""Examples chosen by what they do: they are kept only if a metric rises on rows that the choice never saw."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from yunque.apps.prompts.asking import ask_prompt
from yunque.apps.prompts.definition import Example
from yunque.apps.prompts.prompt import Prompt, check_example
from yunque.apps.structured import Answering, NoValidAnswer
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow
from yunque.progress import Progress, silent

Metric = Callable[[Any, Any], float]
"""How good an answer is (first) for what is expected (second): higher is better."""
Search = Literal["greedy", "random"]


@dataclass(frozen=True)
class Chosen:
    """What came of a search. `examples` are those that did best on the dev set; `kept` says that they did better on
    the held-out rows too than the prompt's own examples (`before`), and `prompt` has them if so."""

    prompt: Prompt
    examples: tuple[Example, ...]
    kept: bool
    dev_before: float
    dev_after: float
    held_out_before: float
    held_out_after: float
    tried: int
    asked: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the prompt."""
        told = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "prompt"}
        return {**told, "examples": [one.model_dump(mode="json") for one in self.examples]}


def choose_examples(
    prompt: Prompt,
    model: Answering,
    train: Sequence[Example],
    dev: Sequence[Example],
    held_out: Sequence[Example],
    metric: Metric,
    shots: int = 4,
    search: Search = "greedy",
    trials: int = 16,
    seed: int = 0,
    journal: Path | None = None,
    journal_key: str = "",
    restore: Callable[[str], str] = str,
    progress: Progress = silent,
) -> Chosen:
    """Search the examples of `train` that raise `metric` on `dev`, and keep them only if it rises on `held_out`.

    `greedy` adds one example at a time, the best of `trials` drawn ones, until none helps; `random` tries `trials`
    sets. `journal` keeps every score (hashes and numbers, no text), so that a search that was killed goes on;
    `journal_key` tells models apart; `restore` is that of `ask_prompt`. The three sets must not share a row. Raises
    UserError, ModelUnavailable.
    """
    _check_sets(prompt, train, dev, held_out)
    if shots < 1 or trials < 1:
        raise UserError("shots and trials must be at least 1")
    scores = _Scores(prompt, model, metric, journal, journal_key, restore)
    draw = random.Random(seed)
    rounds = shots * trials if search == "greedy" else trials
    with progress("Choosing examples", total=(rounds + 1) * len(dev) + 2 * len(held_out)) as bar:
        scores.advance = bar.advance
        before = scores.mean(None, dev)
        best: list[Example] = []
        best_score, tried = scores.mean([], dev), 1
        if search == "random":
            for _ in range(trials):
                picked = draw.sample(list(train), min(shots, len(train)))
                tried += 1
                if (score := scores.mean(picked, dev)) > best_score:
                    best, best_score = picked, score
        else:
            best, best_score, tried = _greedy(scores, train, dev, shots, trials, draw, best_score)
        held_before, held_after = scores.mean(None, held_out), scores.mean(best, held_out)
    kept = held_after > held_before and best_score > before
    return Chosen(
        prompt.with_examples(best) if kept else prompt, tuple(best), kept, before, best_score, held_before,
        held_after, tried, scores.asked,
    )  # fmt: skip


def _greedy(
    scores: "_Scores",
    train: Sequence[Example],
    dev: Sequence[Example],
    shots: int,
    trials: int,
    draw: random.Random,
    best_score: float,
) -> tuple[list[Example], float, int]:
    best: list[Example] = []
    tried = 1
    for _ in range(min(shots, len(train))):
        left = [one for one in train if one not in best]
        round_best: Example | None = None
        for one in draw.sample(left, min(trials, len(left))):
            tried += 1
            if (score := scores.mean([*best, one], dev)) > best_score:
                round_best, best_score = one, score
        if round_best is None:
            break
        best.append(round_best)
    return best, best_score, tried


class _Scores:
    """Scores of rows with examples; one that is in the journal is not asked for again."""

    def __init__(
        self,
        prompt: Prompt,
        model: Answering,
        metric: Metric,
        journal: Path | None,
        key: str,
        restore: Callable[[str], str],
    ) -> None:
        self._restore = restore
        self._prompt, self._model, self._metric = prompt, model, metric
        self._journal = journal
        self._key = [prompt.source, key, getattr(metric, "__name__", "")]
        self._known: dict[str, float] = {}
        self.asked = 0
        self.advance: Callable[[float, str], None] = lambda *_: None
        if journal and journal.exists():
            for line in journal.read_text(encoding="utf-8").split("\n"):
                try:
                    name, score = json.loads(line)
                    self._known[str(name)] = float(score)
                except (ValueError, TypeError):
                    continue  # the line that a kill cut

    def mean(self, examples: Sequence[Example] | None, rows: Sequence[Example]) -> float:
        """The mean score over rows; without `examples` the prompt has its own."""
        return sum(self._score(examples, row) for row in rows) / len(rows)

    def _score(self, examples: Sequence[Example] | None, row: Example) -> float:
        shown = None if examples is None else [_row_of(one) for one in examples]
        said = json.dumps([self._key, shown, _row_of(row)], ensure_ascii=False, sort_keys=True)
        name = hashlib.sha256(said.encode()).hexdigest()
        if name not in self._known:
            self._known[name] = self._asked(examples, row)
            self._keep(name)
        self.advance(1, f"{self.asked} asked")
        return self._known[name]

    def _asked(self, examples: Sequence[Example] | None, row: Example) -> float:
        self.asked += 1
        try:
            answered = ask_prompt(
                self._model, self._prompt, row.inputs, row.language, examples, restore=self._restore
            )
        except (NoValidAnswer, ContextOverflow):
            return 0.0  # examples that leave no room, or confuse, are bad ones
        return float(self._metric(answered.value, row.answer))

    def _keep(self, name: str) -> None:
        if self._journal is None:
            return
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("a+b") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(json.dumps([name, self._known[name]]).encode() + b"\n")


def _row_of(example: Example) -> dict[str, Any]:
    return example.model_dump(mode="json")


def _check_sets(
    prompt: Prompt, train: Sequence[Example], dev: Sequence[Example], held_out: Sequence[Example]
) -> None:
    sets = {"train": train, "dev": dev, "held-out": held_out}
    seen: dict[str, str] = {}
    for name, rows in sets.items():
        if not rows:
            raise UserError(f"the {name} set is empty")
        for number, row in enumerate(rows, 1):
            check_example(prompt, row, f"{name} row {number}")
            key = json.dumps(row.inputs, sort_keys=True, ensure_ascii=False)
            if seen.setdefault(key, name) != name:
                raise UserError(
                    f"{name} row {number} is in the {seen[key]} set too: what is measured must be new"
                )


def read_examples(path: Path) -> list[Example]:
    """Rows `{"inputs": {...}, "answer": ...}`, one a line; raises UserError with file and line."""
    from pydantic import ValidationError

    rows: list[Example] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(Example.model_validate(json.loads(line)))
        except ValidationError as error:
            problem = error.errors()[0]
            raise UserError(
                f"{path}:{number}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from None
    return rows


__all__ = ["Chosen", "choose_examples", "read_examples"]
