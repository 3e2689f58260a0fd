"""The blocks that families share beside attention: embeddings, norms, feed-forward layers, fresh weights.

Shapes: B batch, T positions, D hidden_size, F intermediate_size, V vocab_size.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _written_out_gelu(x: Tensor) -> Tensor:
    # As GPT-2 and T5 were trained with it. `_tanh_gelu` is a little quicker and rounds otherwise, and where the inner
    # numbers are large, as in T5, logits then differ by more than 1e-5.
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def _sigmoid_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _written_out_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _sigmoid_gelu,
    "relu": F.relu,
    "relu2": _squared_relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "linear": _linear,
}


class Embedding(nn.Module):
    """The table of token vectors: it reads tokens at the bottom and, where it is tied, scores them at the top
    (Press and Wolf 2016, arXiv:1608.05859)."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Vectors [B, T, D] of tokens [B, T]."""
        return F.embedding(input_ids_BT, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of every token after `hidden` [..., D]."""
        return F.linear(hidden, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape [..., D], normalized over D."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """Two matrices with an activation between them (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        changed: Tensor = self.down(self.activation(self.up(x_BTD)))
        return changed


class GatedFeedForward(nn.Module):
    """A feed-forward layer whose inner numbers are multiplied by a gate: SwiGLU, GEGLU (Shazeer 2020,
    arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        changed: Tensor = self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
        return changed


def replace_layers(model: nn.Module, others: Mapping[Any, nn.Module]) -> None:
    """Put other layers in the place of some, wherever these are: one that is in two places stays one."""
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if layer in others:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, others[layer])


@torch.no_grad()
def initialize_weights(
    model: nn.Module, deviation: float, num_layers: int, generator: torch.Generator | None
) -> None:
    """Draw every matrix of `model` from a normal distribution; biases become 0 and gains stay 1."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            # Layers that write into the residual stream start smaller, so that its size does not grow with depth
            # (Radford et al. 2019, GPT-2).
            last = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            scale = math.sqrt(2 * num_layers) if last else 1.0
            weight.normal_(0.0, deviation / scale, generator=generator)
        elif name.endswith("bias"):
            weight.zero_()
