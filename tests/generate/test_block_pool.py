"""The pool of blocks against a plain list of numbers for each text, whatever is done in whatever order."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from yunque.errors import UserError
from yunque.generate.block_pool import BLOCK_SIZE, BlockPool, PooledText, blocks_for, make_pool
from yunque.generate.runner import NoRoom
from yunque.model.cache import KeyValueCache

BLOCKS = 12
# Few, so that texts often begin alike; long, so that blocks fill up.
TOKENS = st.integers(0, 1)
PROMPTS = st.builds(lambda token, length, last: [token] * length + [last], TOKENS, st.integers(0, 50), TOKENS)
ROOTS = st.sampled_from(["", "adapter", None])


def small_pool(blocks: int = BLOCKS) -> BlockPool:
    return BlockPool(2, (2, 3), blocks)


def write(text: PooledText, ids: list[int], root: str | None) -> None:
    """Read these tokens as a model would: what is kept of a place depends on all tokens up to it."""
    text.make_room(len(ids))
    before = text._ids + ids
    for offset in range(len(ids)):
        position = text.length + offset
        number = mark(before[: position + 1], root)
        for layer in range(2):
            text.pool.keys[layer][text.blocks[position // BLOCK_SIZE], :, position % BLOCK_SIZE] = number
            text.pool.values[layer][text.blocks[position // BLOCK_SIZE], :, position % BLOCK_SIZE] = (
                number + 0.5 + layer
            )
    text.advance(ids)


def mark(ids: list[int], root: str | None) -> float:
    return float(hash((tuple(ids), root)) % 2**20)


def kept(text: PooledText) -> list[list[float]]:
    """What is in the blocks of a text, position by position: a layer's key and another's value."""
    places = [(text.blocks[p // BLOCK_SIZE], p % BLOCK_SIZE) for p in range(text.length)]
    return [
        [float(text.pool.keys[0][block, 1, slot, 2]), float(text.pool.values[1][block, 0, slot, 0])]
        for block, slot in places
    ]


def expected(ids: list[int], root: str | None) -> list[list[float]]:
    marks = [mark(ids[: end + 1], root) for end in range(len(ids))]
    return [[one, one + 1.5] for one in marks]


@dataclass(eq=False)
class Plain:
    """A text of the pool beside the tokens that it should hold."""

    text: PooledText
    ids: list[int]
    root: str | None
    room: int


class PoolMachine(RuleBasedStateMachine):
    """Open, read, fork, cut and close in any order."""

    texts = Bundle("texts")

    def __init__(self) -> None:
        super().__init__()
        self.pool = small_pool()
        self.alive: list[Plain] = []

    @rule(target=texts, prompt=PROMPTS, fresh=st.integers(0, 40), root=ROOTS)
    def open(self, prompt: list[int], fresh: int, root: str | None) -> Plain | None:
        try:
            text = self.pool.open(prompt, fresh, root)
        except NoRoom:
            return None
        assert text.length % BLOCK_SIZE == 0 and text.length < len(prompt)
        assert text.unread == prompt[text.length :]
        one = Plain(text, prompt[: text.length], root, len(prompt) + fresh)
        self.alive.append(one)
        return one

    @rule(one=texts, token=TOKENS, count=st.integers(1, 20))
    def read(self, one: Plain | None, token: int, count: int) -> None:
        if one not in self.alive:
            return
        ids = one.text.unread[:count] or [token] * min(count, one.room - one.text.length)
        # Within the room that a text was opened with there is always a block.
        write(one.text, ids, one.root)
        one.ids += ids

    @rule(one=texts, part=st.floats(0, 1))
    def cut(self, one: Plain | None, part: float) -> None:
        if one in self.alive and not one.text.unread:
            # As after guessed tokens: no further than a block that is shared could be.
            shared = [i for i, block in enumerate(one.text.blocks) if self.pool._users[block] > 1]
            least = min((shared[-1] + 1) * BLOCK_SIZE, one.text.length) if shared else 0
            length = least + int((one.text.length - least) * part)
            one.text.truncate(length)
            del one.ids[length:]

    @rule(target=texts, one=texts)
    def fork(self, one: Plain | None) -> Plain | None:
        if one not in self.alive:
            return None
        try:
            twin = one.text.fork()
        except NoRoom:
            return None
        other = Plain(twin, list(one.ids), one.root, one.room)
        self.alive.append(other)
        return other

    @rule(one=consumes(texts))
    def close(self, one: Plain | None) -> None:
        if one in self.alive:
            self.alive.remove(one)
            one.text.close()

    @invariant()
    def contents_are_those_of_a_plain_list(self) -> None:
        for one in self.alive:
            assert one.text.length == len(one.ids)
            assert kept(one.text) == expected(one.ids, one.root)

    @invariant()
    def blocks_are_counted(self) -> None:
        pool = self.pool
        users = [sum(block in one.text.blocks for one in self.alive) for block in range(BLOCKS)]
        assert users == list(pool._users)
        assert pool.blocks_in_use == sum(count > 0 for count in users)
        free = set(pool._free) | set(pool._idle)
        assert len(free) == len(pool._free) + len(pool._idle)
        assert free == {block for block in range(BLOCKS) if not users[block]}
        assert 0 <= pool._promised <= len(free)

    def teardown(self) -> None:
        for one in self.alive:
            one.text.close()
        assert self.pool.blocks_in_use == 0
        assert self.pool._promised == 0 and not self.pool._owed
        # All of it is there for one text.
        self.pool.open([7] * BLOCKS * BLOCK_SIZE, 0).close()


TestAnyOrder = PoolMachine.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def opened(pool: BlockPool, prompt: list[int], fresh: int = 0, root: str | None = "") -> PooledText:
    """A text whose prompt is read."""
    text = pool.open(prompt, fresh, root)
    write(text, list(text.unread), root)
    return text


def test_a_known_beginning_is_shared_and_stays_known_after_its_text() -> None:
    pool, prompt = small_pool(), list(range(40))
    first = opened(pool, prompt)
    second = pool.open([*prompt, 1], 3)
    assert second.blocks == first.blocks[:2] and second.unread == [*prompt[32:], 1]
    first.close(), second.close()
    third = pool.open(prompt[:33], 0)
    assert third.length == 32 and pool.tokens_found == 64 and pool.tokens_asked == 40 + 41 + 33
    # Negative controls: another first token, another root, no root.
    assert pool.open([9, *prompt[1:]], 0).length == 0
    assert pool.open(prompt, 0, "adapter").length == 0
    assert pool.open(prompt, 0, None).length == 0


def test_the_last_token_of_a_prompt_is_always_unread() -> None:
    pool, prompt = small_pool(), list(range(32))
    opened(pool, prompt)
    assert pool.open(prompt, 0).unread == prompt[16:]


def test_written_tokens_are_found_as_a_prompt_of_the_next_turn() -> None:
    pool = small_pool()
    text = opened(pool, list(range(10)), fresh=30)
    write(text, list(range(10, 35)), "")
    assert pool.open(list(range(40)), 0).length == 32


def test_what_was_used_longest_ago_makes_room_first() -> None:
    pool = small_pool(4)
    for start in (0, 100):
        opened(pool, list(range(start, start + 32))).close()
    pool.open(list(range(33)), 0).close()  # the first is used again
    opened(pool, [7] * 20, root=None).close()
    assert pool.open(list(range(33)), 0).length == 32
    assert pool.open(list(range(100, 116)), 0).length == 0


def test_the_end_of_a_text_makes_room_before_its_beginning() -> None:
    pool = small_pool(3)
    opened(pool, list(range(48))).close()
    opened(pool, [7], root=None).close()
    assert pool.open(list(range(48)), 0).length == 32


def test_a_full_pool_says_so_and_room_that_was_promised_is_kept() -> None:
    pool = small_pool(4)
    text = pool.open([1], 60)
    with pytest.raises(NoRoom):
        pool.open([2], 0)
    write(text, [1] + [0] * 60, "")
    text.close()
    pool.open([2], 0).close()
    with pytest.raises(UserError, match="65 tokens does not fit in the cache, which has room for 64"):
        pool.open([1], 64)


def test_a_fork_is_copied_when_either_writes_and_not_before() -> None:
    pool = small_pool()
    text = opened(pool, list(range(20)), fresh=5)
    twin = text.fork()
    assert twin.blocks == text.blocks and pool.blocks_in_use == 2
    write(text, [77], "")
    write(twin, [88], "")
    assert twin.blocks[0] == text.blocks[0] and twin.blocks[1] != text.blocks[1] and pool.blocks_in_use == 3
    assert kept(text) == expected([*range(20), 77], "") != kept(twin)
    assert kept(twin) == expected([*range(20), 88], "")


def test_a_fork_without_room_leaves_everything_as_it_was() -> None:
    pool = small_pool(3)
    text = opened(pool, list(range(20)), fresh=20)
    with pytest.raises(NoRoom):
        text.fork()
    write(text, list(range(20)), "")
    text.close()
    assert pool.blocks_in_use == 0
    pool.open([1], 47)


def test_a_cut_block_is_not_found_with_what_it_held() -> None:
    pool, prompt = small_pool(), list(range(32))
    text = opened(pool, prompt, fresh=4)
    text.truncate(20)
    write(text, [99] * 12, "")
    found = pool.open([*prompt, 1], 0)
    assert found.length == 16
    assert kept(text) == expected([*prompt[:20], *[99] * 12], "")


def test_the_default_room_is_a_share_of_the_memory_and_at_least_one_context(monkeypatch) -> None:
    cache = KeyValueCache(3, (1, 2, 4), 1)
    block = 3 * 2 * 2 * 16 * 4 * 4
    monkeypatch.setattr("yunque.generate.block_pool.machine_memory", lambda: 8 * block * 100)
    assert make_pool(cache, 160).num_blocks == 100
    assert make_pool(cache, 160).nbytes == 100 * block
    assert make_pool(cache, 16 * 300).num_blocks == 300
    assert make_pool(cache, 16 * 5000).num_blocks == 400
    assert make_pool(cache, 16).num_blocks == 64  # more would not be used
    assert make_pool(cache, 160, pool_bytes=7 * block + 5).num_blocks == 7
    monkeypatch.setattr("yunque.generate.block_pool.machine_memory", lambda: None)
    assert make_pool(cache, 160).num_blocks == blocks_for(160)


def test_memory_is_touched_only_when_it_is_used() -> None:
    resident = _resident()
    pool = BlockPool(4, (8, 64), 8_000)  # 2 GB
    assert pool.nbytes > 2e9
    assert _resident() - resident < 100e6


def _resident() -> int:
    from pathlib import Path

    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


def test_numbers_keep_the_type_of_the_model() -> None:
    pool = make_pool(KeyValueCache(1, (1, 2, 4), 1, torch.bfloat16), 16, 10_000)
    assert pool.keys[0].dtype == torch.bfloat16 and pool.keys[0].shape[1:] == (2, 16, 4)
