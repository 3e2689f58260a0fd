"""`yunque memory`: the conversations that apps keep, to look at, export and erase."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape

from yunque.cli.show import JSON_OPTION, emit, note, table, warn
from yunque.errors import UserError

if TYPE_CHECKING:
    from yunque.apps.memory.memory import Memory

app = typer.Typer(
    help="List, search, export and erase the conversations that apps keep.", no_args_is_help=True
)

_ID = typer.Argument(help="The conversation, as `yunque memory list` shows it.")
_SUBJECT = typer.Option(None, help="Only conversations of this person.", show_default=False)


@app.command("list")
def list_conversations(subject: str | None = _SUBJECT, as_json: bool = JSON_OPTION) -> None:
    """List the conversations on disk, the latest first. What an app keeps for a session only is not among them."""
    found = _memory().conversations(subject)

    def render(console: Console) -> None:
        rows = [
            (
                one.id,
                one.app,
                one.messages,
                "yes" if one.summary else "",
                _moment(one.updated),
                _moment(one.expires),
            )
            for one in found
        ]
        columns = ("conversation", "app", "messages", "summary", "last message", "expires")
        console.print(table("", columns, rows, right=("messages",)))

    emit([one.as_dict() for one in found], as_json, render)


@app.command()
def show(id: str = _ID, as_json: bool = JSON_OPTION) -> None:
    """Show what was said in a conversation."""
    memory = _memory()
    about, kept = memory.conversation(id), memory.messages(id)

    def render(console: Console) -> None:
        if about.summary:
            until = f"messages {about.summary.first} to {about.summary.last}, by {about.summary.model}"
            console.print(f"[dim]Summary of {escape(until)}:[/] {escape(about.summary.text)}")
        for one in kept:
            said = one.message.content or ", ".join(f"calls {call.name}" for call in one.message.tool_calls)
            console.print(
                f"[bold]{one.number} {one.message.role}[/] [dim]{_moment(one.time)}[/] {escape(said)}"
            )

    emit({**about.as_dict(), "messages": [one.as_dict() for one in kept]}, as_json, render)


@app.command()
def search(
    words: str = typer.Argument(help="What to look for."),
    k: int = typer.Option(10, "-k", help="How many messages.", min=1),
    subject: str | None = _SUBJECT,
    as_json: bool = JSON_OPTION,
) -> None:
    """The messages nearest to some words."""
    found = _memory().search(words, k, subject)
    rows = [(one.conversation, one.number, one.role, _moment(one.time), one.snippet) for one in found]
    columns = ("conversation", "message", "role", "time", "text")
    emit(
        [one.as_dict() for one in found],
        as_json,
        lambda console: console.print(table("", columns, rows, right=("message",))),
    )


@app.command()
def export(
    id: str | None = typer.Argument(None, help="The conversation. Default: all.", show_default=False),
    subject: str | None = _SUBJECT,
    to: Path | None = typer.Option(
        None, help="Write it to this file, for its owner only.", show_default=False
    ),
) -> None:
    """Export conversations as JSON lines, one each."""
    from yunque.workspace.files import atomic_write

    if id and subject:
        raise UserError("export one conversation, or those of a --subject")
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in _memory().export(subject, id)]
    if to is None:
        sys.stdout.write("".join(lines))
        return
    try:
        atomic_write(to, "".join(lines), mode=0o600)
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror})") from None
    note(f"{len(lines)} conversations in {to}")


@app.command()
def erase(
    ids: list[str] = typer.Argument(None, metavar="CONVERSATION...", help="The conversations to erase."),
    subject: str | None = typer.Option(
        None, help="Erase all conversations of this person.", show_default=False
    ),
    as_json: bool = JSON_OPTION,
) -> None:
    """Erase conversations for good: their keys are destroyed and their bytes overwritten."""
    if bool(ids) == bool(subject):
        raise UserError("say which conversations to erase, or --subject PERSON")
    memory = _memory()
    erased = [one.id for one in memory.conversations(subject)] if subject else list(dict.fromkeys(ids))
    wiped = memory.erase(*erased)
    emit(
        {"erased": erased, "wiped": wiped},
        as_json,
        lambda console: console.print(f"erased {len(erased)} conversations"),
    )
    if not wiped:
        warn(
            "somebody is reading the file: what is left there has no key any more; erase anything to overwrite it"
        )


def _memory() -> "Memory":
    from yunque.apps.memory.memory import Memory
    from yunque.workspace import Workspace

    return Memory.open(Workspace.open())


def _moment(time: str) -> str:
    return time[:16].replace("T", " ")
