"""The optimizer of a run: which weights it moves, and how.

Shapes: M matrices of one shape, R rows, C columns.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from yunque.model import LanguageModel
from yunque.train.settings import OptimizerSettings

# A step X -> a X + b (X X^T) X + c (X X^T)^2 X makes a singular value s into a s + b s^3 + c s^5. Each of these steps
# brings what the one before left of [0.003, 1] as near to 1 as such a step can (Amsel et al. 2025, arXiv:2505.16932).
# Four of them end nearer to 1 than five with the numbers of Jordan et al. (tests/train/test_optimizer.py).
_STEPS = (
    (8.3850, -24.7754, 18.3653),
    (4.0435, -3.0115, 0.5695),
    (3.5055, -2.6266, 0.5257),
    (2.4900, -1.8342, 0.4368),
)
# The root mean square that AdamW's updates have in practice (Liu et al. 2025, arXiv:2502.16982).
_ADAM_RMS = 0.2
# Matrices that give scores, not vectors: theirs are rows for tokens or classes, as an embedding's are.
_HEADS = ("head", "pooler", "score")


def make_optimizer(model: LanguageModel, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101) that decays matrices and leaves gains alone, or Muon."""
    if settings.kind == "muon":
        return Muon(model, settings)
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    gains = [weight for weight in model.parameters() if weight.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def orthogonalized(matrices_MRC: Tensor) -> Tensor:
    """The matrices with their singular values near 1 and their singular vectors as they were: U V^T of U S V^T.

    Newton-Schulz steps in the numbers of the argument, all matrices at once. Values above 0.003 of the matrix's norm
    end within 0.2 of 1; a matrix of zeros stays one.
    """
    x_MRC = matrices_MRC / (matrices_MRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x_MRC.shape[-2] > x_MRC.shape[-1]
    if tall:
        x_MRC = x_MRC.mT  # the smaller square is the cheaper one
    for a, b, c in _STEPS:
        square_MRR = x_MRC @ x_MRC.mT
        change_MRR = torch.baddbmm(square_MRR, square_MRR, square_MRR, beta=b, alpha=c)
        x_MRC = torch.baddbmm(x_MRC, change_MRR, x_MRC, beta=a)
    result: Tensor = x_MRC.mT if tall else x_MRC
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for the matrices of layers; AdamW for embeddings, heads, gains.

    Every direction of a matrix moves as far as any other (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Updates have the size of AdamW's (Liu et al. 2025,
    arXiv:2502.16982), so that one learning rate and one decay serve both kinds.
    """

    def __init__(self, model: LanguageModel, settings: OptimizerSettings) -> None:
        turned = layer_matrices(model)
        inside = {id(weight) for weight in turned}
        others = [weight for weight in model.parameters() if id(weight) not in inside]
        adam = {"turned": False, "betas": (settings.beta1, settings.beta2)}
        groups: list[dict[str, Any]] = [
            {"params": turned, "turned": True, "momentum": settings.momentum},
            {"params": [weight for weight in others if weight.dim() >= 2], **adam},
            {"params": [weight for weight in others if weight.dim() < 2], **adam, "weight_decay": 0.0},
        ]
        defaults = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None, "the loop works gradients out itself"
        for group in self.param_groups:
            weights: list[Tensor] = [weight for weight in group["params"] if weight.grad is not None]
            if group["turned"]:
                self._turn(group, weights)
            else:
                self._adam(group, weights)

    def _turn(self, group: dict[str, Any], weights: Iterable[Tensor]) -> None:
        alike = defaultdict[torch.Size, list[Tensor]](list)
        for weight in weights:
            alike[weight.shape].append(weight)
        for shape, some in alike.items():
            updates_MRC = orthogonalized(torch.stack([self._momentum(weight, group) for weight in some]))
            size = _ADAM_RMS * math.sqrt(max(shape))
            for weight, update_RC in zip(some, updates_MRC, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update_RC, alpha=-group["lr"] * size)

    def _momentum(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's: a look ahead of the running mean of gradients."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        running: Tensor = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(running, group["momentum"])

    def _adam(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros((), device=weight.device),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        gradients: list[Tensor] = [weight.grad for weight in weights if weight.grad is not None]
        beta1, beta2 = group["betas"]
        adamw(
            weights,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def layer_matrices(model: LanguageModel) -> list[Tensor]:
    """The weights of all linear layers but heads: those that turn vectors into vectors."""
    return [
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] not in _HEADS
    ]
