"""`yunque data`: files into datasets, and datasets into clean and divided ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from yunque.cli.data_tasks import show_rows, tasks
from yunque.cli.show import JSON_OPTION, bars, emit, note, table, warn

if TYPE_CHECKING:
    from yunque.workspace import Artifact, Workspace

app = typer.Typer(
    help="Prepare data: read files, drop duplicates, replace personal data, split.", no_args_is_help=True
)

app.command("tasks")(tasks)
REF = typer.Argument(help="The dataset: NAME or NAME@VERSION.")


@app.command()
def add(
    paths: list[str] = typer.Argument(
        help="Files and folders, or python:docs for Python's own documentation."
    ),
    name: str = typer.Option(..., "--name", "-n", help="The name of the dataset."),
    keep_personal_data: bool = typer.Option(
        False,
        "--keep-personal-data",
        "--no-anonymize",
        help="Store personal data as it is, not as pseudonyms.",
    ),
    tokenizer: str | None = typer.Option(None, help="Count tokens with this tokenizer of the workspace."),
    config: Path | None = typer.Option(None, "--config", "-c", help="A YAML file of settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, as field=value."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Read files into a dataset, without duplicates and, unless told otherwise, without personal data.

    Files that cannot be read are named and skipped; then the exit code is 1.
    """
    from yunque.configuration import resolve
    from yunque.data import prepare
    from yunque.workspace import Workspace

    anonymize = False if keep_personal_data else None
    resolved = resolve(prepare.AddSettings, config, settings, anonymize=anonymize, tokenizer=tokenizer)
    workspace = Workspace.open()
    artifact, card = prepare.add(workspace, name, paths, resolved, bars)
    for part in card["skipped"]:
        warn(f"skipped {part['file']}: {part['reason']}")
    emit({"ref": artifact.ref, "card": card}, as_json, lambda console: _show_card(console, artifact, card))
    if card["skipped"]:
        raise typer.Exit(1)


@app.command()
def show(
    ref: str = REF,
    rows: int = typer.Option(3, help="How many of the first rows to print.", min=0),
    as_json: bool = JSON_OPTION,
) -> None:
    """Print the card of a dataset and its first rows."""
    from itertools import islice

    from yunque.data.dataset import read_card, read_rows
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    artifact = workspace.get(ref, "dataset")
    if "format" in artifact.config:
        show_rows(workspace, artifact, rows, as_json)
        return
    card = read_card(workspace, artifact)
    first = list(islice(read_rows(workspace, artifact), rows))

    def render(console: Console) -> None:
        _show_card(console, artifact, card)
        for row in first:
            console.print(
                f"\n{row.id}  {row.language}  {row.source.file}  {row.source.locator}",
                style="dim",
                markup=False,
            )
            console.print(row.text, markup=False)

    emit({"ref": artifact.ref, "card": card, "rows": [row.as_dict() for row in first]}, as_json, render)


@app.command()
def anonymize(ref: str = REF, as_json: bool = JSON_OPTION) -> None:
    """Replace the personal data of a dataset by pseudonyms, as its next version.

    Numbers, accounts and addresses that a rule can check are found; names of persons and postal addresses are not.
    """
    from yunque.data import prepare
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    _show_result(workspace, prepare.anonymize(workspace, ref, bars), as_json)


@app.command()
def split(
    ref: str = REF,
    train: float | None = typer.Option(None, help="Share of the groups for training (0.9)."),
    validation: float | None = typer.Option(None, help="Share for validation (0.05)."),
    test: float | None = typer.Option(None, help="Share for the test (0.05)."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Divide a dataset into train, validation and test, as its next version; near duplicates stay together."""
    from yunque.configuration import resolve
    from yunque.data import prepare
    from yunque.data.split import SplitSettings
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    settings = resolve(SplitSettings, train=train, validation=validation, test=test)
    _show_result(workspace, prepare.split(workspace, ref, settings, bars), as_json)


@app.command("list")
def list_datasets(as_json: bool = JSON_OPTION) -> None:
    """List the datasets of the workspace."""
    from yunque.data.instruction_card import split_sizes
    from yunque.workspace import Workspace

    found = Workspace.open().list("dataset")
    columns = ("rows", "characters", "tokens", "tasks")
    values = [{"ref": item.ref, "created": item.created, **item.figures} for item in found]

    def render(console: Console) -> None:
        if not found:
            note("no dataset yet: make one with `yunque data add PATH --name NAME`")
            return
        cells = []
        for item in found:
            splits, figures = split_sizes(item), dict(item.figures)
            if splits:
                figures["rows"] = sum(splits.values())
            if "clusters" in figures:
                figures["tasks"] = figures["trained_tasks"] + figures["unseen_tasks"]
            told = [f"{figures[key]:,}" if key in figures else "" for key in columns]
            held = ", ".join(f"{count:,} {split}" for split, count in splits.items())
            cells.append((item.ref, *told, held, item.created))
        console.print(table("", ("dataset", *columns, "splits", "made"), cells, right=columns))

    emit(values, as_json, render)


def _show_result(workspace: "Workspace", artifact: "Artifact", as_json: bool) -> None:
    from yunque.data.dataset import read_card

    card = read_card(workspace, artifact)
    emit({"ref": artifact.ref, "card": card}, as_json, lambda console: _show_card(console, artifact, card))


def _show_card(console: Console, artifact: "Artifact", card: dict[str, Any]) -> None:
    counted = ("rows", "characters", "tokens")

    def counts(title: str, values: dict[str, int]) -> tuple[str, ...]:
        return (title, *(f"{values[key]:,}" for key in counted))

    lines = [counts("all", card)]
    lines += [counts(f"language {name}", values) for name, values in card["languages"].items()]
    lines += [counts(f"split {name}", values) for name, values in card["splits"].items()]
    console.print(table(artifact.ref, ("", *counted), lines, right=counted))
    duplicates, personal = card["duplicates_dropped"], card["personal_data"]
    found = ", ".join(f"{count:,} {kind}" for kind, count in personal["found"].items()) or "none"
    replaced = "replaced by pseudonyms" if personal["replaced"] else "kept as it is"
    for title, value in (
        ("Tokens are", card["token_unit"]),
        ("Files read", f"{card['files_read']:,}"),
        ("Files or parts of files skipped", f"{len(card['skipped']):,}"),
        ("Duplicates dropped", f"{duplicates['exact']:,} exact, {duplicates['near']:,} near"),
        ("Personal data found", f"{found} ({replaced})"),
    ):
        console.print(f"{title}: {value}", markup=False)
