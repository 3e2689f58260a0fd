"""The cache that a model sees of texts whose keys and values are in a pool.

Shapes: B rows of a call, R some of them, T positions of a row, M blocks of a text, S positions seen (16 M), N
tokens, K key-value heads, H head_dim.

What comes out for a row is, to the last bit where floats are added up in the same way, what would come out for it
alone. Rows are filled up to a multiple of 16: libraries multiply fewer with other kernels, and take numbers that do
not fill whole vectors with other functions. A text is always seen in whole blocks: sums over a multiple of 16
positions do not change with zeros behind them. On a CPU a prompt's queries are looked at in blocks that begin at
multiples of 32, however the prompt was cut.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from yunque.generate.block_pool import BLOCK_SIZE, BlockPool, blocks_for
from yunque.model.cache import RaggedCache

QUERY_BLOCK = 32
"""Positions of a prompt that are looked at together."""

ROWS = 16
"""A batch has a multiple of so many rows."""

# Rows are read together while that takes no more places than this, or twice what it must.
_MOST_SLOTS = 2**16


@dataclass(frozen=True)
class Row:
    """One token to be read: where it stands in a text, and the blocks of that."""

    blocks: Sequence[int]
    position: int


@dataclass(frozen=True)
class _Gathering:
    """Rows [R] that are read together; `lines` [R * K * M] says where their blocks lie in a pool, head by head."""

    rows_R: Tensor
    lines: Tensor
    blocks: int


class _Table:
    """Where the keys and values of some texts lie; each text has some blocks, and is `lengths` positions long."""

    def __init__(self, pool: BlockPool, blocks: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        self._pool = pool
        self.span = max(map(blocks_for, lengths)) * BLOCK_SIZE
        self._parts = [self._gather(blocks, lengths, rows) for rows in _alike(lengths)]

    def _gather(
        self, blocks: Sequence[Sequence[int]], lengths: Sequence[int], rows: Sequence[int]
    ) -> _Gathering:
        keys = self._pool.keys[0]
        heads, device = keys.shape[1], keys.device
        longest = max(blocks_for(lengths[row]) for row in rows)
        # Beyond the end of a text its own first block is read, and masked.
        filled = [_filled(blocks[row], longest) for row in rows]
        table_RM = torch.tensor(filled, device=device)
        lines_RKM = table_RM[:, None] * heads + torch.arange(heads, device=device)[:, None]
        return _Gathering(torch.tensor(rows, device=device), lines_RKM.flatten(), longest)

    def read(self, layer: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, keys and values, some rows at a time (see `RaggedCache.read`)."""
        for part in self._parts:
            yield (
                part.rows_R,
                self._lines(self._pool.keys[layer], part),
                self._lines(self._pool.values[layer], part),
            )

    def _lines(self, numbers: Tensor, part: _Gathering) -> Tensor:
        heads, head_dim = numbers.shape[1], numbers.shape[3]
        found = numbers.view(-1, BLOCK_SIZE * head_dim).index_select(0, part.lines)
        return found.view(len(part.rows_R), heads, part.blocks * BLOCK_SIZE, head_dim)


def _filled(blocks: Sequence[int], count: int) -> list[int]:
    return [*blocks[:count], *[blocks[0]] * (count - len(blocks))]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are read together: those of about the same length, and not too many."""
    parts: list[list[int]] = []
    least = 0
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        span = blocks_for(lengths[row]) * BLOCK_SIZE
        if parts and span <= max(2 * least, 4 * BLOCK_SIZE) and (len(parts[-1]) + 1) * span <= _MOST_SLOTS:
            parts[-1].append(row)
        else:
            parts.append([row])
            least = span
    return parts


class Places:
    """Where the keys and values of some tokens [N] go in a pool."""

    def __init__(self, pool: BlockPool, rows: Sequence[Row]) -> None:
        device = pool.keys[0].device
        self._pool = pool
        self._blocks = torch.tensor([row.blocks[row.position // BLOCK_SIZE] for row in rows], device=device)
        self._slots = torch.tensor([row.position % BLOCK_SIZE for row in rows], device=device)

    def write(self, layer: int, k_NKH: Tensor, v_NKH: Tensor) -> None:
        """Keep these keys and values."""
        self._pool.keys[layer][self._blocks, :, self._slots] = k_NKH
        self._pool.values[layer][self._blocks, :, self._slots] = v_NKH


class _PooledCache(RaggedCache):
    """What both kinds of calls share: `_real` are the tokens of the call, all rows in one line, that are kept."""

    _table: _Table
    _sources: _Table | None = None

    def __init__(self, pool: BlockPool, rows: Sequence[Row], real: slice) -> None:
        self._places = Places(pool, rows)
        self._real = real

    def write(self, layer: int, k_BKTH: Tensor, v_BKTH: Tensor) -> None:
        """See `RaggedCache`."""
        k_NKH, v_NKH = (new.transpose(1, 2).flatten(0, 1)[self._real] for new in (k_BKTH, v_BKTH))
        self._places.write(layer, k_NKH, v_NKH)

    def read(self, layer: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """See `RaggedCache`."""
        return self._table.read(layer)

    def read_source(self, layer: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """See `RaggedCache`."""
        assert self._sources is not None, "a decoder-only model has no source"
        return self._sources.read(layer)


class TokenCache(_PooledCache):
    """For a batch of single tokens, each a row [B, 1]: of different texts, or several of one text.

    `sources` are the blocks and the length of each row's source, for an encoder-decoder. Rows are filled up to
    `multiple` of them.
    """

    def __init__(
        self,
        pool: BlockPool,
        rows: Sequence[Row],
        sources: Sequence[tuple[Sequence[int], int]] = (),
        multiple: int = ROWS,
    ) -> None:
        super().__init__(pool, rows, slice(0, len(rows)))
        missing = -len(rows) % multiple
        positions = [row.position for row in rows] + [0] * missing
        self.positions_BT = torch.tensor(positions, device=pool.keys[0].device)[:, None]
        self.lengths = [position + 1 for position in positions]
        self._table = _Table(pool, [row.blocks for row in rows], self.lengths[: len(rows)])
        self.span = self._table.span
        if sources:
            ends = [length for _, length in sources]
            self._sources = _Table(pool, [blocks for blocks, _ in sources], ends)
            ends_B1 = torch.tensor(ends + [1] * missing, device=pool.keys[0].device)[:, None]
            places_S = torch.arange(self._sources.span, device=ends_B1.device)
            self.source_mask = (places_S < ends_B1)[:, None, None]


class PromptCache(_PooledCache):
    """For the tokens of one text from position `start` to `end`, [1, T], which are filled up to whole query blocks:
    `ids` are filled up with 0. `length` is that of the whole prompt."""

    def __init__(self, pool: BlockPool, blocks: Sequence[int], start: int, end: int, length: int) -> None:
        first, last = start // QUERY_BLOCK * QUERY_BLOCK, -(-end // QUERY_BLOCK) * QUERY_BLOCK
        rows = [Row(blocks, position) for position in range(start, end)]
        self.real = slice(start - first, end - first)
        super().__init__(pool, rows, self.real)
        device = pool.keys[0].device
        # Beyond the end there may be no position that the model knows.
        self.positions_BT = torch.arange(first, last, device=device).clamp(max=end - 1)[None]
        self.lengths = [length]
        self._table = _Table(pool, [blocks], [last])
        self.span = last
        if device.type == "cpu":
            self.blocks = [
                (slice(at - first, at - first + QUERY_BLOCK), at + QUERY_BLOCK)
                for at in range(first, last, QUERY_BLOCK)
            ]

    def fill(self, ids: Sequence[int]) -> list[int]:
        """The tokens of the call, as many as it has positions."""
        after = self.positions_BT.shape[1] - self.real.stop
        return [0] * self.real.start + list(ids) + [0] * after
