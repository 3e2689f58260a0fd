"""Caches: what a model keeps of the positions behind it.

Shapes: B batch, T positions of this call, S positions seen so far, K key-value heads, H head_dim.
"""

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What any model keeps between calls; `length` positions are in it. Made by a model's `new_cache`."""

    length: int

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""


class KeyValueCache:
    """Keys and values of the positions seen so far, for each layer; `length` of them are filled.

    Room for `capacity` positions is taken at once. `advance` is called by the model once a forward is over.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int, int],
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """`shape` is (batch size, key-value heads, head_dim)."""
        batch_size, heads, head_dim = shape
        full = (batch_size, heads, capacity, head_dim)
        self.capacity = capacity
        self.length = 0
        self._keys = [torch.empty(full, dtype=dtype, device=device) for _ in range(num_layers)]
        self._values = [torch.empty(full, dtype=dtype, device=device) for _ in range(num_layers)]

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

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            self._keys[layer], self._values[layer] = (
                keys.index_select(0, rows_B),
                values.index_select(0, rows_B),
            )


class EncoderDecoderCache(KeyValueCache):
    """A decoder's cache. In `memory` are the keys and values of the source too, worked out once for each layer."""

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int, int],
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(num_layers, shape, capacity, dtype, device)
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""
        super().reorder(rows_B)
        self.memory = {
            layer: (keys.index_select(0, rows_B), values.index_select(0, rows_B))
            for layer, (keys, values) in self.memory.items()
        }
