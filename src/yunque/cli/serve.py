"""`yunque serve`: models and apps behind OpenAI's API."""

import typer

from yunque.cli.show import bytes_of, note


def serve(
    host: str = typer.Option("127.0.0.1", help="The address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="The port to listen on; 0 takes a free one."),
    keys: bool | None = typer.Option(
        None,
        "--keys/--no-keys",
        help="Ask clients for an API key. Needed for every address but this machine's own.",
        show_default=False,
    ),
    model: list[str] = typer.Option(
        [], help="A model or app to open at the start; the others are opened when they are asked for."
    ),
    memory: str | None = typer.Option(
        None,
        help="How much memory open models may take, such as 4GiB. What was used least recently is closed for "
        "what is wanted. Default: 70 % of the machine's.",
        show_default=False,
    ),
    workers: int = typer.Option(32, min=1, max=1000, help="How many requests are answered at once."),
    waiting: int = typer.Option(128, min=0, max=100_000, help="How many more may wait; past that: 429."),
    timeout: float = typer.Option(600.0, min=0.1, help="Seconds a request may take, waiting included."),
    grace: float = typer.Option(
        30.0, min=0.0, help="Seconds that running answers have to end when the server is stopped."
    ),
) -> None:
    """Serve every model and app of the workspace under OpenAI's API, until Ctrl-C."""
    from yunque.server.run import serve as run
    from yunque.server.service import ServeOptions
    from yunque.workspace import Workspace

    options = ServeOptions(
        workers, waiting, timeout, grace, bytes_of(memory, "--memory") if memory is not None else None
    )
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

    run(workspace, host, port, keys, tell, options, model)
    note("stopped")
