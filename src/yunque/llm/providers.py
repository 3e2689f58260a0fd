"""Who can be asked: where each provider is, which key it wants, and what it does with what it is sent."""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from yunque.errors import UserError

WireName = Literal["openai", "anthropic", "gemini"]


@dataclass(frozen=True)
class Provider:
    """A place that models are asked at.

    `keys` and `addresses` are the environment's variables for its key and for another base URL, the first that is set
    counts. `version` is what its base URLs end in. `data_use` says in a sentence what it does with what an API call
    sends, as `data_source` told on the day `data_read`: its default, a contract may say otherwise. `data_rank`:
    0 stays on this machine, 1 goes to a server of your own, 2 is kept for a while, 3 may be used to train, or be read
    by people, 4 is not known.
    """

    name: str
    wire: WireName
    base_url: str
    version: str
    keys: tuple[str, ...]
    addresses: tuple[str, ...]
    data_use: str
    data_use_es: str
    data_rank: int
    data_source: str = ""
    data_read: str = ""
    needs_key: bool = True
    example: str = ""


_OWN = "Runs where you started it; what it keeps is set there."
_OWN_ES = "Funciona donde usted lo arrancó; lo que guarda se decide allí."

PROVIDERS: Mapping[str, Provider] = {
    each.name: each
    for each in (
        Provider(
            "openai",
            "openai",
            "https://api.openai.com/v1",
            "",
            ("OPENAI_API_KEY",),
            ("OPENAI_BASE_URL",),
            "Not used for training unless you opt in; logs for abuse monitoring are kept for up to 30 days.",
            "No se usa para entrenar salvo que usted lo permita; registros contra abusos hasta 30 días.",
            2,
            "https://platform.openai.com/docs/guides/your-data",
            "2026-11-21",
            example="openai/gpt-4o-mini",
        ),
        Provider(
            "anthropic",
            "anthropic",
            "https://api.anthropic.com/v1",
            "/v1",
            ("ANTHROPIC_API_KEY",),
            ("ANTHROPIC_BASE_URL",),
            "Not used for training by default; deleted within 30 days, what is flagged as misuse within 2 years.",
            "No se usa para entrenar por defecto; se borra en 30 días, lo señalado como abuso en 2 años.",
            2,
            "https://privacy.anthropic.com/en/articles/7996866-how-long-do-you-store-personal-data",
            "2026-11-21",
            example="anthropic/claude-sonnet-4-5",
        ),
        Provider(
            "gemini",
            "gemini",
            "https://generativelanguage.googleapis.com/v1beta",
            "/v1beta",
            ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            ("GOOGLE_GEMINI_BASE_URL", "GEMINI_BASE_URL"),
            "Free of charge (outside the EEA, Switzerland and the UK): used to improve products and read by people. "
            "Paid: not used for training; kept for 55 days against abuse.",
            "Gratis (fuera del EEE, Suiza y el Reino Unido): se usa para mejorar productos y lo leen personas. "
            "De pago: no se usa para entrenar; se guarda 55 días contra abusos.",
            3,
            "https://ai.google.dev/gemini-api/terms and https://ai.google.dev/gemini-api/docs/usage-policies",
            "2026-11-21",
            example="gemini/gemini-2.5-flash",
        ),
        Provider(
            "ollama",
            "openai",
            "http://127.0.0.1:11434/v1",
            "/v1",
            ("OLLAMA_API_KEY",),
            ("OLLAMA_HOST",),
            _OWN,
            _OWN_ES,
            1,
            needs_key=False,
            example="ollama/llama3.2",
        ),
        Provider(
            "vllm",
            "openai",
            "http://127.0.0.1:8000/v1",
            "/v1",
            ("VLLM_API_KEY",),
            ("VLLM_BASE_URL",),
            _OWN,
            _OWN_ES,
            1,
            needs_key=False,
            example="vllm/Qwen/Qwen3-8B",
        ),
        Provider(
            "llamacpp",
            "openai",
            "http://127.0.0.1:8080/v1",
            "/v1",
            ("LLAMA_API_KEY",),
            ("LLAMACPP_BASE_URL",),
            _OWN,
            _OWN_ES,
            1,
            needs_key=False,
            example="llamacpp/gemma",
        ),
    )
}
UNKNOWN_RANK = 4
OLLAMA_CLOUD = "ollama.com"
"""Who answers for the models that Ollama passes on."""
_LOCAL_KINDS = ("model", "adapter")
# Names that people write without their provider.
_KNOWN_STARTS = {"gpt-": "openai", "o1": "openai", "o3": "openai", "o4": "openai", "claude": "anthropic"}
_KNOWN_STARTS["gemini"] = "gemini"


def is_url(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def provider_of(name: str) -> str:
    """Who answers for the model called `name`: a provider of the table, `ollama.com` for what Ollama passes on,
    `host:port` for an address, `scripted`, or `local` for a model of the workspace. A name that is none of these
    counts as local."""
    if is_url(name):
        parts = urlsplit(name)
        try:
            port = parts.port
        except ValueError:
            port = None
        return f"{parts.hostname or ''}:{port or (443 if parts.scheme == 'https' else 80)}"
    if name.startswith("scripted:") or name == "scripted":
        return "scripted"
    first, slash, _ = name.partition("/")
    if runs_elsewhere(name):
        return OLLAMA_CLOUD
    return first if slash and first in PROVIDERS else "local"


def runs_elsewhere(name: str) -> bool:
    """Whether a model is passed on by the server of your own that answers for it: Ollama's `...cloud`, to ollama.com.

    It has another's price, and another's word about what becomes of a text.
    """
    if not name.startswith("ollama/"):
        return False
    # With the port, the path and the scheme as OLLAMA_HOST may have them.
    host = os.environ.get("OLLAMA_HOST", "").strip().lower().rpartition("//")[2]
    return name.lower().endswith("cloud") or host.partition("/")[0].partition(":")[0] == OLLAMA_CLOUD


def data_use_of(provider: Provider, name: str, base_url: str) -> Provider:
    """The provider with what holds for this model at this address, which the environment may have set."""
    if runs_elsewhere(name):
        return replace(
            provider,
            data_use="Runs at ollama.com: not used for training; how long it is kept is not said.",
            data_use_es="Funciona en ollama.com: no se usa para entrenar; no se dice cuánto se guarda.",
            data_source="https://docs.ollama.com/cloud",
            data_read="2026-11-22",
            data_rank=2,
        )
    host, usual = urlsplit(base_url).hostname or "", urlsplit(provider.base_url).hostname or ""
    if not provider.needs_key or host == usual or host.endswith(f".{usual}"):
        return provider
    variable = next(
        (each for each in provider.addresses if os.environ.get(each, "").strip()), "the environment"
    )
    return replace(
        provider,
        data_use=f"{variable} sends it to {host} instead: what is kept there, and who is asked, is not known.",
        data_use_es=f"{variable} lo envía a {host}: no se sabe qué se guarda allí ni a quién se pregunta.",
        data_rank=UNKNOWN_RANK,
        data_source="",
        data_read="",
    )


def base_url_of(provider: Provider) -> str:
    """Where the provider is, by the environment or as usual; raises UserError for an address that is none."""
    for variable in provider.addresses:
        if value := os.environ.get(variable, "").strip():
            return _base_url(variable, value, provider)
    return provider.base_url


def _base_url(variable: str, value: str, provider: Provider) -> str:
    """`http://host:port[/path]`, or as OLLAMA_HOST may be: `host`, `host:port`, `0.0.0.0`."""
    usual = urlsplit(provider.base_url)
    try:
        parts = urlsplit(value if "://" in value else f"{usual.scheme}://{value}")
        port = parts.port
    except ValueError:
        raise UserError(f"{variable} is {value!r}, which is not an address: write http://HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UserError(f"{variable} is not an address: write http://HOST:PORT, without a password")
    # Where a server listens on every address, it is reached at this machine's own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname, parts.hostname)
    if "://" not in value and port is None:
        port = usual.port
    path = parts.path.rstrip("/")
    if provider.version and not path.endswith(provider.version):
        path += provider.version
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{path}"


def is_loopback(base_url: str) -> bool:
    """Whether an address is this machine."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def did_you_mean(name: str) -> str:
    """A sentence about what somebody may have meant by a name that nothing has; "" where nothing is near."""
    first, slash, rest = name.partition("/")
    if slash:
        near = difflib.get_close_matches(first.lower(), [*PROVIDERS, *_LOCAL_KINDS], 1, 0.6)
        return f"did you mean {near[0]}/{rest}?" if near else ""
    for start, provider in _KNOWN_STARTS.items():
        if name.startswith(start):
            return f"did you mean {provider}/{name}?"
    return ""


def data_rank_of(provider: Provider, base_url: str) -> int:
    """`data_rank`, or 0 where a server of your own runs on this machine."""
    return 0 if provider.data_rank == 1 and is_loopback(base_url) else provider.data_rank
