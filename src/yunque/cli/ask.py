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
    conversation: str | None = typer.Option(
        None, "--conversation", "-c", help="Go on with this one, of an app with a memory.", show_default=False
    ),
    subject: str = typer.Option(
        "", help="The person who asks: what is kept can be found and forgotten by it.", show_default=False
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Ask an application; the answer comes with citations, or says that it does not know."""
    from yunque.workspace import Workspace

    if question is None:
        if sys.stdin.isatty():
            raise UserError('no question: yunque ask APP "the question", or pipe it in')
        question = read_stdin()
    answered(Workspace.open(), app_name, question, model, as_json, conversation, subject)


def read_stdin() -> str:
    """What is piped in; raises UserError for what is no UTF-8 text."""
    text = sys.stdin.read()
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError("the standard input is not UTF-8 text")
    return text


def answered(
    workspace: "Workspace",
    app_name: str,
    question: str,
    model: str | None,
    as_json: bool,
    conversation: str | None = None,
    subject: str = "",
) -> None:
    """Ask, and show the answer."""
    from yunque.guard import open_app
    from yunque.llm.face import ModelUnavailable

    try:
        answer = open_app(workspace, app_name, model).answer(
            question, subject=subject, conversation=conversation
        )
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
    if conversation := dict(answer.details).get("conversation"):
        console.print(f"[dim]conversation {conversation}[/]")
    console.print(f"[dim]call {answer.call_id} · {escape(answer.model)}[/]")
