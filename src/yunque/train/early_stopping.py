"""Early stopping: a run ends when the loss on held-out rows no longer falls, and keeps the best weights it had.

What it knows is part of a checkpoint, the best weights too, so a run that was killed ends with the same bits.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from yunque.configuration import Settings
from yunque.model import LanguageModel
from yunque.train.objective import Objective, Part, PartLoss

_FACTS = "facts"
_WEIGHTS = "weights."


class EarlyStoppingSettings(Settings):
    """A run ends after `patience` measurements in a row that were not lower than the best by more than `min_delta`.

    `share` of the rows are held out for it, where the data has no split `validation`.
    """

    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0)
    share: float = Field(default=0.1, gt=0, lt=1)


class EarlyStopping:
    """Any objective, with an eye on its validation loss. `finished` says that the run is over."""

    def __init__(self, objective: Objective, settings: EarlyStoppingSettings) -> None:
        self._objective, self._settings = objective, settings
        self.best_loss, self.best_step, self._worse = float("inf"), 0, 0
        self._weights: dict[str, Tensor] = {}

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """Those of the objective."""
        return self._objective.parts(model, step)

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """That of the objective."""
        return self._objective.loss(model, part)

    def validation_loss(self, model: LanguageModel) -> float | None:
        """That of the objective."""
        return self._objective.validation_loss(model)

    @property
    def finished(self) -> bool:
        """Whether patience is at its end."""
        return self._worse >= self._settings.patience

    def validated(self, model: LanguageModel, step: int, loss: float) -> None:
        """Take note of a validation loss, after so many steps."""
        if loss < self.best_loss - self._settings.min_delta:
            self.best_loss, self.best_step, self._worse = loss, step, 0
            self._weights = {
                name: weight.detach().clone()
                for name, weight in model.named_parameters()
                if weight.requires_grad
            }
        else:
            self._worse += 1

    def put_best(self, model: LanguageModel) -> None:
        """Give `model` the best weights."""
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in self._weights:
                    weight.copy_(self._weights[name])

    def state(self) -> Mapping[str, Tensor]:
        """For a checkpoint: the facts as float64, and the best weights."""
        facts = torch.tensor([self.best_loss, self.best_step, self._worse], dtype=torch.float64)
        return {_FACTS: facts} | {_WEIGHTS + name: weight for name, weight in self._weights.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.best_loss, step, worse = state[_FACTS].tolist()
        self.best_step, self._worse = int(step), int(worse)
        self._weights = {
            name.removeprefix(_WEIGHTS): weight for name, weight in state.items() if name != _FACTS
        }
