"""The blocks that decoder families share: norm, rotary positions, attention with a cache, feed-forward.

Shapes: B batch, T positions of this call, S positions seen so far (cache and this call), D hidden_size,
N query heads, K key-value heads, H head_dim, F intermediate_size, V vocab_size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.model.configuration import LlamaConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape [..., D], normalized over D."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_angles(positions_T: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, H/2] by which rotary positions turn each pair (Su et al. 2021, arXiv:2104.09864)."""
    # float64: at position 100 000 a float32 angle is already wrong in the third decimal.
    exponents_h = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions_T.device) / head_dim
    angles_Th = positions_T.to(torch.float64)[:, None] * theta**-exponents_h
    return angles_Th.cos().float(), angles_Th.sin().float()


def rotate(x_BNTH: Tensor, cos_Th: Tensor, sin_Th: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) of `x_BNTH` by its angle; the pairing is that of Hugging Face checkpoints."""
    first, second = x_BNTH.chunk(2, dim=-1)
    cos_Th, sin_Th = cos_Th.to(x_BNTH.dtype), sin_Th.to(x_BNTH.dtype)
    return torch.cat((first * cos_Th - second * sin_Th, second * cos_Th + first * sin_Th), dim=-1)


class KeyValueCache:
    """Keys and values of the positions seen so far, for each layer; `length` of them are filled.

    Room for `capacity` positions is taken at once. `advance` is called by the model once a forward is over.
    """

    def __init__(self, config: LlamaConfig, batch_size: int, capacity: int, dtype: torch.dtype) -> None:
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        self._keys = [torch.empty(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self._values = [torch.empty(shape, dtype=dtype) for _ in range(config.num_hidden_layers)]

    def extend(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this call's keys and values behind the filled ones; returns all of them, [B, K, S, H]."""
        end = self.length + k_BKTH.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot hold {end}"
        self._keys[layer][:, :, self.length : end] = k_BKTH
        self._values[layer][:, :, self.length : end] = v_BKTH
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` more positions as filled."""
        self.length += count


class Attention(nn.Module):
    """Causal self-attention in which groups of query heads share a key-value head (Ainslie et al. 2023,
    arXiv:2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        queries, keys = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self.query = nn.Linear(config.hidden_size, queries, bias=False)
        self.key = nn.Linear(config.hidden_size, keys, bias=False)
        self.value = nn.Linear(config.hidden_size, keys, bias=False)
        self.output = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """[B, T, D] from [B, T, D].

        `mask` is True where a query may look, broadcast to [B, N, T, S]; without it each position sees itself
        and all before it.
        """
        B, T, _ = x_BTD.shape
        q_BNTH = self.query(x_BTD).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        k_BKTH = self.key(x_BTD).view(B, T, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v_BKTH = self.value(x_BTD).view(B, T, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        q_BNTH, k_BKSH, v_BKSH = rotate(q_BNTH, *angles), rotate(k_BKTH, *angles), v_BKTH
        if cache is not None:
            k_BKSH, v_BKSH = cache.extend(self.layer, k_BKSH, v_BKSH)
        group = self.num_heads // self.num_key_value_heads
        if group > 1:
            # Repeating is quicker on a CPU than enable_gqa, which leaves the flash kernel.
            k_BKSH, v_BKSH = k_BKSH.repeat_interleave(group, 1), v_BKSH.repeat_interleave(group, 1)
        causal = mask is None and T > 1
        mixed_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, is_causal=causal)
        mixed: Tensor = self.output(mixed_BNTH.transpose(1, 2).reshape(B, T, -1))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        changed: Tensor = self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        return changed
