"""Proximal policy optimization with a reference that is not to be left.

Schulman et al. 2017 (arXiv:1707.06347), applied to answers as Ouyang et al. 2022 (arXiv:2203.02155): each token is an
action; its reward is minus the divergence from the reference, and at the last token what the answer earned is
added. A value is learned for each position; advantages come from generalized advantage estimation (Schulman et
al. 2015, arXiv:1506.02438) and are whitened over the rollout.

Shapes: B answers, N tokens of all the answers one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from yunque.configuration import Settings
from yunque.model import LanguageModel
from yunque.train.objective import Part, PartLoss
from yunque.train.objectives.rollouts import Rollout, Rollouts, k1, k3, read_answers, rollout_parts

_SMALLEST_VARIANCE = 1e-8


class PpoLoss(Settings):
    """`kl_coefficient` is what a nat away from the reference costs, by the estimate `kl_estimator`; `discount` and
    `trace` are gamma and lambda of the advantages; ratios and values may change by their `clip` before it stops
    to pay."""

    kl_coefficient: float = Field(default=0.05, ge=0)
    kl_estimator: Literal["k1", "k3"] = "k1"
    discount: float = Field(default=1.0, ge=0, le=1)
    trace: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)


def token_rewards(rollout: Rollout, settings: PpoLoss) -> Tensor:
    """What each token [N] earns."""
    estimate = k1 if settings.kl_estimator == "k1" else k3
    rewards_N = -settings.kl_coefficient * estimate(rollout.log_probabilities, rollout.reference)
    last_B = rollout.lengths.cumsum(0) - 1
    return rewards_N.index_add(0, last_B, rollout.rewards)


def advantages(
    rewards_N: Tensor, values_N: Tensor, lengths: list[int], discount: float, trace: float
) -> Tensor:
    """How much better each token [N] was than its position's value, by generalized advantage estimation."""
    found = list[Tensor]()
    for rewards, values in zip(torch.split(rewards_N, lengths), torch.split(values_N, lengths), strict=True):
        after = torch.cat((values[1:], values.new_zeros(1)))
        surprises = (rewards + discount * after - values).tolist()
        advantage, own = 0.0, list[float]()
        for surprise in reversed(surprises):
            advantage = surprise + discount * trace * advantage
            own.append(advantage)
        found.append(torch.tensor(own[::-1], dtype=values.dtype))
    return torch.cat(found)


def whitened(values_N: Tensor) -> Tensor:
    """The same numbers with mean 0 and variance 1."""
    return (values_N - values_N.mean()) * torch.rsqrt(values_N.var(correction=0) + _SMALLEST_VARIANCE)


def clipped_policy_losses(ratio_N: Tensor, advantages_N: Tensor, clip: float) -> Tensor:
    """The loss [N] of tokens: minus ratio times advantage, where a ratio further than `clip` from 1 gains nothing."""
    return -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(1 - clip, 1 + clip) * advantages_N)


def clipped_value_losses(values_N: Tensor, before_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """Half the squared error [N] of values, where coming nearer than `clip` to what they were gains nothing."""
    near_N = before_N + (values_N - before_N).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_N - returns_N).square(), (near_N - returns_N).square())


@dataclass
class ProximalPolicy:
    """The mean loss over tokens of answers that the model wrote. The model has a matrix for values
    (`ScoredModel`)."""

    rollouts: Rollouts
    settings: PpoLoss
    _number: int = field(default=-1, init=False)

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The answers of a step; the first one of a rollout has the model write them."""
        parts = rollout_parts(self.rollouts.parts(model, step), self.rollouts, by_token=True)
        if self._number != self.rollouts.current.number:
            self._number = self.rollouts.current.number
            self._advantages_N, self._returns_N = self._estimate(self.rollouts.current)
        return parts

    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        settings, lengths = self.settings, rollout.lengths.tolist()
        rewards_N = token_rewards(rollout, settings)
        advantages_N = advantages(rewards_N, rollout.values, lengths, settings.discount, settings.trace)
        return whitened(advantages_N), advantages_N + rollout.values

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over tokens of the clipped losses of policy and values.

        Figures: those of the rollout; the mean ratio, the share of clipped ones, and the two losses.
        """
        settings, rollout = self.settings, self.rollouts.current
        now_N, values_N = read_answers(model, self.rollouts.written(part.batch))

        def own(values: Tensor) -> Tensor:
            return self.rollouts.of_rows(values, part.batch).to(now_N.device)

        ratio_N = (now_N - own(rollout.log_probabilities)).exp()
        policy_loss = clipped_policy_losses(ratio_N, own(self._advantages_N), settings.clip).mean()
        value_loss = clipped_value_losses(
            values_N, own(rollout.values), own(self._returns_N), settings.value_clip
        ).mean()
        figures = {
            **rollout.figures(),
            "ratio": ratio_N.detach().mean(),
            "clipped": ((ratio_N.detach() - 1).abs() > settings.clip).float().mean(),
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
        }
        return PartLoss(policy_loss + settings.value_coefficient * value_loss, figures)

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
        self._number = -1
