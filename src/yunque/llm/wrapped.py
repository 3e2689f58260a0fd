"""A model inside of another: what a layer around it does not change is still there."""

from typing import Any

from yunque.llm.face import LanguageModel


class Wrapped:
    """What the layers around a model (retries, policy, budget, cache) have in common."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.name = model.name
        self.local = model.local

    def __getattr__(self, ability: str) -> Any:
        # What `copy` asks of an object that has no fields yet must not come back here.
        if ability == "model":
            raise AttributeError(ability)
        return getattr(self.model, ability)

    def ability(self, name: str) -> Any:
        """A method of the model beyond what every model has; raises AttributeError."""
        return getattr(self.model, name)


def can(model: object, ability: str) -> bool:
    """Whether a model, inside of all its layers, has this method."""
    return can(model.model, ability) if isinstance(model, Wrapped) else hasattr(model, ability)
