"""Opening a model by its name, wherever it runs."""

from typing import TYPE_CHECKING

from yunque.errors import UserError
from yunque.llm.face import LanguageModel
from yunque.llm.providers import PROVIDERS, did_you_mean
from yunque.llm.providers import is_url as is_url
from yunque.workspace import Workspace
from yunque.workspace.artifact import KINDS

if TYPE_CHECKING:
    from yunque.llm.names import RemoteName
    from yunque.llm.remote import RemoteModel
    from yunque.llm.transport import Patience
    from yunque.llm.wire import Wire

_SCRIPTED = "scripted:"


def open_model(workspace: Workspace, name: str, most_bytes: int | None = None) -> LanguageModel:
    """The model called `name`, which may be

    - `[model/]NAME[@VERSION]` or `adapter/NAME` of the workspace,
    - `PROVIDER/MODEL` (openai, anthropic, gemini, ollama, vllm, llamacpp; see `yunque.llm.providers`),
    - `http://HOST/v1#MODEL`, a model behind an OpenAI-compatible server,
    - `scripted:FILE.yaml`, rules instead of a model.

    One that runs here may take `most_bytes`; one elsewhere is asked again where it may answer then. Raises UserError
    when there is no such model. A server is not asked anything yet.
    """
    if name.startswith(_SCRIPTED):
        from pathlib import Path

        from yunque.llm.script_file import read_script

        return read_script(Path(name.removeprefix(_SCRIPTED)), name)
    if _is_remote(name):
        from yunque.llm.retrying import Retrying

        return Retrying(open_remote(workspace, name))
    _check_is_local(workspace, name)
    # torch is loaded here, so not at the top of the module.
    from yunque.llm.local import LocalModel

    return LocalModel.open(workspace, name, most_bytes)


def open_remote(workspace: Workspace | None, name: str, patience: "Patience | None" = None) -> "RemoteModel":
    """The model of a provider or a server, which makes one attempt at each call.

    Its key is looked for at each call: in the environment, then in the workspace. Raises UserError for a name that is
    none, or of the workspace.
    """
    from yunque.llm.names import parse_remote
    from yunque.llm.provider_keys import key_finder
    from yunque.llm.remote import RemoteModel
    from yunque.workspace.provider_keys import ProviderKeys

    at = parse_remote(name)
    if at is None:
        raise UserError(f"{name!r} is not a model of a provider: write for example openai/gpt-4o-mini")
    kept = ProviderKeys(workspace.root, workspace.keys) if workspace else None
    return RemoteModel(at, wire_of(at), key_finder(at, kept), patience)


def wire_of(name: "RemoteName") -> "Wire":
    """The wire that a model's API speaks."""
    from yunque.llm.openai_form import DIALECTS
    from yunque.llm.openai_wire import OpenAIWire

    provider = name.provider
    if provider is None:
        # By its own address OpenAI is what it is by its name.
        hosted = name.base_url == PROVIDERS["openai"].base_url
        return OpenAIWire(name.model, name.name, DIALECTS["openai"] if hosted else None)
    if provider.wire == "anthropic":
        from yunque.llm.anthropic_wire import AnthropicWire

        return AnthropicWire(name.model, name.name)
    if provider.wire == "gemini":
        from yunque.llm.gemini_wire import GeminiWire

        return GeminiWire(name.model, name.name)
    return OpenAIWire(name.model, name.name, DIALECTS[provider.name])


def _is_remote(name: str) -> bool:
    return is_url(name) or (name.partition("/")[0] in PROVIDERS and "/" in name)


def _check_is_local(workspace: Workspace, name: str) -> None:
    """Raises UserError for a name that can be none of the workspace, with the one that may have been meant."""
    first, slash, _ = name.partition("/")
    hint = did_you_mean(name)
    if "://" in name or (slash and first not in KINDS):
        wanted = "write NAME, model/NAME@VERSION, PROVIDER/MODEL or http://HOST/v1#MODEL"
        known = f"providers are {', '.join(PROVIDERS)}"
        raise UserError(f"{name!r} is not the name of a model: {hint or f'{wanted} ({known})'}")
    if hint and not slash and not workspace.find(name):
        raise UserError(f"no model {name!r} in the workspace {workspace.root}: {hint}")
