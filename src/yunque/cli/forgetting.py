"""`yunque forgetting`: what models forgot, task by task."""

from pathlib import Path

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, bars, emit, note, table


def forgetting(
    models: list[str] = typer.Argument(
        help="Models, two or more: the first is what the others are held against."
    ),
    instructions: list[str] = typer.Option(
        [],
        "--instructions",
        help="Rows of tasks, a file or a dataset (its held-out rows). (default: the shipped ones)",
    ),
    data: list[str] = typer.Option(
        [], "--data", help="Dataset of text with a test split. (default: what the first model was trained on)"
    ),
    rows: int | None = typer.Option(
        None, min=1, help="Answer only the first ROWS rows of each task and language."
    ),
    picture: Path | None = typer.Option(None, help="Write the picture (PNG) to this file too."),
    json: bool = JSON_OPTION,
) -> None:
    """Measure models task by task, and show what each forgot against the first: a table and a picture."""
    from yunque.data.instructions import shipped_instructions
    from yunque.evaluate.evaluation import instruction_dataset
    from yunque.evaluate.forgetting import forgetting_matrix
    from yunque.evaluate.tuning_lineage import general_datasets
    from yunque.workspace import Workspace, atomic_write

    workspace = Workspace.open()
    tasks = [instruction_dataset(workspace, each) for each in instructions] or [
        shipped_instructions(workspace)
    ]
    texts = [workspace.get(each, "dataset") for each in data] or general_datasets(workspace, models[0])
    made, matrix = forgetting_matrix(workspace, models, tasks, texts, rows, bars)
    drawn = workspace.file(made, "matrix.png")
    if picture:
        atomic_write(picture, drawn.read_bytes())
    emit(
        {"report": made.ref, "picture": str(picture or drawn), **matrix},
        json,
        lambda console: _render(console, matrix),
    )
    note(f"kept as {made.ref}; its picture is {picture or drawn}")


def _render(console: Console, matrix: dict[str, object]) -> None:
    from yunque.evaluate.forgetting import NOTE, SUMMARY, matrix_rows, summary_rows

    head, rows = matrix_rows(matrix)
    console.print(table("", head, rows, right=head[1:]))
    console.print(NOTE, markup=False)
    title = "Against the first model: points of accuracy, nats of loss"
    console.print(table(title, SUMMARY, summary_rows(matrix), right=SUMMARY[1:]))
