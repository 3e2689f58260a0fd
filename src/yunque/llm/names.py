"""The name of a model that runs elsewhere, taken apart: `openai/gpt-4o-mini`, `ollama/llama3.2`, `http://HOST/v1#M`."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from yunque.errors import UserError
from yunque.llm.providers import PROVIDERS, Provider, base_url_of, data_use_of, is_loopback, is_url


@dataclass(frozen=True)
class RemoteName:
    """Where a model is and what it is called there. `provider` is None for an address that somebody wrote out."""

    name: str
    base_url: str
    model: str
    provider: Provider | None = None

    @property
    def on_this_machine(self) -> bool:
        """Whether its address is this machine."""
        return is_loopback(self.base_url)


def parse_remote(name: str) -> RemoteName | None:
    """The name taken apart, or None for one of the workspace; raises UserError for an address that is none."""
    if is_url(name):
        return _parse_url(name)
    first, slash, model = name.partition("/")
    provider = PROVIDERS.get(first) if slash else None
    if provider is None:
        return None
    if (
        not model.strip()
        or not model.isprintable()
        or any(mark in model for mark in "?#\\ ")
        or ".." in model
    ):
        raise UserError(f"{name!r} names no model of {provider.name}: write for example {provider.example}")
    base_url = base_url_of(provider)
    if provider.needs_key and not base_url.startswith("https://") and not is_loopback(base_url):
        raise UserError(
            f"{provider.addresses[0]} is {base_url}, where a key would travel in the clear: use https"
        )
    return RemoteName(name, base_url, model, data_use_of(provider, name, base_url))


def _parse_url(url: str) -> RemoteName:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError(f"{url!r} is not an address: write http://HOST:PORT/v1#MODEL") from None
    if parts.username is not None or parts.query:
        raise UserError(
            "a model's address holds no password and no '?': keep the key with `yunque key set HOST:PORT`"
        )
    if not parts.hostname or not parts.fragment:
        raise UserError(f"{url!r} names no model: write http://HOST:PORT/v1#MODEL")
    base_url = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    return RemoteName(f"{base_url}#{parts.fragment}", base_url, parts.fragment)
