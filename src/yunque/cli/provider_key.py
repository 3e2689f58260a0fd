"""`yunque key set|unset|providers`: the keys that providers of models want, kept sealed in the workspace."""

import os
import sys
from typing import Any

import typer
from rich.console import Console

from yunque.cli.show import JSON_OPTION, emit, note, table

PROVIDER = typer.Argument(help="openai, anthropic, gemini, ollama, vllm, llamacpp, or HOST:PORT of a server.")


def set_key(provider: str = PROVIDER, json: bool = JSON_OPTION) -> None:
    """Keep the key of a provider, read from a prompt that does not show it, or from standard input."""
    from yunque.workspace import Workspace
    from yunque.workspace.provider_keys import ProviderKeys

    name = _checked(provider)
    workspace = Workspace.open()
    if sys.stdin.isatty():
        import getpass

        key = getpass.getpass(f"The key of {name} (it is not shown): ")
    else:
        key = sys.stdin.readline()
    ProviderKeys(workspace.root, workspace.keys).set(name, key)
    workspace.record("key.set", f"provider/{name}")
    emit({"provider": name, "set": True}, json, lambda console: console.print(f"kept the key of {name}"))
    shadowing = _set_in_environment(name)
    if shadowing:
        note(f"{shadowing} is set, too, and comes first")


def unset_key(provider: str = PROVIDER, json: bool = JSON_OPTION) -> None:
    """Forget the key of a provider."""
    from yunque.errors import UserError
    from yunque.workspace import Workspace
    from yunque.workspace.provider_keys import ProviderKeys

    name = _checked(provider)
    workspace = Workspace.open()
    if not ProviderKeys(workspace.root, workspace.keys).unset(name):
        raise UserError(f"the workspace keeps no key of {name}: see `yunque key providers`")
    workspace.record("key.unset", f"provider/{name}")
    emit({"provider": name, "set": False}, json, lambda console: console.print(f"forgot the key of {name}"))


def list_providers(json: bool = JSON_OPTION) -> None:
    """List the providers, and where the key of each comes from; never the key."""
    from yunque.llm.providers import PROVIDERS, base_url_of
    from yunque.workspace import Workspace
    from yunque.workspace.provider_keys import ProviderKeys

    workspace = Workspace.open()
    kept = ProviderKeys(workspace.root, workspace.keys).times()
    found: list[dict[str, Any]] = []
    for name in [*PROVIDERS, *(other for other in kept if other not in PROVIDERS)]:
        provider = PROVIDERS.get(name)
        variable = _set_in_environment(name)
        source = variable or ("workspace" if name in kept else None)
        found.append(
            {
                "provider": name,
                "address": base_url_of(provider) if provider else name,
                "key": source,
                "needed": provider.needs_key if provider else False,
                "set": kept.get(name),
                "variables": list(provider.keys) if provider else [],
            }
        )

    def render(console: Console) -> None:
        rows = [
            (
                each["provider"],
                each["address"],
                each["key"] or ("missing" if each["needed"] else "none needed"),
                str(each["set"] or "")[:16].replace("T", " "),
                " or ".join(each["variables"]),
            )
            for each in found
        ]
        console.print(table("", ("provider", "address", "key", "kept since (UTC)", "variable"), rows))

    emit(found, json, render)


def register(app: typer.Typer) -> None:
    """Add these commands to `yunque key`."""
    app.command("set")(set_key)
    app.command("unset")(unset_key)
    app.command("providers")(list_providers)


def _checked(provider: str) -> str:
    """The name that a key is kept under; raises UserError for one that no model's name has."""
    import difflib
    import re

    from yunque.errors import UserError
    from yunque.llm.providers import PROVIDERS, is_url, provider_of

    if is_url(provider):
        return provider_of(provider)
    name = provider.strip().lower()
    if name in PROVIDERS or re.fullmatch(r"[a-z0-9.-]+:\d{1,5}", name):
        return name
    near = difflib.get_close_matches(name, PROVIDERS, 1)
    hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(PROVIDERS)}, or HOST:PORT"
    raise UserError(f"{provider!r} is not a provider: {hint}")


def _set_in_environment(name: str) -> str | None:
    """The variable that holds the key of a provider, if one does."""
    from yunque.llm.providers import PROVIDERS

    provider = PROVIDERS.get(name)
    variables = provider.keys if provider else ()
    return next((variable for variable in variables if os.environ.get(variable, "").strip()), None)
