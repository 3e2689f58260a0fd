"""Direct preference optimization: the better answer is to become likelier than the worse, as against a reference.

Rafailov et al. 2023 (arXiv:2305.18290). With x a prompt, y+ and y- its answers, and h = log(p(y+|x) / r(y+|x)) -
log(p(y-|x) / r(y-|x)) for the model p and the reference r, the loss is

    sigmoid  -(1 - e) log sigmoid(b h) - e log sigmoid(-b h)     e: share of the labels thought to be wrong
    hinge    max(0, 1 - b h)                                     (Zhao et al. 2023, arXiv:2305.10425)
    ipo      (h - 1 / (2 b))^2, with means over tokens in h      (Azar et al. 2023, arXiv:2310.12036)

Shapes: B pairs, P all the pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from yunque.configuration import Settings
from yunque.model import LanguageModel
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.pairs import Pair, PairOrder, mean_figures, pair_parts
from yunque.train.objectives.written import Writer, per_answer, token_log_probabilities, writer_of


class DpoLoss(Settings):
    """`beta` says how dear it is to leave the reference; `label_smoothing` is for the sigmoid alone."""

    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    kind: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"


def dpo_losses(chosen_B: Tensor, rejected_B: Tensor, settings: DpoLoss) -> Tensor:
    """The loss [B] of pairs, from log p - log r of their two answers (for ipo: means over tokens)."""
    margin_B = chosen_B - rejected_B
    if settings.kind == "ipo":
        return (margin_B - 1 / (2 * settings.beta)).square()
    if settings.kind == "hinge":
        return F.relu(1 - settings.beta * margin_B)
    smoothing = settings.label_smoothing
    right_B, wrong_B = F.logsigmoid(settings.beta * margin_B), F.logsigmoid(-settings.beta * margin_B)
    return -(1 - smoothing) * right_B - smoothing * wrong_B


@dataclass
class DirectPreference:
    """The mean loss over pairs. `held_out` pairs are read by no step.

    `reference` [P, 2] holds the reference's log-probabilities of the chosen and the rejected answers, those of
    `held_out` behind those of `pairs`. It is read by every step, and worked out once.
    """

    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    order: PairOrder
    together: int
    settings: DpoLoss
    reference: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._all = [*self.pairs, *self.held_out]
        self.reference = torch.zeros(len(self._all), 2)

    @property
    def _held_out_numbers(self) -> list[int]:
        return list(range(len(self.pairs), len(self._all)))

    @torch.enable_grad()
    def find_reference(self, reference: Writer, advance: Callable[[int], None]) -> Tensor:
        """Their log-probabilities [P, 2] under a model.

        The pairs are read as the first epoch reads them, with the same neighbours (sums of floats depend on what
        shares a batch) and as in training (a quantized matrix rounds less there): so the first loss is what it must
        be, to the bit.
        """
        reference.train()
        found = torch.zeros(len(self._all), 2)
        batches = [self.order.batch(step) for step in range(self.order.batches_per_epoch)]
        for numbers in [*batches, self._held_out_numbers]:
            for part in pair_parts(self._all, numbers, self.together):
                both = self._log_probabilities(reference, part.batch)
                found[list(part.batch)] = torch.stack(both, dim=1).detach().cpu()
                advance(len(part.batch))
        return found

    def _log_probabilities(self, model: Writer, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Those [B] of the chosen and of the rejected answers of some pairs."""
        pairs = [self._all[number] for number in numbers]
        rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        lengths = [len(row.answer) for row in rows]
        sums = per_answer(token_log_probabilities(model, rows), lengths)
        if self.settings.kind == "ipo":
            sums = sums / torch.tensor(lengths, device=sums.device)
        return sums[: len(pairs)], sums[len(pairs) :]

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The pairs of a step."""
        del model
        return pair_parts(self._all, self.order.batch(step), self.together)

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over pairs. Figures: `margin`, how much more the rewards b log(p/r) are for chosen than for
        rejected answers; `accuracy`, the share of pairs where they are more; those rewards themselves."""
        chosen_B, rejected_B = self._log_probabilities(writer_of(model), part.batch)
        reference_B2 = self.reference[list(part.batch)].to(chosen_B.device)
        chosen_B, rejected_B = chosen_B - reference_B2[:, 0], rejected_B - reference_B2[:, 1]
        losses_B = dpo_losses(chosen_B, rejected_B, self.settings)
        margin_B, beta = (chosen_B - rejected_B).detach(), self.settings.beta
        figures = {
            "margin": beta * margin_B.mean(),
            "accuracy": (margin_B > 0).float().mean(),
            "reward_chosen": beta * chosen_B.detach().mean(),
            "reward_rejected": beta * rejected_B.detach().mean(),
        }
        return PartLoss(losses_B.mean(), figures)

    @torch.inference_mode()
    def held_out_figures(self, model: LanguageModel) -> dict[str, float]:
        """Loss, margin and accuracy on the pairs held out; none where there are none."""
        return mean_figures(self, model, pair_parts(self._all, self._held_out_numbers, self.together))

    def validation_loss(self, model: LanguageModel) -> float | None:
        """The mean loss on the pairs held out."""
        return self.held_out_figures(model).get("loss")
