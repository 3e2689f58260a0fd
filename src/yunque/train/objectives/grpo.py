"""Group relative policy optimization: several answers to a prompt, each judged by how it does among them.

Shao et al. 2024 (arXiv:2402.03300): an answer's advantage, the same for each of its tokens, is its reward less
the mean of its group, divided by the group's standard deviation. There are no values to learn. The divergence
from the reference (k3) is part of the loss.

Shapes: B answers, N tokens of all the answers one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from yunque.configuration import Settings
from yunque.model import LanguageModel
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.ppo import clipped_policy_losses
from yunque.train.objectives.rollouts import Rollouts, k3, read_answers, rollout_parts
from yunque.train.objectives.written import per_answer

# Added to a standard deviation: in a group where all earn the same, nobody has an advantage.
_SMALLEST_DEVIATION = 1e-4


class GrpoLoss(Settings):
    """`kl_coefficient` is what a nat away from the reference costs (beta); ratios may change by `clip` before
    it stops to pay."""

    kl_coefficient: float = Field(default=0.04, ge=0)
    clip: float = Field(default=0.2, gt=0)


def group_advantages(rewards_B: Tensor, group: int) -> Tensor:
    """The advantage [B] of each answer; each `group` of them after one another is to the same prompt. They sum
    to 0."""
    groups = rewards_B.double().view(-1, group)
    centred = groups - groups.mean(dim=1, keepdim=True)
    deviation = groups.std(dim=1, keepdim=True)
    return (centred / (deviation + _SMALLEST_DEVIATION)).view(-1).to(rewards_B.dtype)


def answer_means(values_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean [B] over the tokens of each answer."""
    return per_answer(values_N, lengths) / torch.tensor(lengths, device=values_N.device)


@dataclass
class GroupRelativePolicy:
    """The mean over answers, which the model wrote, of the mean loss over their tokens."""

    rollouts: Rollouts
    settings: GrpoLoss

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The answers of a step; the first one of a rollout has the model write them."""
        return rollout_parts(self.rollouts.parts(model, step), self.rollouts, by_token=False)

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over answers. Figures: those of the rollout; the mean ratio and the share of clipped ones."""
        settings, rollouts, rollout = self.settings, self.rollouts, self.rollouts.current
        rows, lengths = list(part.batch), rollout.lengths[list(part.batch)].tolist()
        now_N, _ = read_answers(model, rollouts.written(rows))
        device = now_N.device
        advantages_B = group_advantages(rollout.rewards, rollouts.plan.answers)[rows]
        advantages_N = torch.repeat_interleave(advantages_B, torch.tensor(lengths)).to(device)
        before_N = rollouts.of_rows(rollout.log_probabilities, rows).to(device)
        reference_N = rollouts.of_rows(rollout.reference, rows).to(device)
        ratio_N = (now_N - before_N).exp()
        losses_N = clipped_policy_losses(ratio_N, advantages_N, settings.clip)
        losses_N = losses_N + settings.kl_coefficient * k3(now_N, reference_N)
        figures = {
            **rollout.figures(),
            "ratio": ratio_N.detach().mean(),
            "clipped": ((ratio_N.detach() - 1).abs() > settings.clip).float().mean(),
        }
        return PartLoss(answer_means(losses_N, lengths).mean(), figures)

    def validation_loss(self, model: LanguageModel) -> float | None:
        """None: the loss says nothing about how good answers are."""
        del model
        return None

    def state(self) -> dict[str, Tensor]:
        """The rollout under way."""
        return self.rollouts.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on with a rollout."""
        self.rollouts.restore(state)
