"""What a model costs, worked out before it is made: parameters, FLOPs, and bytes to hold it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from yunque.model.configuration import ModelConfig
from yunque.model.language_model import EncoderDecoder
from yunque.model.memory import outline_of, plan_holding
from yunque.model.simulation import play_forward

# A model that nothing limits is counted for texts of this length.
_UNLIMITED_CONTEXT = 1024


@dataclass(frozen=True)
class ModelPlan:
    """Figures of a model; FLOPs count a multiplication and an addition as two, bytes are of tensors only.

    `forward_flops_per_token` is for a full context (of an encoder-decoder: source and target, every token of both).
    `cache_bytes` is the cache of one full context.
    """

    parameters: int
    forward_flops_per_token: int
    weight_bytes: int
    cache_bytes: int

    @property
    def training_flops_per_token(self) -> int:
        """Once forward, twice backward."""
        return 3 * self.forward_flops_per_token


def plan_model(config: ModelConfig) -> ModelPlan:
    """The figures of a model of this shape; takes no memory for it. Raises UserError for one too large to be."""
    held = plan_holding(config)
    outline, parameters = outline_of(config)
    model, length = outline.model, config.context or _UNLIMITED_CONTEXT
    both = isinstance(model, EncoderDecoder)

    def compute() -> Tensor:
        ids_1T = torch.zeros(1, length, dtype=torch.int64)
        scores: Tensor = model(ids_1T, ids_1T) if both else model(ids_1T)
        return scores

    flops = play_forward(outline, compute)
    return ModelPlan(
        parameters=parameters,
        forward_flops_per_token=round(flops / (2 * length if both else length)),
        weight_bytes=held.weight_bytes,
        cache_bytes=held.total(1, length) - held.weight_bytes,
    )
