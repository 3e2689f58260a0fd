"""`yunque compare`: models held against each other on one test set."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from yunque.evaluate.compare import Compared, TestSet
    from yunque.llm import LanguageModel
    from yunque.workspace import Workspace


def compare(
    models: list[str] = typer.Argument(help="The models, such as mini openai/gpt-4o-mini ollama/llama3.2."),
    task: str | None = typer.Option(None, help="A task, whose test set is asked (see `yunque task list`)."),
    data: Path | None = typer.Option(
        None, help='Or a JSONL file of questions, {"input": TEXT, "expected": TEXT} a line.'
    ),
    metric: str = typer.Option("rougeL", help="What --data is judged by: exact_match, rougeL, chrf..."),
    language: str = typer.Option("", help="Only the questions of a --task in this language: es or en."),
    limit: int | None = typer.Option(None, min=1, help="Ask only the first LIMIT questions of a --task."),
    max_new_tokens: int = typer.Option(128, min=1, help="The longest answer to --data."),
    chart: Path | None = typer.Option(None, help="Draw the comparison into this .png, .svg or .pdf."),
    deadline: float = typer.Option(120.0, min=1, help="The longest that an answer may take, in seconds."),
    json: bool = JSON_OPTION,
) -> None:
    """Ask several models the same questions: quality with its interval, cost, latency, privacy.

    Models elsewhere get no personal data (placeholders go instead), and are charged to the budget of `all`. A
    comparison that was stopped goes on where it was.
    """
    from yunque.evaluate.compare import compare_models, file_test_set, task_test_set
    from yunque.workspace import Workspace

    if (task is None) == (data is None):
        raise UserError("say what to ask: --task NAME, or --data FILE.jsonl")
    if chart is not None and chart.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--chart {chart}: a picture is a .png, .svg or .pdf")
    workspace = Workspace.open()
    tests = (
        file_test_set(data, metric, max_new_tokens)
        if data
        else task_test_set(workspace, task or "", limit, language)
    )
    made, compared = compare_models(workspace, models, tests, _one_at_a_time(workspace, deadline), bars)
    for each in compared:
        if each.error:
            warn(f"{each.model}: {each.answered} of {len(tests.ids)} questions answered: {each.error}")
    if made is None:
        raise UserError("no model answered")
    emit(
        {
            "evaluation": made.ref,
            "task": tests.name,
            "metric": tests.metric,
            "questions": len(tests.ids),
            "models": [each.as_dict() for each in compared],
        },
        json,
        lambda console: _render(console, compared, tests),
    )
    note(f"kept as {made.ref}, every answer in its answers.jsonl")
    if chart:
        from yunque.evaluate.compare_chart import draw_comparison

        draw_comparison(chart, compared, tests.name, tests.metric)
        note(f"drawn into {chart}")


def _one_at_a_time(workspace: "Workspace", deadline: float) -> "Callable[[str], LanguageModel]":
    """Opens a model as applications ask it; the one before is closed, as two may not fit in memory."""
    from yunque.llm.router import RouterSettings
    from yunque.llm.routing import open_bare, routed

    held: list[Any] = []

    def opened(name: str) -> "LanguageModel":
        while held:
            if close := getattr(held.pop(), "close", None):
                close()
        model = open_bare(workspace, name)
        held.append(model)
        return routed(workspace, RouterSettings(model=name, deadline=deadline), open_one=lambda _: model)

    return opened


def _render(console: Console, compared: "list[Compared]", tests: "TestSet") -> None:
    figures = (tests.metric, "behind the best", "no answer", "$ for 1,000", "s an answer", "tokens/s")
    rows = [
        (
            each.model,
            "" if each.score is None else f"{each.score:.3f} ({each.low:.3f}–{each.high:.3f})",
            _behind(each),
            each.without_answer or "",
            "?" if each.usd_for_1000 is None else f"{each.usd_for_1000:.3g}",
            "" if each.seconds is None else f"{each.seconds:.2f}",
            "" if each.tokens_a_second is None else f"{each.tokens_a_second:.1f}",
            each.privacy,
        )
        for each in compared
    ]
    title = f"{tests.name}: {len(tests.ids)} questions (95 % intervals)"
    console.print(table(title, ("model", *figures, "a text"), rows, right=figures))
    if dates := {each.prices_of for each in compared if each.prices_of}:
        console.print(f"Prices by the list of {max(dates)}.")


def _behind(each: "Compared") -> str:
    if not (behind := each.behind_best):
        return ""
    return f"{behind['change']:+.3f} ({behind['low']:+.3f} to {behind['high']:+.3f})"
