"""The runner of models whose memory of a text is their own: recurrent networks, and models with a trained prompt.

Each text has its cache, and is read alone.

Shapes: W scores that are wanted, T positions of a call, S positions of a source, D hidden_size, V vocab_size.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.adapters import Adapters
from yunque.generate.runner import NoRoom, Text, Work
from yunque.machine import machine_memory
from yunque.model import CausalModel, EncoderDecoder
from yunque.model.cache import Cache
from yunque.model.formats.files import Files
from yunque.model.memory import cache_memory

_SHARE = 8


class LoneText:
    """A text, with what its model keeps of it; `memory_1SD` is that of its source, for an encoder-decoder."""

    def __init__(
        self, runner: "LoneRunner", unread: list[int], cache: Cache, adapter: str | None, nbytes: int
    ) -> None:
        self.unread = unread
        self.length = 0
        self.cache = cache
        self.memory_1SD: Tensor | None = None
        self.adapter = adapter
        self.nbytes = nbytes
        self._runner = runner
        runner.enter(self)

    def truncate(self, length: int) -> None:
        """Not of such a text: what a state has seen cannot be taken out of it."""
        raise AssertionError(
            f"a text of {self.length} positions is not cut to {length}: its state is one whole"
        )

    def fork(self) -> "LoneText":
        """Another text that goes on from here. Raises NoRoom."""
        twin = LoneText(self._runner, list(self.unread), copy.deepcopy(self.cache), self.adapter, self.nbytes)
        twin.length, twin.memory_1SD = self.length, self.memory_1SD
        return twin

    def close(self) -> None:
        """Give its memory back."""
        self._runner.leave(self)


class LoneRunner:
    """A `Runner` (see `yunque.generate.runner`) that reads each text by itself."""

    can_truncate = False

    def __init__(self, model: CausalModel | EncoderDecoder, pool_bytes: int | None = None) -> None:
        """Texts take `pool_bytes` together, by default an eighth of the machine's memory."""
        self.adapters = Adapters(model)
        self._model = model
        self._most_bytes = (machine_memory() or 0) // _SHARE if pool_bytes is None else pool_bytes
        self._used_bytes = 0
        memory = cache_memory(model)
        assert memory is not None
        self._memory = memory
        self._device = next(model.parameters()).device
        self._empty_0V = torch.empty(0, model.config.vocab_size, device=self._device)

    def load_adapter(self, name: str, files: Files) -> None:
        """See `Adapters.load`."""
        self.adapters.load(name, files)

    def drop_adapter(self, name: str) -> None:
        """See `Adapters.drop`."""
        self.adapters.drop(name)

    def enter(self, text: LoneText) -> None:
        """Count a text. Raises NoRoom where others leave it no memory."""
        if self._used_bytes and self._used_bytes + text.nbytes > self._most_bytes:
            raise NoRoom
        self._used_bytes += text.nbytes
        self.adapters.enter(text.adapter)

    def leave(self, text: LoneText) -> None:
        """Count a text less."""
        self._used_bytes -= text.nbytes
        self.adapters.leave(text.adapter)

    @torch.no_grad()
    def open(self, prompt: Sequence[int], fresh: int, adapter: str | None = None) -> LoneText:
        """A text that begins with `prompt`, or has it as its source; see `Runner`.

        Raises NoRoom, and UserError for a token that the model does not know or an adapter that is not loaded.
        """
        check_tokens(prompt, self._model.config.vocab_size)
        key = self.adapters.key(adapter)
        if isinstance(self._model, CausalModel):
            cache = self._model.new_cache(1, len(prompt) + fresh)
            nbytes = self._memory.total(1, len(prompt) + fresh)
            return LoneText(self, list(prompt), cache, key, nbytes)
        start = [self._model.config.decoder_start_token_id]
        cache = self._model.new_cache(1, 1 + fresh)
        nbytes = self._memory.fixed_bytes + self._memory.token_bytes * (1 + fresh)
        nbytes += self._memory.source_token_bytes * len(prompt)
        text = LoneText(self, start, cache, key, nbytes)
        try:
            self.adapters.choose([key])
            text.memory_1SD = self._model.encode(torch.tensor([list(prompt)], device=self._device))
        except BaseException:
            text.close()
            raise
        finally:
            self.adapters.choose([None])
        return text

    @torch.no_grad()
    def run(self, works: Sequence[Work]) -> list[Tensor]:
        """Read the tokens of each work and give the scores that it wants: float32 [W, V], on the model's device."""
        try:
            return [self._read(work) for work in works]
        finally:
            self.adapters.choose([None])

    def _read(self, work: Work) -> Tensor:
        text = _own(work.text)
        ids_1T = torch.tensor([list(work.ids)], device=self._device)
        self.adapters.choose([text.adapter])
        if isinstance(self._model, CausalModel):
            hidden_1TD = self._model.hidden(ids_1T, cache=text.cache)
        else:
            assert text.memory_1SD is not None
            hidden_1TD = self._model.decode(ids_1T, text.memory_1SD, None, text.cache)
        text.length += len(work.ids)
        del text.unread[: len(work.ids)]
        if not work.wanted:
            return self._empty_0V
        return self._model.logits(hidden_1TD[:, -work.wanted :])[0].float()


def check_tokens(prompt: Sequence[int], vocab_size: int) -> None:
    """Raise UserError for a token that a model does not know."""
    largest = max(prompt, default=0)
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer has tokens (number {largest} in this text) beyond the {vocab_size} that the model knows: "
            "it is another model's"
        )


def _own(text: Text) -> LoneText:
    assert isinstance(text, LoneText), "a text is read by the runner that opened it"
    return text
