"""`yunque serve`: models and apps behind OpenAI's API."""

import typer

from yunque.cli.show import note


def serve(
    host: str = typer.Option("127.0.0.1", help="The address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="The port to listen on; 0 takes a free one."),
    keys: bool | None = typer.Option(
        None,
        "--keys/--no-keys",
        help="Ask clients for an API key. Needed for every address but this machine's own.",
        show_default=False,
    ),
) -> None:
    """Serve every model and app of the workspace under OpenAI's API, until Ctrl-C."""
    from yunque.server.run import serve as run
    from yunque.workspace import Workspace

    workspace = Workspace.open()
    names = [f"app/{app.name}" for app in workspace.list("app")] + [m.name for m in workspace.list("model")]

    def tell(url: str, keys_required: bool) -> None:
        typer.echo(f"Serving {url}")
        typer.echo(f"  models and apps: {', '.join(names) or 'none yet (they appear as they are made)'}")
        who = (
            "a key is needed (`yunque key create NAME`)"
            if keys_required
            else "no key needed, this machine only"
        )
        typer.echo(f"  clients: {who}")
        key = '\n    -H "Authorization: Bearer $YUNQUE_API_KEY" \\' if keys_required else ""
        body = f'{{"model": "{names[0] if names else "NAME"}", "messages": [{{"role": "user", "content": "Hola"}}]}}'
        typer.echo(f"  try: curl {url}/chat/completions \\{key}\n    -d '{body}'")

    run(workspace, host, port, keys, tell)
    note("stopped")
