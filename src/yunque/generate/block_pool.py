"""The memory of texts under way: their keys and values, in blocks that texts share where they begin alike.

A text has a table of blocks, and its position p is number p % 16 of block p // 16 in that table, so that texts of any
length fit side by side without gaps (Kwon et al. 2023, arXiv:2309.06180). A full block is found again by the tokens
that lead to it; when nobody has it any more it stays findable until its memory is needed.

Shapes: P blocks, K key-value heads, H head_dim.
"""

import copy
import hashlib
import secrets
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Self

import torch

from yunque.errors import UserError
from yunque.generate.runner import NoRoom
from yunque.machine import machine_memory
from yunque.model.cache import KeyValueCache

BLOCK_SIZE = 16
"""Positions of a block."""

# Of a machine's memory by default, and no more than so many texts of full length could use.
_SHARE = 8
_MOST_CONTEXTS = 64
# What a text may be long where the model does not say.
_CONTEXT = 4096


def blocks_for(positions: int) -> int:
    """How many blocks so many positions take."""
    return -(-positions // BLOCK_SIZE)


def make_pool(cache: KeyValueCache, context: int | None, pool_bytes: int | None = None) -> "BlockPool":
    """A pool for a model whose `new_cache` gives caches like this one, in `pool_bytes`.

    By default it takes an eighth of the memory that the machine has (a GPU: that is free), or what one text of
    `context` positions does if that is more, and never over half.
    """
    keys = cache.keys[0]
    _, heads, _, head_dim = keys.shape
    block = 2 * len(cache.keys) * heads * BLOCK_SIZE * head_dim * keys.dtype.itemsize
    if pool_bytes is None:
        on_gpu = keys.device.type == "cuda"
        memory = torch.cuda.mem_get_info(keys.device)[0] if on_gpu else machine_memory() or 0
        least = blocks_for(context or _CONTEXT)
        count = max(min(memory // _SHARE // block, least * _MOST_CONTEXTS), least)
        count = max(min(count, memory // 2 // block), 1) if memory else count
    else:
        count = max(pool_bytes // block, 1)
    return BlockPool(len(cache.keys), (heads, head_dim), count, keys.dtype, keys.device)


class BlockPool:
    """Blocks of all layers: `keys[layer]` and `values[layer]` are [P, K, 16, H].

    Used from one thread. `tokens_asked` counts the tokens of the prompts that were opened, `tokens_found` those of
    them whose keys and values were there already.
    """

    def __init__(
        self,
        num_layers: int,
        shape: tuple[int, int],
        num_blocks: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """`shape` is (key-value heads, head_dim)."""
        full = (2, num_layers, num_blocks, shape[0], BLOCK_SIZE, shape[1])
        # A system gives memory when it is first written, so what is never used costs nothing.
        self._numbers = torch.empty(full, dtype=dtype, device=device)
        self.keys, self.values = (list(part) for part in self._numbers)
        self.num_blocks = num_blocks
        self.tokens_asked = 0
        self.tokens_found = 0
        # The last one freed is taken first: its memory is there already.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._users = array("l", [0]) * num_blocks
        self._known: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        # Blocks that nobody has and that hold a known beginning, the longest unused first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        # Blocks promised to texts that have not taken them yet, and the copies owed where texts share a block that
        # is not full.
        self._promised = 0
        self._owed = Counter[int]()
        # Nobody can choose tokens whose digest is that of another's text.
        self._secret = secrets.token_bytes(16)

    @property
    def blocks_in_use(self) -> int:
        """Blocks that a text has."""
        return self.num_blocks - len(self._free) - len(self._idle)

    @property
    def nbytes(self) -> int:
        """What it takes when all of it has been used."""
        return self._numbers.nbytes

    def open(self, prompt: Sequence[int], fresh: int, root: str | None = "") -> "PooledText":
        """A text of this pool (see `PooledText`)."""
        return PooledText(self, prompt, fresh, root)

    def enter(self, prompt: Sequence[int], fresh: int, root: str | None) -> list[int]:
        """The blocks that hold the beginning of a prompt, taken for a text with room for `fresh` positions more.

        Raises as `PooledText` does.
        """
        assert prompt, "a text begins with a token"
        needed = blocks_for(len(prompt) + fresh)
        if needed > self.num_blocks:
            raise UserError(
                f"a text of {len(prompt) + fresh} tokens does not fit in the cache, which has room for "
                f"{self.num_blocks * BLOCK_SIZE}"
            )
        found = self._find(prompt, root)
        idle = sum(block in self._idle for block in found)
        if needed - len(found) > self._left() - idle:
            raise NoRoom
        for block in found:
            self._take(block)
        self.promise(needed - len(found))
        self.tokens_asked += len(prompt)
        self.tokens_found += len(found) * BLOCK_SIZE
        return found

    def chain(self, before: bytes, ids: Sequence[int]) -> bytes:
        """The digest of a block with these tokens, behind one whose digest is `before`."""
        return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16, key=self._secret).digest()

    def root_digest(self, root: str) -> bytes:
        """What the first block of a text with this root stands behind."""
        return hashlib.blake2b(root.encode(), digest_size=16, key=self._secret, person=b"root").digest()

    def _find(self, prompt: Sequence[int], root: str | None) -> list[int]:
        """The blocks that hold the beginning of a prompt, all but its last token at most."""
        found: list[int] = []
        if root is None:
            return found
        digest = self.root_digest(root)
        for start in range(0, len(prompt) - BLOCK_SIZE, BLOCK_SIZE):
            digest = self.chain(digest, prompt[start : start + BLOCK_SIZE])
            if digest not in self._known:
                break
            found.append(self._known[digest])
        return found

    def _left(self) -> int:
        """Blocks that nobody has or was promised."""
        return len(self._free) + len(self._idle) - self._promised

    def promise(self, count: int) -> None:
        """Keep so many more blocks for a text (fewer where `count` is negative). Raises NoRoom."""
        if count > self._left():
            raise NoRoom
        self._promised += count

    def draw(self, promised: bool) -> int:
        """A block for one text alone, from what was `promised`. Raises NoRoom where it was not and none is left."""
        if not promised and self._left() < 1:
            raise NoRoom
        self._promised -= promised
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._users[block] = 1
        # Places that are not written yet are read too, and are then multiplied by zero: they must be numbers.
        self._numbers[:, :, block] = 0
        return block

    def _take(self, block: int) -> None:
        self._idle.pop(block, None)
        self._users[block] += 1

    def share(self, blocks: Sequence[int], last_is_full: bool) -> None:
        """Count one more text for these blocks. Where the last will be written, a copy of it is promised: raises
        NoRoom where there is no room for one."""
        if blocks and not last_is_full:
            self.promise(1)
            self._owed[blocks[-1]] += 1
        for block in blocks:
            self._take(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Count one text less for these blocks of a text."""
        # From its end, because what was freed first is used again first: a beginning without its end is of use.
        for block in reversed(blocks):
            self._users[block] -= 1
            self._settle(block)
            if not self._users[block]:
                if block in self._digests:
                    self._idle[block] = None
                else:
                    self._free.append(block)

    def _settle(self, block: int) -> None:
        """Give up copies that nobody will make: of those who share a block the last may write it."""
        spare = self._owed[block] - max(self._users[block] - 1, 0)
        if spare > 0:
            self._promised -= spare
            self._owed[block] -= spare
        if not self._owed[block]:
            del self._owed[block]

    def own(self, block: int) -> int:
        """A block with the same numbers that one text may write: itself, or a copy where others have it too.

        Raises NoRoom where there is no room for a copy that was not promised.
        """
        if self._users[block] == 1:
            self._forget(block)
            return block
        promised = self._owed[block] > 0
        other = self.draw(promised)
        self._owed[block] -= promised
        self._users[block] -= 1
        self._settle(block)
        self._numbers[:, :, other] = self._numbers[:, :, block]
        return other

    def learn(self, block: int, digest: bytes) -> None:
        """Let a block, full now, be found by its digest."""
        if digest not in self._known:
            self._known[digest] = block
            self._digests[block] = digest

    def _forget(self, block: int) -> None:
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._known[digest]


class PooledText:
    """A text whose keys and values are in a pool; it is a `Text` (see `yunque.generate.runner`).

    Position p is number p % 16 of block `blocks[p // 16]`; `length` positions are read. To read more: `make_room`,
    write, `advance`.
    """

    def __init__(self, pool: BlockPool, prompt: Sequence[int], fresh: int, root: str | None = "") -> None:
        """A text that begins with `prompt` (not empty), with room for `fresh` positions after it.

        What of the prompt is here already, of a text with the same `root` (whatever keys and values depend on beside
        tokens: an adapter), is read; at least its last token is unread. A text without a root shares nothing. Raises
        NoRoom where other texts have what it needs, and UserError where it could never fit.
        """
        self.pool = pool
        self.blocks = pool.enter(prompt, fresh, root)
        self.length = len(self.blocks) * BLOCK_SIZE
        self.unread = list(prompt[self.length :])
        self._capacity = len(prompt) + fresh
        self._promised = blocks_for(self._capacity) - len(self.blocks)
        self._root = root
        self._ids = list(prompt[: self.length])
        self._digests: list[bytes] = []
        self._digest_full_blocks()

    def make_room(self, count: int) -> None:
        """See to it that the `count` positions after `length` have blocks, which no other text has.

        Beyond the room that the text was opened with it takes what is left, and raises NoRoom where nothing is.
        """
        if count and self.length % BLOCK_SIZE:
            last = self.length // BLOCK_SIZE
            self.blocks[last] = self.pool.own(self.blocks[last])
        while len(self.blocks) < blocks_for(self.length + count):
            self.blocks.append(self.pool.draw(promised=self._promised > 0))
            self._promised = max(self._promised - 1, 0)

    def advance(self, ids: Sequence[int]) -> None:
        """Count these tokens, whose keys and values were written, as read."""
        self._ids += ids
        self.length += len(ids)
        assert self.length <= len(self.blocks) * BLOCK_SIZE, "there was no room made for these positions"
        known = len(self._digests)
        self._digest_full_blocks()
        for number in range(known, len(self._digests)):
            self.pool.learn(self.blocks[number], self._digests[number])
        del self.unread[: len(ids)]

    def _digest_full_blocks(self) -> None:
        if self._root is None:
            return
        for number in range(len(self._digests), self.length // BLOCK_SIZE):
            before = self._digests[-1] if self._digests else self.pool.root_digest(self._root)
            tokens = self._ids[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
            self._digests.append(self.pool.chain(before, tokens))

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        assert 0 <= length <= self.length, f"a text of {self.length} positions is not cut to {length}"
        self.length = length
        del self._ids[length:]
        del self._digests[length // BLOCK_SIZE :]
        kept = blocks_for(length)
        self.pool.release(self.blocks[kept:])
        del self.blocks[kept:]
        self._promise_rest()

    def _promise_rest(self) -> None:
        missing = max(blocks_for(self._capacity) - len(self.blocks), 0)
        more = missing - self._promised
        # What was released may be another's still: then the room for it is taken when it is needed.
        try:
            self.pool.promise(more)
        except NoRoom:
            return
        self._promised = missing

    def fork(self) -> Self:
        """Another text with the same beginning and as much room. Raises NoRoom where there is none for it."""
        twin = copy.copy(self)
        twin.blocks = self.blocks[: blocks_for(self.length)]
        twin.unread, twin._ids, twin._digests = list(self.unread), list(self._ids), list(self._digests)
        twin._promised = max(blocks_for(self._capacity) - len(twin.blocks), 0)
        self.pool.promise(twin._promised)
        try:
            self.pool.share(twin.blocks, last_is_full=self.length % BLOCK_SIZE == 0)
        except NoRoom:
            self.pool.promise(-twin._promised)
            raise
        return twin

    def close(self) -> None:
        """Give its blocks back."""
        self.pool.release(self.blocks)
        self.pool.promise(-self._promised)
        self.blocks, self._promised = [], 0
