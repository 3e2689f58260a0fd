"""The runner of any model in PyTorch, on any device: keys and values of all texts in one pool.

Texts that read one token, or check a few, are read as one batch, a row for each token; prompts one by one.

Shapes: N tokens of a call, W scores that are wanted, T positions of a prompt, D hidden_size, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.adapters import Adapters
from yunque.generate.block_pool import BlockPool, PooledText, make_pool
from yunque.generate.lone_runner import LoneRunner, check_tokens
from yunque.generate.pooled_cache import ROWS, Places, PromptCache, Row, TokenCache
from yunque.generate.runner import NoRoom, Text, Work
from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.attention import CrossAttention
from yunque.model.decoder import Decoder
from yunque.model.encoder_decoder import TransformerEncoderDecoder
from yunque.model.formats.files import Files
from yunque.model.positions import Rope
from yunque.model.quantized_layers import Int8Matrix, QuantizedEmbedding, QuantizedLinear

# Rows of a batch, and positions of a prompt, that are computed together.
_MOST_ROWS = 256
_MOST_POSITIONS = 512
# Numbers that a loop over vectors takes at once, at most.
_REGISTERS = 64


def torch_runner(
    model: LanguageModel, pool_bytes: int | None = None, pool: BlockPool | None = None
) -> "TorchRunner | LoneRunner":
    """The runner of `model`, with a `pool` that is there already, or with one of `pool_bytes` (see `make_pool`).

    Raises UserError for a model that writes no text.
    """
    if isinstance(model, Decoder | TransformerEncoderDecoder):
        if pool is None:
            context = model.config.context
            # A source is as long as its target may be.
            full = context * 2 if context and isinstance(model, EncoderDecoder) else context
            pool = make_pool(model.new_cache(1, 1), full, pool_bytes)
        return TorchRunner(model, pool)
    if isinstance(model, CausalModel | EncoderDecoder):
        return LoneRunner(model, pool_bytes)
    raise UserError(f"a {model.config.model_type} model writes no text: it only reads")


@dataclass(frozen=True)
class _Source:
    """What an encoder-decoder's text looks at: the blocks with the keys and values of its source."""

    blocks: list[int]
    length: int


class TorchText(PooledText):
    """A text that a `TorchRunner` reads. `adapter` is the key of its adapter, `source` that of an encoder-decoder."""

    def __init__(
        self,
        pool: BlockPool,
        prompt: Sequence[int],
        fresh: int,
        root: str | None,
        adapters: Adapters,
        adapter: str | None,
    ) -> None:
        super().__init__(pool, prompt, fresh, root)
        self.prompt_length = len(prompt)
        self.adapter = adapter
        self.source: _Source | None = None
        self._adapters = adapters
        adapters.enter(adapter)

    def fork(self) -> Self:
        """See `PooledText`."""
        twin = super().fork()
        if self.source is not None:
            # Nobody writes it again, so it is never copied.
            self.pool.share(self.source.blocks, last_is_full=True)
        self._adapters.enter(self.adapter)
        return twin

    def close(self) -> None:
        """Give its memory back."""
        super().close()
        if self.source is not None:
            self.pool.release(self.source.blocks)
        self._adapters.leave(self.adapter)


@dataclass(frozen=True)
class _Token:
    """A row of a batch: a token of work number `work`."""

    work: int
    text: TorchText
    id: int
    position: int
    wanted: bool


class TorchRunner:
    """A `Runner` (see `yunque.generate.runner`) of a decoder-only or an encoder-decoder Transformer."""

    can_truncate = True

    def __init__(self, model: Decoder | TransformerEncoderDecoder, pool: BlockPool) -> None:
        """Made by `torch_runner`."""
        self.pool = pool
        self.adapters = Adapters(model)
        self._model = model
        self._multiple = 1 if _is_exact(model) else ROWS
        self._empty_0V = torch.empty(0, model.config.vocab_size, device=pool.keys[0].device)

    def load_adapter(self, name: str, files: Files) -> None:
        """See `Adapters.load`."""
        self.adapters.load(name, files)

    def drop_adapter(self, name: str) -> None:
        """See `Adapters.drop`."""
        self.adapters.drop(name)

    @torch.no_grad()
    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> TorchText:
        """A text that begins with `prompt`, or has it as its source; see `Runner`.

        Raises NoRoom, and UserError for a token that the model does not know, an adapter that is not loaded, and a
        text that the pool could never hold.
        """
        check_tokens(prompt, self._model.config.vocab_size)
        key = self.adapters.key(adapter)
        if isinstance(self._model, Decoder):
            return TorchText(self.pool, prompt, fresh, self._root(len(prompt), key), self.adapters, key)
        # The source's blocks are those of a text that is never read on.
        source = PooledText(self.pool, prompt, 0, None)
        try:
            start = [self._model.config.decoder_start_token_id]
            text = TorchText(self.pool, start, fresh, None, self.adapters, key)
        except (NoRoom, UserError):
            source.close()
            raise
        source.make_room(len(prompt))
        text.source = _Source(source.blocks, len(prompt))
        try:
            self._encode(self._model, prompt, text)
        except BaseException:
            text.close()
            raise
        finally:
            self.adapters.choose([None])
        return text

    def _root(self, length: int, key: str | None) -> str:
        """What the keys and values of a prompt depend on beside its tokens."""
        rope = getattr(self._model, "rope", None)
        if isinstance(rope, Rope) and rope.rope_type == "longrope":
            stretched = length > (rope.original_max_position_embeddings or 0)
            return f"{key or ''} {'long' if stretched else 'short'}"
        return key or ""

    def _encode(self, model: TransformerEncoderDecoder, prompt: Sequence[int], text: TorchText) -> None:
        assert text.source is not None
        self.adapters.choose([text.adapter])
        memory_1SD = model.encode(torch.tensor([list(prompt)], device=self._empty_0V.device))
        places = Places(self.pool, [Row(text.source.blocks, position) for position in range(len(prompt))])
        for layer in model.decoder.modules():
            if isinstance(layer, CrossAttention):
                keys_1KSH, values_1KSH = layer.of_source(memory_1SD)
                places.write(layer.layer, keys_1KSH[0].transpose(0, 1), values_1KSH[0].transpose(0, 1))

    @torch.no_grad()
    def run(self, works: Sequence[Work]) -> list[Tensor]:
        """Read the tokens of each work (of different texts) and give the scores that it wants: float32 [W, V], on the
        model's device."""
        try:
            return self._run(works)
        finally:
            self.adapters.choose([None])

    def _run(self, works: Sequence[Work]) -> list[Tensor]:
        scores: dict[int, list[Tensor]] = {number: [self._empty_0V] for number in range(len(works))}
        tokens: list[_Token] = []
        for number, work in enumerate(works):
            text = _own(work.text)
            text.make_room(len(work.ids))
            if text.unread and isinstance(self._model, Decoder):
                scores[number] += self._read_prompt(self._model, text, work)
                continue
            silent = len(work.ids) - work.wanted
            tokens += (
                _Token(number, text, id, text.length + place, place >= silent)
                for place, id in enumerate(work.ids)
            )
        for first in range(0, len(tokens), _MOST_ROWS):
            batch = tokens[first : first + _MOST_ROWS]
            for token, row_1V in zip((one for one in batch if one.wanted), self._read(batch), strict=True):
                scores[token.work].append(row_1V)
        for work in works:
            _own(work.text).advance(work.ids)
        return [torch.cat(found) if len(found) > 2 else found[-1] for found in scores.values()]

    def _read_prompt(self, model: Decoder, text: TorchText, work: Work) -> list[Tensor]:
        """The scores that are wanted of a prompt's tokens, some positions at a time."""
        found: list[Tensor] = []
        end, silent = text.length + len(work.ids), text.length + len(work.ids) - work.wanted
        start = text.length
        while start < end:
            stop = min(end, (start // _MOST_POSITIONS + 1) * _MOST_POSITIONS)
            cache = PromptCache(self.pool, text.blocks, start, stop, max(text.prompt_length, stop))
            ids = cache.fill(work.ids[start - text.length : stop - text.length])
            self.adapters.choose([text.adapter])
            hidden_TD = model.hidden(torch.tensor([ids], device=self._empty_0V.device), cache=cache)[0]
            wanted = min(stop - silent, stop - start)
            if wanted > 0:
                last = cache.real.stop
                first = min(last - wanted, max(last - ROWS, 0))
                scored_WD = hidden_TD[first : max(first + ROWS, last)]
                # A head may have an adapter, and goes by rows as everything does.
                scores_WV = model.logits(scored_WD[None])[0].float()
                found.append(scores_WV[last - wanted - first : last - first])
            start = stop
        return found

    def _read(self, batch: Sequence[_Token]) -> list[Tensor]:
        """The scores [1, V] of the tokens of a batch that are wanted."""
        device = self._empty_0V.device
        rows = [Row(token.text.blocks, token.position) for token in batch]
        sources = [
            (token.text.source.blocks, token.text.source.length) for token in batch if token.text.source
        ]
        cache = TokenCache(self.pool, rows, sources, self._multiple)
        keys = [token.text.adapter for token in batch]
        missing = cache.positions_BT.shape[0] - len(batch)
        ids_N1 = torch.tensor([token.id for token in batch] + [0] * missing, device=device)[:, None]
        self.adapters.choose(keys + keys[:1] * missing)
        if isinstance(self._model, Decoder):
            hidden_ND = self._model.hidden(ids_N1, cache=cache)[:, 0]
        else:
            hidden_ND = self._model.decode(ids_N1, None, cache=cache)[:, 0]
        wanted = [row for row, token in enumerate(batch) if token.wanted]
        if not wanted:
            return []
        filled = wanted + wanted[:1] * (-len(wanted) % self._multiple)
        self.adapters.choose([keys[row] for row in filled])
        scores_WV = self._model.logits(hidden_ND[torch.tensor(filled, device=device)]).float()
        return list(torch.split(scores_WV[: len(wanted)], 1))


def _is_exact(model: Decoder | TransformerEncoderDecoder) -> bool:
    """Whether all its products are of whole numbers, which no kernel rounds, and its vectors fill whole registers."""
    quantization = model.config.quantization_config
    if (
        quantization is None
        or quantization.kind != "int8"
        or not isinstance(model.embedding, QuantizedEmbedding)
    ):
        return False
    matrices = [layer.matrix for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    return all(isinstance(one, Int8Matrix) and one.values.shape[1] % _REGISTERS == 0 for one in matrices)


def _own(text: Text) -> TorchText:
    assert isinstance(text, TorchText), "a text is read by the runner that opened it"
    return text
