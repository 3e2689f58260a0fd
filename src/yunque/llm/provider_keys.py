"""Which key goes to which provider: the environment's first, then what `yunque key set` keeps in the workspace.

A key goes to the address of its own provider alone, over https or to this machine.
"""

import os
from collections.abc import Callable
from urllib.parse import urlsplit

from yunque.llm.names import RemoteName
from yunque.llm.providers import PROVIDERS, base_url_of, provider_of
from yunque.workspace.provider_keys import ProviderKeys, checked_key

OWN_SERVERS_KEY = "YUNQUE_API_KEY"


class NoKey(Exception):
    """A provider wants a key and there is none; the message goes on from the model's name."""


def key_finder(name: RemoteName, kept: ProviderKeys | None) -> Callable[[], str]:
    """What tells the key for each call to a model: "" where none is needed and none was found.

    It raises NoKey, and UserError for a key that cannot be one or be opened: of a model that is asked, both are
    ModelUnavailable, since another one may answer.
    """
    return lambda: _key(name, kept)


def _key(name: RemoteName, kept: ProviderKeys | None) -> str:
    provider = name.provider
    if provider is None:
        return _key_of_address(name, kept)
    if not name.base_url.startswith("https:") and not name.on_this_machine:
        return ""
    for variable in provider.keys:
        if value := os.environ.get(variable, "").strip():
            return checked_key(value, f"the API key in {variable}")
    if kept is not None and (found := kept.find(provider.name)):
        return found
    if provider.needs_key:
        raise NoKey(f"needs an API key: {key_advice(name)}")
    return ""


def _key_of_address(name: RemoteName, kept: ProviderKeys | None) -> str:
    """That of the provider whose address it is, of this very address, or of servers of one's own (any address: a
    server of the local network has no certificate, and its owner chose to name it)."""
    safe = name.base_url.startswith("https:") or name.on_this_machine
    if safe:
        for provider in PROVIDERS.values():
            if provider.needs_key and _host(base_url_of(provider)) == _host(name.base_url):
                for variable in provider.keys:
                    if value := os.environ.get(variable, "").strip():
                        return checked_key(value, f"the API key in {variable}")
                if kept is not None and (found := kept.find(provider.name)):
                    return found
        if kept is not None and (found := kept.find(provider_of(name.name))):
            return found
    value = os.environ.get(OWN_SERVERS_KEY, "").strip()
    return checked_key(value, f"the API key in {OWN_SERVERS_KEY}") if value else ""


def key_advice(name: RemoteName) -> str:
    """What to do about a key that is missing or refused."""
    provider = name.provider
    if provider is None:
        return f"set {OWN_SERVERS_KEY}, or run `yunque key set {provider_of(name.name)}`"
    return f"set {provider.keys[0]}, or run `yunque key set {provider.name}`"


def _host(base_url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(base_url)
    return parts.scheme, parts.hostname, parts.port
