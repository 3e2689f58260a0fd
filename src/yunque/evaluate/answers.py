"""Answers of two models to the same rows, held against each other: what changed, with its interval."""

from collections.abc import Sequence
from typing import Any

from yunque.evaluate.metrics import bootstrap_interval, rouge
from yunque.evaluate.tasks import Prediction, figures


def compared_tasks(old: Sequence[Prediction], new: Sequence[Prediction]) -> list[dict[str, Any]]:
    """A line for each task and language: figures `before` and `after`, and the `change` of its `metric`.

    The metric is the accuracy where rows have labels, else ROUGE-L, which sees half an answer too.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, prediction in enumerate(new):
        groups.setdefault((prediction.task, prediction.language), []).append(number)
    lines = []
    for (task, language), numbers in sorted(groups.items()):
        a, b = ([predictions[number] for number in numbers] for predictions in (old, new))
        measured = [figures(each) for each in (a, b)]
        line: dict[str, Any] = {"task": task, "language": language, "rows": measured[1].pop("rows")}
        if "chance" in measured[1]:
            line["chance"] = measured[1].pop("chance")
        for each in measured:
            each.pop("rows", None), each.pop("chance", None)
        metric = "rougeL" if "rougeL" in measured[1] else "accuracy"
        lines.append(
            line
            | {"before": measured[0], "after": measured[1], "metric": metric}
            | change(row_scores(a, metric), row_scores(b, metric))
        )
    return lines


def row_scores(predictions: Sequence[Prediction], metric: str) -> list[float]:
    """What each row adds to the mean of `metric` (accuracy or rougeL)."""
    if metric == "accuracy":
        return [float(prediction.correct) for prediction in predictions]
    return [rouge([prediction.text or ""], [prediction.answer])[metric] for prediction in predictions]


def change(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """The mean change of rows, with the 95 % interval of a paired bootstrap: both models answered the same rows."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    low, high = bootstrap_interval(changes)
    return {"change": sum(changes) / len(changes), "low": low, "high": high}


def compared_accuracy(old: Sequence[Prediction], new: Sequence[Prediction]) -> dict[str, Any]:
    """The accuracy over all rows, before and after, and its change."""
    scores = [row_scores(each, "accuracy") for each in (old, new)]
    before, after = (sum(each) / len(each) for each in scores)
    return {"rows": len(new), "before": before, "after": after, **change(*scores)}
