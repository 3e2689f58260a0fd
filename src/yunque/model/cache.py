"""Caches: what a model keeps of the positions behind it.

Shapes: B batch, R some rows of it, T positions of this call, S positions seen so far, K key-value heads, H head_dim.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What any model keeps between calls; `length` positions are in it. Made by a model's `new_cache`."""

    length: int

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""


class KeyValueCache:
    """Keys and values [B, K, capacity, H] of the positions seen so far, for each layer; `length` of them are filled.

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
        self.keys = [torch.empty(full, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.empty(full, dtype=dtype, device=device) for _ in range(num_layers)]

    def extend(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Keep this call's keys and values behind the filled ones; returns all of them, [B, K, S, H]."""
        end = self.length + k_BKTH.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} positions cannot hold {end}"
        self.keys[layer][:, :, self.length : end] = k_BKTH
        self.values[layer][:, :, self.length : end] = v_BKTH
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` more positions as filled."""
        self.length += count

    def reorder(self, rows_B: Tensor) -> None:
        """Let row i go on from what row `rows_B[i]` has seen (beam search)."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            self.keys[layer], self.values[layer] = (
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


class RaggedCache(ABC):
    """A cache for rows whose texts are of unequal length, kept elsewhere; it is made for one call of a model.

    `positions_BT` is where each token of the call stands in its text, which is also where its key is in the row's S.
    All rows are read as if they were `span` positions long; who may look where is for a mask to say. `lengths` are
    those of the texts with this call's tokens. Queries may be given in `blocks`: which of the T, and how many
    positions they look at (None is all). Rows beyond those that are read only fill up the batch.

    Of an encoder-decoder it has the sources too, with `source_mask` [B, 1, 1, S].
    """

    positions_BT: Tensor
    span: int
    lengths: Sequence[int]
    blocks: Sequence[tuple[slice, int | None]] = ((slice(None), None),)
    source_mask: Tensor | None = None

    @abstractmethod
    def write(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> None:
        """Keep this call's keys and values."""

    @abstractmethod
    def read(self, layer: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Which rows [R], and the keys and values that they have, [R, K, S or fewer, H]: some rows at a time."""

    @abstractmethod
    def read_source(self, layer: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """The same of the sources that an encoder-decoder's targets look at."""
