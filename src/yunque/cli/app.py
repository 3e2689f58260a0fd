"""`yunque app`: make, check, keep and run applications."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit, note, table
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.answer import AppAnswer
    from yunque.apps.app import App
    from yunque.apps.definition import AppDefinition
    from yunque.workspace import Workspace

app = typer.Typer(help="Make, check, keep and run applications.", no_args_is_help=True)


@app.command()
def new(
    name: str = typer.Argument(help="The app's name; its file is NAME.yaml."),
    kind: str = typer.Option("documents", help="What it does: documents, prompt, agent or chain."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Write a file to begin with, with a word about each field."""
    from yunque.apps.starting import starting_file
    from yunque.workspace.artifact import checked_name

    checked_name(name)
    path = Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(starting_file(name, kind))
    except FileExistsError:
        raise UserError(f"{path}: is there already; give the app another name, or remove it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    emit({"file": str(path), "kind": kind}, as_json, lambda console: console.print(escape(str(path))))
    note(f"change it, then: yunque app check {path}")


@app.command()
def check(
    file: Path = typer.Argument(help="The app's YAML file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Read an app's file without keeping it, and tell everything that is wrong with it, with its line."""
    from yunque.apps.definition import read_definition
    from yunque.workspace import Workspace

    definition = read_definition(file, Workspace.open())
    checks = ", ".join(f"{one.check} ({'+'.join(one.stages)})" for one in definition.guards)
    emit(
        definition.model_dump(mode="json", by_alias=True),
        as_json,
        lambda console: console.print(
            f"{escape(str(file))}: [bold]{escape(definition.name)}[/] is right; guards: {checks}"
        ),
    )


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
        rows.append((artifact.ref, definition.kind, _models(definition), ", ".join(artifact.parents), said))
    columns = ("app", "kind", "model", "made of", "description")
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
    values = definition.model_dump(mode="json", by_alias=True)
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    emit({"ref": artifact.ref, **values}, as_json, lambda console: console.print(escape(text), end=""))


@app.command()
def run(
    app_name: str = typer.Argument(metavar="APP", help="A YAML file, or an app of the workspace."),
    question: str | None = typer.Argument(
        None, help="What to ask; without it, standard input or a conversation."
    ),
    model: str | None = typer.Option(None, "--model", "-m", help="Asked in the place of the app's own."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Ask an app from its file (which is kept first), or talk with it."""
    from yunque.apps.kept import add_app
    from yunque.cli.ask import answered, read_stdin
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    if app_name.endswith((".yaml", ".yml")):
        app_name = add_app(workspace, Path(app_name)).ref
    if question is None and sys.stdin.isatty():
        _talk(workspace, app_name, model)
    else:
        answered(workspace, app_name, question or read_stdin(), model, as_json)


@app.command()
def pending(
    name: str = typer.Argument(help="The app: NAME or NAME@VERSION."), as_json: bool = JSON_OPTION
) -> None:
    """The calls of tools that wait for a person to agree, with what each would be called with."""
    import json

    from yunque.guard import open_app
    from yunque.workspace import Workspace

    found = open_app(Workspace.open(), name).waiting()
    rows = [
        (
            one["run"],
            one["call"],
            one["tool"],
            json.dumps(one["arguments"], ensure_ascii=False),
            one["reason"],
            one["since"],
        )
        for one in found
    ]
    columns = ("run", "call", "tool", "arguments", "why", "since")
    emit(found, as_json, lambda console: console.print(table("", columns, rows)))


@app.command()
def decide(
    name: str = typer.Argument(help="The app: NAME or NAME@VERSION."),
    run: str = typer.Argument(help="The run that waits, as `yunque app pending` shows it."),
    call: str = typer.Argument(help="The call that it waits with, as shown there."),
    yes: bool | None = typer.Option(None, "--yes/--no", help="Whether it may be made.", show_default=False),
    model: str | None = typer.Option(None, "--model", "-m", help="Asked in the place of the app's own."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Agree to a call that waits, or refuse it, and let the app go on to its answer."""
    if yes is None:
        raise UserError("say --yes or --no")
    opened = _opened_as_of(name, run)
    _answer(lambda: opened.decide(run, call, yes, model), as_json)


@app.command()
def resume(
    name: str = typer.Argument(help="The app: NAME or NAME@VERSION."),
    run: str = typer.Argument(
        help="A run of its agent that was broken off, as `yunque agent runs` shows it."
    ),
    model: str | None = typer.Option(None, "--model", "-m", help="Asked in the place of the app's own."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Go on with a run of an app's agent that was killed, or whose model was away."""
    opened = _opened_as_of(name, run)
    _answer(lambda: opened.resume(run, model), as_json)


def _opened_as_of(name: str, run: str) -> "App":
    """The app in the version that a run was begun with: another one would ask otherwise."""
    from yunque.apps.agents import AgentRunner
    from yunque.guard import open_app
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    begun_with, _, _ = AgentRunner(workspace).journal.run(run).origin.partition(" ")
    return open_app(workspace, name if "@" in name else begun_with or name)


def _answer(ask: Callable[[], "AppAnswer"], as_json: bool) -> None:
    from yunque.cli.ask import show_answer
    from yunque.llm.face import ModelUnavailable

    try:
        answer = ask()
    except ModelUnavailable as error:
        raise UserError(str(error)) from None
    emit(answer.as_dict(), as_json, lambda console: show_answer(console, answer))


def _talk(workspace: "Workspace", app_name: str, model: str | None) -> None:
    """Question after question, until the input ends."""
    from yunque.cli.ask import show_answer
    from yunque.cli.show import complain, out
    from yunque.guard import open_app
    from yunque.llm.face import Message, ModelUnavailable

    opened = open_app(workspace, app_name, model)
    history: list[Message] = []
    conversation: str | None = None
    note("an empty line ends the conversation")
    while question := _line():
        try:
            # Where the app keeps the conversation, it knows what came before.
            answer = opened.answer(
                question, history=() if conversation else history, conversation=conversation
            )
        except (ModelUnavailable, UserError) as error:
            complain(str(error))
            continue
        show_answer(out(), answer)
        conversation = dict(answer.details).get("conversation")
        history += [Message("user", question), Message("assistant", answer.text)]


def _line() -> str:
    try:
        return Console(stderr=True).input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _models(definition: "AppDefinition") -> str:
    named = [step["model"] for step in definition.steps if isinstance(step.get("model"), str)]
    models = [definition.model] if definition.model else named
    return ", ".join(dict.fromkeys(models)) or ("quotations" if definition.knowledge else "--model")
