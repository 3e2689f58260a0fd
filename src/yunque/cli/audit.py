"""`yunque audit`: read the audit log and check it."""

from typing import Annotated

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, table

app = typer.Typer(no_args_is_help=True, help="Read and verify the audit log.")


@app.command("verify")
def verify(
    expect: Annotated[
        str | None, typer.Option(help="A head hash kept elsewhere: it must still be in the log.")
    ] = None,
    as_json: bool = JSON_OPTION,
) -> None:
    """Check every line of the audit log and the bytes of every artifact; exit code 1 if anything was changed."""
    from yunque.workspace import Workspace

    found = Workspace.open().verify_audit(expect)

    def render(console: Console) -> None:
        if found.intact:
            console.print(f"[green]The audit log is intact:[/] {found.entries} entries, head {found.head}")
            return
        console.print(f"[bold red]The audit log does not verify:[/] {len(found.problems)} problems")
        for problem in found.problems:
            console.print(f"  {problem}", markup=False)

    emit(
        {"intact": found.intact, "entries": found.entries, "head": found.head, "problems": found.problems},
        as_json,
        render,
    )
    if not found.intact:
        raise typer.Exit(1)


@app.command("show")
def show(
    limit: int = typer.Option(20, "--limit", "-n", min=1, help="How many entries."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Show the newest entries of the audit log."""
    from yunque.workspace import Workspace

    entries = list(Workspace.open().audit.entries())[-limit:]

    def render(console: Console) -> None:
        # A line that somebody damaged is shown with what is left of it; `verify` names it.
        fields = ("seq", "time", "action", "ref", "hash")
        rows = [[str(one.get(field, "?"))[:60] for field in fields] for one in entries]
        console.print(table("", ("entry", "time", "action", "about", "hash"), rows, right=("entry",)))

    emit(entries, as_json, render)
