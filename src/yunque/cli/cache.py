"""`yunque cache`: the answers that are kept, and forgetting what is kept about a person."""

import typer

from yunque.cli.show import JSON_OPTION, emit
from yunque.errors import UserError

app = typer.Typer(help="Show and erase the answers kept for apps with a cache.", no_args_is_help=True)


@app.command()
def show(json: bool = JSON_OPTION) -> None:
    """How many answers are kept, how large they are and from when."""
    from yunque.llm.routing import open_cache
    from yunque.workspace import Workspace

    kept = open_cache(Workspace.open()).kept()
    told = f"{kept.answers} answers, {kept.bytes / 1e6:.1f} MB"
    if kept.oldest:
        told += f", from {kept.oldest} to {kept.newest}"
    emit(kept.as_dict(), json, lambda console: console.print(told if kept.answers else "No answer is kept."))


@app.command()
def forget(
    subject: str = typer.Argument(
        help="A person: as apps name them, or an e-mail address, telephone or number of theirs."
    ),
    json: bool = JSON_OPTION,
) -> None:
    """Erase every answer about a person, down to the bytes of the file."""
    from yunque.llm.routing import open_cache
    from yunque.workspace import Workspace

    if not subject.strip():
        raise UserError("say whose answers to forget")
    workspace = Workspace.open()
    count = open_cache(workspace).forget(subject)
    # Not the name: what is to be forgotten must not stand in the record.
    workspace.record("cache.forget", "cache", answers=count)
    emit({"forgotten": count}, json, lambda console: console.print(f"forgot {count} answers"))


@app.command()
def clear(json: bool = JSON_OPTION) -> None:
    """Erase every answer that is kept."""
    from yunque.llm.routing import open_cache
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    cache = open_cache(workspace)
    count = len(cache)
    cache.clear()
    workspace.record("cache.clear", "cache", answers=count)
    emit({"erased": count}, json, lambda console: console.print(f"erased {count} answers"))
