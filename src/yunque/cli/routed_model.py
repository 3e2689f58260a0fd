"""The model that a command asks: asked again where that may help, charged to the budget `all`, and measured."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yunque.llm.face import LanguageModel
    from yunque.workspace import Workspace


def routed_model(workspace: "Workspace", name: str) -> "LanguageModel":
    """The model called `name`. Whoever asks it takes personal data out, or was told to send it."""
    from yunque.llm.policy import WirePolicy
    from yunque.llm.router import RouterSettings
    from yunque.llm.routing import routed

    return routed(workspace, RouterSettings(model=name), WirePolicy(personal_data="send"))
