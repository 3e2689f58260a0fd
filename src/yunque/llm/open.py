"""Opening a model by its name, wherever it runs."""

from yunque.errors import UserError
from yunque.llm.face import LanguageModel
from yunque.workspace import Workspace


def is_url(name: str) -> bool:
    """Whether a model's name is the address of a server."""
    return name.startswith(("http://", "https://"))


def open_model(workspace: Workspace, name: str, most_bytes: int | None = None) -> LanguageModel:
    """The model called `name`: `[model/]NAME[@VERSION]` of the workspace, or `http://HOST/v1#MODEL`, a model behind
    an OpenAI-compatible server.

    One that runs here may take `most_bytes`. Raises UserError when there is no such model or the address is not one.
    A server is not asked anything yet.
    """
    if is_url(name):
        from yunque.llm.openai_compatible import OpenAICompatibleModel

        return OpenAICompatibleModel.from_url(name)
    if "://" in name:
        raise UserError(
            f"{name!r} is not the name of a model: write NAME, model/NAME@VERSION or http://HOST/v1#MODEL"
        )
    # torch is loaded here, so not at the top of the module.
    from yunque.llm.local import LocalModel

    return LocalModel.open(workspace, name, most_bytes)
