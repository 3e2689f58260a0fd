"""Checks on what goes into an application, what it reads, and what comes out of it."""

from yunque.apps.app import App, load_app
from yunque.guard.guard import CheckList
from yunque.llm.face import LanguageModel
from yunque.workspace import Workspace

__all__ = ["CheckList", "open_app"]


def open_app(workspace: Workspace, ref: str, model: LanguageModel | str | None = None) -> App:
    """The app called `ref`, guarded; `model` replaces the one that it names. This is how every face opens an app."""

    def opened(name: str) -> LanguageModel:
        # Imported when a model is wanted: quoting the documents needs none.
        from yunque.llm.open import open_model

        return open_model(workspace, name)

    return load_app(workspace, ref, CheckList.of, opened, model)
