"""Settings that every objective shares, and the learning rate of a step."""

import math
from typing import Literal

from pydantic import Field

from yunque.configuration import Settings

Precision = Literal["float32", "bfloat16"]


class OptimizerSettings(Settings):
    """AdamW with decay on matrices only; linear warm-up, then a cosine down to a share of the peak."""

    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    final_share: float = Field(default=0.05, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)


class LoopSettings(Settings):
    """What the loop needs to know, whatever the objective.

    A checkpoint is written every `checkpoint_every` steps, and sooner where these take more than
    `checkpoint_seconds`; when it is written changes nothing in the result. `precision` "auto" takes bfloat16 for
    matrix products where a short measurement finds it quicker. With `micro_batch_size` a step's batch is read that
    many rows at a time, which takes less memory and gives the same step.
    """

    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint_every: int = Field(default=50, ge=1)
    checkpoint_seconds: float = Field(default=5.0, gt=0)
    validate_every: int = Field(default=100, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    precision: Literal["auto"] | Precision = "auto"
    seed: int = Field(default=0, ge=0)
