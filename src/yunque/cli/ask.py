"""`yunque ask`: a question to an application."""

import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.answer import AppAnswer
    from yunque.workspace import Workspace

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
    from yunque.workspace import Workspace

    if question is None:
        if sys.stdin.isatty():
            raise UserError('no question: yunque ask APP "the question", or pipe it in')
        question = sys.stdin.read()
    answered(Workspace.open(), app_name, question, model, as_json)


def answered(workspace: "Workspace", app_name: str, question: str, model: str | None, as_json: bool) -> None:
    """Ask, and show the answer."""
    from yunque.guard import open_app
    from yunque.llm.face import ModelUnavailable

    try:
        answer = open_app(workspace, app_name, model).answer(question)
    except ModelUnavailable as error:
        raise UserError(str(error)) from None
    emit(answer.as_dict(), as_json, lambda console: show_answer(console, answer))


def show_answer(console: Console, answer: "AppAnswer") -> None:
    """The answer, what it cites, how it was made and what the checks found."""
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
