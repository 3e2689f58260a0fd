"""`yunque key`: the API keys of the server."""

from dataclasses import asdict

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, note, table

app = typer.Typer(help="Make, list and revoke the API keys of the server.", no_args_is_help=True)


@app.command()
def create(name: str = typer.Argument(help="Who or what the key is for."), json: bool = JSON_OPTION) -> None:
    """Make an API key and print it. It is shown this once: only its hash is kept."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import create_api_key

    workspace = Workspace.open()
    with workspace.catalog.transaction() as connection:
        made, key = create_api_key(connection, name)
        workspace.audit.append(connection, "key.create", f"key/{made.id}", name=name)
    emit({"id": made.id, "name": name, "key": key}, json, lambda console: console.print(key, markup=False))
    note(f"the key {made.id} ({name}) is shown only now; keep it, and use it as YUNQUE_API_KEY")


@app.command("list")
def list_keys(json: bool = JSON_OPTION) -> None:
    """List the keys, without what is secret of them."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import list_api_keys

    keys = list_api_keys(Workspace.open().catalog.connection())

    def render(console: Console) -> None:
        rows = [(key.id, key.name, key.created, key.revoked or "") for key in keys]
        console.print(table("", ("id", "name", "created", "revoked"), rows))

    emit([asdict(key) for key in keys], json, render)


@app.command()
def revoke(
    id: str = typer.Argument(help="The key's id, as `yunque key list` shows it."), json: bool = JSON_OPTION
) -> None:
    """Make a key stop working."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import revoke_api_key

    workspace = Workspace.open()
    with workspace.catalog.transaction() as connection:
        revoke_api_key(connection, id)
        workspace.audit.append(connection, "key.revoke", f"key/{id}")
    emit({"id": id, "revoked": True}, json, lambda console: console.print(f"revoked {id}", markup=False))
