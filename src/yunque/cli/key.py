"""`yunque key`: the API keys of the server; those of providers are in `provider_key`."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, note, table

if TYPE_CHECKING:
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import Terms

app = typer.Typer(help="The API keys of the server, and those of the providers.", no_args_is_help=True)


@app.command()
def create(
    name: str = typer.Argument(help="Who or what the key is for."),
    scope: list[str] = typer.Option(
        [],
        help="What the key may do: models, generate, embeddings, tokenize, metrics. Give it several times for "
        "several. Default: all but metrics.",
        show_default=False,
    ),
    model: list[str] = typer.Option(
        [], help="A model or app that the key is for. Default: all.", show_default=False
    ),
    rate: int | None = typer.Option(None, help="Requests a minute.", show_default=False),
    tokens: int | None = typer.Option(None, help="Tokens a minute, in and out.", show_default=False),
    budget: int | None = typer.Option(None, help="Tokens a day (UTC), in and out.", show_default=False),
    expires: str | None = typer.Option(
        None, help="When it stops working: 30d, 12h, or a date (UTC).", show_default=False
    ),
    json: bool = JSON_OPTION,
) -> None:
    """Make an API key and print it. It is shown this once: only its hash is kept."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import USUAL_SCOPES, Terms, create_api_key, parse_expiry

    workspace = Workspace.open()
    terms = Terms(
        tuple(dict.fromkeys(scope)) or USUAL_SCOPES,
        tuple(dict.fromkeys(_servable(workspace, each) for each in model)),
        rate,
        tokens,
        budget,
        parse_expiry(expires) if expires is not None else None,
    )
    with workspace.catalog.transaction() as connection:
        made, key = create_api_key(connection, name, terms)
        workspace.audit.append(connection, "key.create", f"key/{made.id}", name=name, scopes=terms.scopes)
    emit({**made.as_dict(), "key": key}, json, lambda console: console.print(key, markup=False))
    note(f"the key {made.id} ({name}) is shown only now; keep it, and use it as YUNQUE_API_KEY")


@app.command("list")
def list_keys(json: bool = JSON_OPTION) -> None:
    """List the keys, without what is secret of them, and what each used today."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import key_usage, list_api_keys

    connection = Workspace.open().catalog.connection()
    keys = [(key, key_usage(connection, key.id)) for key in list_api_keys(connection)]

    def render(console: Console) -> None:
        rows = [
            (
                key.id,
                key.name,
                key.state,
                ", ".join([*key.terms.scopes, *key.terms.models]),
                _limits(key.terms) or "none",
                used.requests,
                used.tokens,
                _moment(key.last_used),
                _moment(key.terms.expires),
            )
            for key, used in keys
        ]
        columns = ("id", "name", "state", "good for", "limits", "requests", "tokens", "last used", "expires")
        console.print(table("", columns, rows, right=("requests", "tokens")))
        console.print("Requests and tokens are today's; days and times are UTC.")

    emit(
        [
            {**key.as_dict(), "requests_today": used.requests, "tokens_today": used.tokens}
            for key, used in keys
        ],
        json,
        render,
    )


@app.command()
def revoke(
    id: str = typer.Argument(help="The key's id, as `yunque key list` shows it."), json: bool = JSON_OPTION
) -> None:
    """Make a key stop working, at once and in every server; answers that are under way end within seconds."""
    from yunque.workspace import Workspace
    from yunque.workspace.api_keys import revoke_api_key

    workspace = Workspace.open()
    with workspace.catalog.transaction() as connection:
        revoke_api_key(connection, id)
        workspace.audit.append(connection, "key.revoke", f"key/{id}")
    emit({"id": id, "revoked": True}, json, lambda console: console.print(f"revoked {id}", markup=False))


def _limits(terms: "Terms") -> str:
    limits = {
        "requests/min": terms.requests_a_minute,
        "tokens/min": terms.tokens_a_minute,
        "tokens/day": terms.tokens_a_day,
    }
    return ", ".join(f"{limit} {what}" for what, limit in limits.items() if limit)


def _moment(time: str | None) -> str:
    return time[:16].replace("T", " ") if time else "never"


def _servable(workspace: "Workspace", name: str) -> str:
    """The model, adapter or app that a client would reach by this name, as `kind/name`."""
    from yunque.errors import UserError
    from yunque.workspace.artifact import parse_ref

    asked = parse_ref(name)
    if asked.version is not None:
        raise UserError(
            f"--model {name}: a key is for all versions of a model; leave out the @{asked.version}"
        )
    for kind in ("model", "adapter", "app"):
        if asked.kind in (None, kind) and workspace.find(f"{kind}/{asked.name}"):
            return f"{kind}/{asked.name}"
    raise UserError(f"--model {name}: the workspace has no model, adapter or app of this name")
