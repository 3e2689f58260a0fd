"""The models of an app: routed to its fallbacks, under its policy, its budget and its cache."""

from collections.abc import Callable, Sequence
from threading import Lock

from yunque.apps.definition import AppDefinition
from yunque.errors import UserError
from yunque.llm.face import LanguageModel
from yunque.workspace import Workspace

OpenModel = Callable[[str], LanguageModel]

_MOST_KEPT = 64


class AppModels:
    """Opens what an app asks. `ref` is the app's, for what is said to a user. Safe for many threads."""

    def __init__(
        self, workspace: Workspace, definition: AppDefinition, ref: str, open_model: OpenModel | None
    ) -> None:
        self.definition, self.ref = definition, ref
        self._workspace, self._open_model = workspace, open_model
        self._kept: dict[tuple[str, tuple[str, ...], str], LanguageModel] = {}
        self._limited = False
        self._turn = Lock()

    def routed(self, model: LanguageModel | str, who: Sequence[str] = (), subject: str = "") -> LanguageModel:
        """A model with the app's fallbacks behind it; a model that is given as such is asked first, all the same.

        `who` pays for it, with the app (`key/ID`), and gets no answers from the cache that others asked for;
        `subject` is the person asked for, who can have those answers forgotten.
        """
        if not isinstance(model, str):
            return self._made(model.name, tuple(who), subject, model)
        wanted = (model, tuple(who), subject)
        with self._turn:
            if wanted not in self._kept:
                if len(self._kept) >= _MOST_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[wanted] = self._made(model, tuple(who), subject, None)
            return self._kept[wanted]

    def _made(
        self, name: str, who: tuple[str, ...], subject: str, given: LanguageModel | None
    ) -> LanguageModel:
        # Loaded here: quoting the documents needs no model.
        from yunque.llm.policy import WirePolicy
        from yunque.llm.router import RouterSettings
        from yunque.llm.routing import Caller, routed

        definition = self.definition
        self._set_budget()
        return routed(
            self._workspace,
            RouterSettings(model=name, fallbacks=tuple(definition.fallbacks), **dict(definition.routing)),
            WirePolicy(**dict(definition.policy)),
            Caller((f"app/{definition.name}", *who), " ".join(who), subject),
            definition.cache,
            lambda wanted: given if given is not None and wanted == name else self._opened(wanted),
        )

    def _opened(self, name: str) -> LanguageModel:
        from yunque.llm.retrying import Retrying

        if self._open_model is None:
            raise UserError(f"{self.ref}: was opened without a way to open the model {name!r}")
        model = self._open_model(name)
        # The router is the one that asks again.
        return model.model if isinstance(model, Retrying) else model

    def _set_budget(self) -> None:
        """Let the budget that the app's file sets hold, once; the one that an administrator set holds too."""
        from yunque.workspace.budgets import Budgets

        if self._limited:
            return
        # One that was taken out of the file is taken away.
        budget = self.definition.budget
        usd, tokens = (budget.usd_a_day, budget.tokens_a_day) if budget else (None, None)
        Budgets.of(self._workspace.root).set(f"app/{self.definition.name}", usd, tokens, own=True)
        self._limited = True
