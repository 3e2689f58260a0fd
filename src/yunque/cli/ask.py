"""`yunque ask` and `yunque app`: questions to an application, and the applications of the workspace."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.answer import AppAnswer

app = typer.Typer(help="Add, list and check applications.", no_args_is_help=True)

_QUOTE_CHARACTERS = 200


def ask(
    app_name: str = typer.Argument(metavar="APP", help="The app: NAME or NAME@VERSION."),
    question: str | None = typer.Argument(
        None, help="The question; without one it is read from standard input."
    ),
    model: str | None = typer.Option(None, "--model", "-m", help="A local model, or http://HOST/v1#MODEL."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Ask an application; the answer comes with citations, or says that it does not know."""
    from yunque.guard import open_app
    from yunque.llm.face import ModelUnavailable
    from yunque.workspace import Workspace

    if question is None:
        if sys.stdin.isatty():
            raise UserError('no question: yunque ask APP "the question", or pipe it in')
        question = sys.stdin.read()
    try:
        answer = open_app(Workspace.open(), app_name, model).answer(question)
    except ModelUnavailable as error:
        raise UserError(str(error)) from None
    emit(answer.as_dict(), as_json, lambda console: _show(console, answer))


def _show(console: Console, answer: "AppAnswer") -> None:
    console.print(escape(answer.text))
    if answer.citations:
        console.print()
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        if len(quote) > _QUOTE_CHARACTERS:
            quote = quote[: _QUOTE_CHARACTERS - 1] + "…"
        where = escape(f"[{citation.number}] {citation.file} · {citation.locator}")
        console.print(f"[cyan]{where}[/]")
        # With a model the answer is not the quotation, so it is shown.
        if not answer.extractive:
            console.print(f"    [dim]{escape(quote)}[/]")
    if answer.note:
        console.print(f"[dim]{escape(answer.note)}[/]")
    for verdict in answer.verdicts:
        console.print(
            f"[dim]{escape(f'{verdict.check} ({verdict.stage}): {verdict.outcome}, {verdict.evidence}')}[/]"
        )
    console.print(f"[dim]call {answer.call_id} · {escape(answer.model)}[/]")


@app.command()
def add(
    file: Path = typer.Argument(help="The app's YAML file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep an app in the workspace."""
    from yunque.apps.kept import add_app
    from yunque.workspace import Workspace

    artifact = add_app(Workspace.open(), file)
    made_of = f" (on {', '.join(artifact.parents)})" if artifact.parents else ""
    emit(artifact.as_dict(), as_json, lambda console: console.print(f"[bold]{artifact.ref}[/]{made_of}"))


@app.command("list")
def list_apps(as_json: bool = JSON_OPTION) -> None:
    """The apps of the workspace."""
    from yunque.apps.kept import load_definition
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    found = workspace.list("app")
    rows = []
    for artifact in found:
        definition, _ = load_definition(workspace, artifact.ref)
        said = definition.description.get(definition.languages[0], "")
        rows.append(
            (
                artifact.ref,
                definition.model or ("quotations" if definition.knowledge else "--model"),
                ", ".join(artifact.parents),
                said,
            )
        )
    columns = ("app", "model", "made of", "description")
    emit(
        [artifact.as_dict() for artifact in found],
        as_json,
        lambda console: console.print(table("", columns, rows)),
    )


@app.command()
def show(
    name: str = typer.Argument(help="The app: NAME or NAME@VERSION."),
    as_json: bool = JSON_OPTION,
) -> None:
    """An app's definition, defaults filled in."""
    import yaml

    from yunque.apps.kept import load_definition
    from yunque.workspace import Workspace

    definition, artifact = load_definition(Workspace.open(), name)
    values = definition.model_dump(mode="json")
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    emit({"ref": artifact.ref, **values}, as_json, lambda console: console.print(escape(text), end=""))


@app.command()
def check(
    file: Path = typer.Argument(help="The app's YAML file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Read an app's file without keeping it, and tell what is wrong with it."""
    from yunque.apps.definition import read_definition

    definition = read_definition(file)
    checks = ", ".join(f"{one.check} ({'+'.join(one.stages)})" for one in definition.guards)
    emit(
        definition.model_dump(mode="json"),
        as_json,
        lambda console: console.print(
            f"{escape(str(file))}: [bold]{escape(definition.name)}[/] is right; guards: {checks}"
        ),
    )
