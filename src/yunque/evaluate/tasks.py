"""What a model answers to instruction rows, and how its answers are counted by task and language."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from yunque.data.instructions import InstructionRow
from yunque.evaluate.metrics import bootstrap_interval, exact_match, text_metrics
from yunque.generate.config import GenerationConfig
from yunque.llm import ContextOverflow, LanguageModel, Message
from yunque.progress import Progress, silent

# The likelihoods (in nats) of answers to a conversation, each to its end; None where a model does not tell them.
Score = Callable[[Sequence[Message], Sequence[str]], list[float]]


@dataclass(frozen=True)
class Prediction:
    """What was answered to one row.

    `text` is the greedy answer, None where none was asked for; `label` the likeliest of the row's labels, None where
    the row has none or the model does not tell likelihoods. A row that is longer than the model's context is not
    answered (`too_long`), and wrong.
    """

    id: str
    task: str
    language: str
    answer: str
    text: str | None
    label: str | None
    choices: int
    too_long: bool = False

    @property
    def correct(self) -> bool:
        """Whether the label, or the greedy answer where there is no label, is the answer wanted."""
        if self.label is not None:
            return self.label == self.answer
        return self.text is not None and exact_match(self.text, self.answer)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "correct": self.correct}


def predict(
    model: LanguageModel,
    score: Score | None,
    rows: Sequence[InstructionRow],
    max_new_tokens: int,
    write_labels: bool = True,
    progress: Progress = silent,
) -> list[Prediction]:
    """Answers to all rows, in their order.

    A label is chosen by the likelihood of the whole answer with its end, so that a label is not preferred for
    being short, or for being the beginning of another. With `write_labels` it is written greedily as well.
    """
    config = GenerationConfig(max_new_tokens=max_new_tokens)
    predictions: list[Prediction] = []
    with progress("Answering", total=len(rows)) as task:
        for row in rows:
            try:
                label, text = _answer(model, score, row, config, write_labels)
                too_long = False
            except ContextOverflow:
                label, text, too_long = None, "", True
            choices = len(row.labels or ())
            predictions.append(
                Prediction(row.id, row.task, row.language, row.answer, text, label, choices, too_long)
            )
            task.advance(1, note=row.task)
    return predictions


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: a step of a small model is over before a second one has woken up, and on a busy machine
    waiting for it took ten times as long (4 million weights, 2 cores: 0.1 s a row against 1.3 s)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _answer(
    model: LanguageModel,
    score: Score | None,
    row: InstructionRow,
    config: GenerationConfig,
    write_labels: bool,
) -> tuple[str | None, str | None]:
    """The likeliest label and the greedy text, None for what there is not."""
    question = [Message("user", row.question)]
    if not row.labels or not score:
        return None, _written(model, question, _enough(config, row))
    likelihoods = score(question, row.labels)
    label = row.labels[max(range(len(likelihoods)), key=likelihoods.__getitem__)]
    return label, _written(model, question, _enough(config, row)) if write_labels else None


def _enough(config: GenerationConfig, row: InstructionRow) -> GenerationConfig:
    """A length in which any label of the row can be written: what is longer is none of them."""
    if not row.labels:
        return config
    # A token has at least one byte; two more are for a blank before and the end.
    longest = max(len(label.encode()) for label in row.labels) + 2
    return config.model_copy(update={"max_new_tokens": min(longest, config.max_new_tokens)})


def _written(model: LanguageModel, question: list[Message], config: GenerationConfig) -> str:
    """The greedy answer, shorter where the context has no more room."""
    try:
        return model.chat(question, config).text.strip()
    except ContextOverflow as error:
        if error.room < 1:
            raise
        return model.chat(question, config.model_copy(update={"max_new_tokens": error.room})).text.strip()


def by_task(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """One line of figures for each task and language.

    `accuracy` (0 to 1, with a 95 % bootstrap interval `low` to `high`) counts labels where there are any, else exact
    matches; `chance` is the accuracy of guessing a label. Rows without labels have the metrics on text too.
    """
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault((prediction.task, prediction.language), []).append(prediction)
    return [
        {"task": task, "language": language, **figures(group)}
        for (task, language), group in sorted(groups.items())
    ]


def figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The figures of some predictions together."""
    correct = [float(prediction.correct) for prediction in predictions]
    low, high = bootstrap_interval(correct)
    pairs = [(each.text, each.answer) for each in predictions if each.text is not None]
    counted: dict[str, Any] = {
        "rows": len(predictions),
        "accuracy": sum(correct) / len(correct),
        "low": low,
        "high": high,
    }
    if pairs:
        counted["exact_match"] = sum(exact_match(*pair) for pair in pairs) / len(pairs)
    if too_long := sum(prediction.too_long for prediction in predictions):
        counted["too_long"] = too_long
    if all(prediction.choices for prediction in predictions):
        counted["chance"] = sum(1 / prediction.choices for prediction in predictions) / len(predictions)
    elif pairs and not any(prediction.choices for prediction in predictions):
        counted.update(text_metrics([text for text, _ in pairs], [answer for _, answer in pairs]))
    return counted
