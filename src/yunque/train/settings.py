"""Settings that every objective shares, and the learning rate of a step."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from yunque.configuration import Settings
from yunque.processes import world_size

Precision = Literal["float32", "bfloat16"]


class OptimizerSettings(Settings):
    """AdamW with decay on matrices only, or Muon, whose `momentum` is for the matrices of layers (see optimizer.py).

    The rate warms up linearly. Then it falls along a cosine to a share of its peak, or, as a `trapezoid`, stays there
    and falls along a straight line over the last `decay_share` of the steps (Hagele et al. 2024, arXiv:2405.18392).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    decay_share: float = Field(default=0.4, ge=0, le=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    final_share: float = Field(default=0.05, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if self.schedule == "trapezoid":
            left = min(1.0, (steps - step) / max(1, round(self.decay_share * steps)))
        else:
            left = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * left)


class LoopSettings(Settings):
    """What the loop needs to know, whatever the objective.

    A checkpoint is written every `checkpoint_every` steps, and sooner where these take more than
    `checkpoint_seconds` (or than fifty times what writing one took); when it is written changes nothing in the
    result. `precision` "auto" takes bfloat16 for matrix products where a short measurement finds it quicker.
    With `micro_batch_size` a step's batch is read that many rows at a time, which takes less memory and gives
    the same step. `tensorboard` writes an event file beside the log.

    `parallel` says how several processes (torchrun) share a model, `device` "auto" takes a GPU where there is
    one, and `compile` has torch compile the layers, which pays on a GPU. None of the three is part of what a
    run is: it may go on with others.
    """

    optimizer: OptimizerSettings = OptimizerSettings()
    checkpoint_every: int = Field(default=50, ge=1)
    checkpoint_seconds: float = Field(default=5.0, gt=0)
    validate_every: int = Field(default=100, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    precision: Literal["auto"] | Precision = "auto"
    seed: int = Field(default=0, ge=0)
    parallel: Literal["ddp", "fsdp"] = Field(default="ddp", exclude=True)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", exclude=True)
    compile: bool = Field(default=False, exclude=True)
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check_parallel(self) -> Self:
        if self.parallel == "fsdp" and self.optimizer.kind == "muon":
            raise ValueError(
                "parallel=fsdp cuts matrices into pieces and optimizer.kind=muon needs them whole: "
                "take parallel=ddp, or optimizer.kind=adamw"
            )
        return self

    def rows_at_once(self, batch_size: int) -> int:
        """Rows of a step that a process reads at once: of several processes each reads its share."""
        return min(self.micro_batch_size or batch_size, -(-batch_size // world_size()))
