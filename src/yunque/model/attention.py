"""Attention: who may look at whom, the block itself, and a way to watch it.

Shapes: B batch, T positions of this call, S positions seen so far (cache and this call), D hidden_size, N query
heads, K key-value heads, H head_dim.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yunque.model.cache import EncoderDecoderCache, KeyValueCache, RaggedCache
from yunque.model.positions import rotate


@dataclass(frozen=True)
class Memory:
    """What an encoder made of a source, for the decoder's attention: `vectors_BSD`, and `mask` [B, 1, 1, S], True for
    tokens and False for padding (None where all are tokens)."""

    vectors_BSD: Tensor
    mask: Tensor | None


@dataclass
class Pass:
    """What all layers of one forward pass share.

    `positions_BT` counts the tokens of each row from 0 without its padding (B is 1 where rows are alike); `start`
    is how many positions the cache holds. `angles` are the cosines and sines of rotary positions; `bias` [B or 1, N,
    T, S] is added to attention's scores (relative positions). An encoder's pass is not `causal`: every position sees
    all. A decoder's has the `memory` of its source, where there is one.
    """

    positions_BT: Tensor
    start: int
    attention_mask_BS: Tensor | None = None
    segment_ids_BT: Tensor | None = None
    cache: KeyValueCache | RaggedCache | None = None
    angles: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    causal: bool = True
    memory: Memory | None = None
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """T, the positions of this call."""
        return self.positions_BT.shape[1]

    @property
    def seen(self) -> int:
        """S, the positions that there are keys for."""
        return self.cache.span if isinstance(self.cache, RaggedCache) else self.start + self.length

    @property
    def lengths(self) -> Sequence[int] | None:
        """How long the text of each row is, where that is more than its positions tell."""
        return self.cache.lengths if isinstance(self.cache, RaggedCache) else None

    def places(self) -> Tensor:
        """Which of the S each position of this call is, [B or 1, T]."""
        if isinstance(self.cache, RaggedCache):
            return self.positions_BT
        return torch.arange(self.start, self.seen, device=self.positions_BT.device)[None]

    def key_positions(self) -> Tensor:
        """Where the positions seen so far stand in their rows, [B, S]: cached ones, then those of this call."""
        if self.attention_mask_BS is not None:
            return (self.attention_mask_BS.long().cumsum(1) - 1) * self.attention_mask_BS
        if self.segment_ids_BT is not None:
            return self.positions_BT
        return torch.arange(self.seen, device=self.positions_BT.device)[None]

    def mask(self, window: int | None) -> Tensor | None:
        """Who may look at whom, for scaled_dot_product_attention.

        None where the plain rule will do; else booleans, or scores to add where there is a `bias`. With a `window`
        a position sees itself and the `window - 1` before it. Worked out once, whatever the number of layers.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        seen = self._causal_mask(window) if self.causal else padding_mask(self.attention_mask_BS)
        if self.bias is None or seen is None:
            return seen if self.bias is None else self.bias
        return self.bias.masked_fill(~seen, float("-inf"))

    def _causal_mask(self, window: int | None) -> Tensor | None:
        end, device = self.seen, self.positions_BT.device
        plain = not isinstance(self.cache, RaggedCache) and (self.length == 1 or self.start == 0)
        narrow = window is not None and end > window
        if (
            plain
            and not narrow
            and all(part is None for part in (self.attention_mask_BS, self.segment_ids_BT, self.bias))
        ):
            return None
        queries_BT1 = self.places()[:, :, None]
        keys_11S = torch.arange(end, device=device)[None, None]
        mask = keys_11S <= queries_BT1  # [B or 1, T, S]
        if window is not None:
            mask = mask & (keys_11S > queries_BT1 - window)
        if self.segment_ids_BT is not None:
            assert self.start == 0, "packed documents are not read through a cache"
            mask = mask & (self.segment_ids_BT[:, :, None] == self.segment_ids_BT[:, None, :])
        if self.attention_mask_BS is not None:
            # Padding may see itself: a row of scores that are all minus infinity would give NaN.
            mask = mask & (self.attention_mask_BS[:, None, :].bool() | (keys_11S == queries_BT1))
        return mask[:, None]


def padding_mask(attention_mask_BS: Tensor | None) -> Tensor | None:
    """[B, 1, 1, S], False where nobody may look; None where all is seen. In a row of padding alone all is seen: its
    scores would be NaN otherwise."""
    if attention_mask_BS is None or bool(attention_mask_BS.all()):
        return None
    mask_BS = attention_mask_BS.bool()
    return (mask_BS | ~mask_BS.any(1, keepdim=True))[:, None, None]


def plan_pass(
    input_ids_BT: Tensor,
    attention_mask_BS: Tensor | None,
    position_ids_BT: Tensor | None,
    segment_ids_BT: Tensor | None,
    cache: KeyValueCache | RaggedCache | None,
    causal: bool = True,
) -> Pass:
    """What the layers need to know about this call (see `yunque.model.decoder.Decoder.hidden`)."""
    if isinstance(cache, RaggedCache):
        assert all(part is None for part in (attention_mask_BS, position_ids_BT, segment_ids_BT))
        return Pass(cache.positions_BT, 0, cache=cache, causal=causal)
    start, T = (cache.length if cache else 0), input_ids_BT.shape[1]
    if attention_mask_BS is not None:
        assert attention_mask_BS.shape[1] == start + T, "the mask covers cached positions and this call's"
        if bool(attention_mask_BS.all()):
            attention_mask_BS = None
    if position_ids_BT is not None:
        positions_BT = position_ids_BT
    elif attention_mask_BS is not None:
        positions_BT = (attention_mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, start:]
    else:
        positions_BT = torch.arange(start, start + T, device=input_ids_BT.device)[None]
        if segment_ids_BT is not None:
            # Every document counts from 0, as if it stood alone.
            begins_BT = F.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], (1, 0), value=False)
            positions_BT = positions_BT - (positions_BT * begins_BT).cummax(1).values
    return Pass(positions_BT, start, attention_mask_BS, segment_ids_BT, cache, causal=causal)


@dataclass(frozen=True)
class AttentionRecord:
    """How much each position looked at each other one: `weights_BNTS` of the block called `name` in its model."""

    name: str
    weights_BNTS: Tensor


class AttentionBlock(nn.Module):
    """The part that all attention shares: heads, scaled products, and the record of them."""

    def __init__(self, num_heads: int, num_key_value_heads: int, head_dim: int, scale: float | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.watch: list[Tensor] | None = None

    def split_heads(self, x_BTD: Tensor, num_heads: int) -> Tensor:
        """[B, heads, T, H] from [B, T, heads * H]."""
        return x_BTD.view(x_BTD.shape[0], x_BTD.shape[1], num_heads, self.head_dim).transpose(1, 2)

    def attend(
        self, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Values mixed by softmax(q k), heads side by side again: [B, T, N * H].

        `mask` is True where a query may look, or is added to the scores; `causal` without a mask lets each position
        see itself and all before it.
        """
        k_BKSH, v_BKSH = self._for_each_head(k_BKSH), self._for_each_head(v_BKSH)
        if self.watch is not None:
            self.watch.append(self._weights(q_BNTH, k_BKSH, mask, causal))
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q_BNTH.dtype)
        mixed_BNTH = F.scaled_dot_product_attention(
            q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, is_causal=causal and mask is None, scale=self.scale
        )
        return mixed_BNTH.transpose(1, 2).flatten(2)

    def _for_each_head(self, x_BKSH: Tensor) -> Tensor:
        """[B, N, S, H] from keys or values of fewer heads, or of as many."""
        # Repeating is quicker on a CPU than enable_gqa, which leaves the flash kernel.
        group = self.num_heads // x_BKSH.shape[1]
        return x_BKSH.repeat_interleave(group, 1) if group > 1 else x_BKSH

    def attend_ragged(
        self,
        q_BNTH: Tensor,
        kept: Iterable[tuple[Tensor, Tensor, Tensor]],
        mask: Tensor,
        blocks: Sequence[tuple[slice, int | None]],
    ) -> Tensor:
        """As `attend`, for some rows, and some queries of them, at a time (see `RaggedCache`); other rows are 0."""
        B, N, T, H = q_BNTH.shape
        mixed_BTD = q_BNTH.new_zeros(B, T, N * H)
        for rows_R, k_RKSH, v_RKSH in kept:
            k_RNSH, v_RNSH = self._for_each_head(k_RKSH), self._for_each_head(v_RKSH)
            for queries, span in blocks:
                end = k_RNSH.shape[2] if span is None else span
                mixed_BTD[rows_R, queries] = self.attend(
                    q_BNTH[rows_R, :, queries],
                    k_RNSH[:, :, :end],
                    v_RNSH[:, :, :end],
                    mask[rows_R, :, queries, :end],
                    causal=False,
                )
        return mixed_BTD

    def _weights(self, q_BNTH: Tensor, k_BNSH: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        scores_BNTS = (q_BNTH @ k_BNSH.transpose(-1, -2)).float() * self.scale
        if mask is None and causal:
            T, S = scores_BNTS.shape[-2:]
            mask = torch.ones(T, S, dtype=torch.bool, device=q_BNTH.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            scores_BNTS = scores_BNTS.masked_fill(~mask, float("-inf"))
        elif mask is not None:
            scores_BNTS = scores_BNTS + mask
        return scores_BNTS.softmax(-1).detach()


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[AttentionRecord]]:
    """Keep the attention weights of every forward pass inside the block; the list is filled when it ends.

    with record_attention(model) as records:
        model(input_ids)
    """
    blocks = {name: part for name, part in model.named_modules() if isinstance(part, AttentionBlock)}
    records: list[AttentionRecord] = []
    for block in blocks.values():
        block.watch = []
    try:
        yield records
        records += [AttentionRecord(name, one) for name, block in blocks.items() for one in block.watch or ()]
    finally:
        for block in blocks.values():
            block.watch = None


class Attention(AttentionBlock):
    """Self-attention (Vaswani et al. 2017, arXiv:1706.03762), with rotary positions where the pass has angles.

    Groups of query heads may share a key-value head (Ainslie et al. 2023, arXiv:2305.13245); `query_norm` and
    `key_norm` normalize each head (Qwen 3); `window` limits how far back a position looks (Mistral).
    """

    def __init__(
        self,
        hidden_size: int,
        heads: tuple[int, int, int],
        layer: int,
        bias: bool = False,
        output_bias: bool = False,
        window: int | None = None,
        scale: float | None = None,
    ) -> None:
        """`heads` are (query heads, key-value heads, head_dim)."""
        num_heads, num_key_value_heads, head_dim = heads
        super().__init__(num_heads, num_key_value_heads, head_dim, scale)
        self.layer = layer
        self.window = window
        self.query = nn.Linear(hidden_size, num_heads * head_dim, bias=bias)
        self.key = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=bias)
        self.value = nn.Linear(hidden_size, num_key_value_heads * head_dim, bias=bias)
        self.output = nn.Linear(num_heads * head_dim, hidden_size, bias=output_bias)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        q_BNTH = self.query_norm(self.split_heads(self.query(x_BTD), self.num_heads))
        k_BKSH = self.key_norm(self.split_heads(self.key(x_BTD), self.num_key_value_heads))
        v_BKSH = self.split_heads(self.value(x_BTD), self.num_key_value_heads)
        if shared.angles is not None:
            q_BNTH, k_BKSH = rotate(q_BNTH, *shared.angles), rotate(k_BKSH, *shared.angles)
        mask, cache = shared.mask(self.window), shared.cache
        if isinstance(cache, RaggedCache):
            assert mask is not None
            cache.write(self.layer, k_BKSH, v_BKSH)
            seen_BTD = self.attend_ragged(q_BNTH, cache.read(self.layer), mask, cache.blocks)
        else:
            if cache is not None:
                k_BKSH, v_BKSH = cache.extend(self.layer, k_BKSH, v_BKSH)
            causal = shared.causal and shared.length > 1
            seen_BTD = self.attend(q_BNTH, k_BKSH, v_BKSH, mask, causal)
        mixed: Tensor = self.output(seen_BTD)
        return mixed


class CrossAttention(Attention):
    """Attention from a target's positions to the memory of its source, whose keys and values a cache keeps."""

    def of_source(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of a source, [B, K, S, H]."""
        return (
            self.split_heads(self.key(memory_BSD), self.num_key_value_heads),
            self.split_heads(self.value(memory_BSD), self.num_key_value_heads),
        )

    def forward(self, x_BTD: Tensor, shared: Pass) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        memory, cache = shared.memory, shared.cache
        q_BNTH = self.split_heads(self.query(x_BTD), self.num_heads)
        if isinstance(cache, RaggedCache):
            assert cache.source_mask is not None
            everyone = ((slice(None), None),)
            seen_BTD = self.attend_ragged(q_BNTH, cache.read_source(self.layer), cache.source_mask, everyone)
        else:
            assert memory is not None and (cache is None or isinstance(cache, EncoderDecoderCache))
            kept = cache.memory.get(self.layer) if cache else None
            if kept is None:
                kept = self.of_source(memory.vectors_BSD)
            if cache is not None:
                cache.memory[self.layer] = kept
            seen_BTD = self.attend(q_BNTH, *kept, memory.mask, causal=False)
        mixed: Tensor = self.output(seen_BTD)
        return mixed
