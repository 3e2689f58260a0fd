"""A model whose calls are charged to budgets: the call that could pass one is refused before it is made."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm.face import (
    Chunk,
    Completion,
    Cost,
    Embeddings,
    LanguageModel,
    Message,
    ModelUnavailable,
    Prompt,
    Usage,
)
from yunque.llm.retrying import Refusal
from yunque.llm.wrapped import Wrapped
from yunque.workspace.budgets import Budgets, Held, OverBudget

_LOG = logging.getLogger(__name__)
_BYTES_OF_A_MESSAGE = 16
_BYTES_OF_A_TOKEN = 4
_MOST_BYTES_OF_A_TOKEN = 8
_MOST_BYTES_BESIDE = 256
_FEWEST_MORE = 16
"""Who writes more than so many bytes for each token that was asked for heeds no limit; the rest is held in steps."""
_MOST_HIDDEN_READ = 4096
_MOST_HIDDEN_WRITTEN = 262_144
"""Tokens that a provider may count beside what we see: its own instructions, and what a model thinks."""
_TOLD_OF_TOOLS = 1024
"""Some providers tell a model how to call tools, in words of their own that are billed."""


class ListPrice(Protocol):
    """US dollars for a million tokens read and written, and the date of the list."""

    @property
    def input(self) -> float: ...

    @property
    def output(self) -> float: ...

    @property
    def date(self) -> str: ...


PriceOf = Callable[[str], ListPrice | None]


class BudgetRefusal(Refusal):
    """The call could pass a budget."""


class BudgetedModel(Wrapped):
    """A model whose calls are charged to `who` (`key/ID`, `app/NAME`; `all` always).

    The most that a call can use is held before it: a token for each byte of the text (no tokenizer makes more), and
    every token that may be written. Afterwards the provider's figures take its place, if they are possible ones. Of
    an answer that was broken off or left, or that never came though the request was sent, what had come and the
    prompt, estimated at one token for four bytes. A model of this machine costs nothing, and uses tokens.
    """

    def __init__(self, model: LanguageModel, budgets: Budgets, who: Sequence[str], price_of: PriceOf) -> None:
        super().__init__(model)
        self._budgets, self._who = budgets, tuple(who)
        # Looked up now: a price list that is loaded takes time, and is no part of a call that has a deadline.
        self._price = None if model.local else price_of(model.name)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation; raises BudgetRefusal."""
        return self._charged(_bytes_of(messages, config), config, lambda: self.model.chat(messages, config))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text; raises BudgetRefusal."""
        return self._charged(_length_of(prompt), config, lambda: self.model.complete(prompt, config))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; raises BudgetRefusal before the first, or where a model writes more
        than it was asked for."""
        return self._streamed(
            _bytes_of(messages, config), config, lambda: self.model.stream_chat(messages, config)
        )

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises as `stream_chat`."""
        return self._streamed(_length_of(prompt), config, lambda: self.model.stream_complete(prompt, config))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text; raises BudgetRefusal."""
        embed: Callable[[Sequence[Prompt]], Embeddings] = self.ability("embed")
        with self._held(sum(map(_length_of, texts)), 0) as charge:
            made = embed(texts)
            charge.settle(Usage(made.prompt_tokens, 0), made.cost)
            return made

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer; raises BudgetRefusal."""
        score: Callable[[Sequence[Message], Sequence[str]], list[float]] = self.ability("score")
        read = len(answers) * _bytes_of(messages, GenerationConfig()) + sum(map(_length_of, answers))
        with self._held(read, 0) as charge:
            scores = score(messages, answers)
            charge.settle(charge.estimated(), None)
            return scores

    def _charged(self, read: int, config: GenerationConfig, ask: Callable[[], Completion]) -> Completion:
        with self._held(read, config.max_new_tokens * config.candidates) as charge:
            completion = ask()
            charge.written = len(completion.text.encode(errors="replace"))
            charge.settle(completion.usage, completion.cost)
            return completion

    def _streamed(
        self, read: int, config: GenerationConfig, ask: Callable[[], Iterator[Chunk]]
    ) -> Iterator[Chunk]:
        with (
            self._held(read, config.max_new_tokens * config.candidates) as charge,
            _closed_after(ask()) as chunks,
        ):
            for chunk in chunks:
                charge.sent = True
                charge.written += len(chunk.text.encode(errors="replace"))
                for part in chunk.tool_calls:
                    charge.written += len(part.arguments)
                if chunk.usage:
                    # Before the caller sees it: who has the last piece need not ask for another.
                    charge.settle(chunk.usage, chunk.cost)
                else:
                    charge.goes_on()
                yield chunk

    def _held(self, read: int, written: int) -> "_Charge":
        return _Charge(self._budgets, self._who, self.name, self.local, read, written, self._usd)

    def _usd(self, usage: Usage) -> float | None:
        if self.local:
            return 0.0
        if self._price is None:
            return None
        read, written = usage.prompt_tokens * self._price.input, usage.completion_tokens * self._price.output
        return (read + written) / 1e6


@contextmanager
def _closed_after(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """An iterator that is closed at the end, if it can be."""
    try:
        yield chunks
    finally:
        if close := getattr(chunks, "close", None):
            close()


class _Charge:
    """One call: the most that it can use is held while it lasts, and it is charged once.

    `sent` says that the provider may bill it, `written` are the bytes that came of the answer.
    """

    def __init__(
        self,
        budgets: Budgets,
        who: Sequence[str],
        name: str,
        local: bool,
        read: int,
        written: int,
        usd_of: Callable[[Usage], float | None],
    ) -> None:
        self.sent, self.written = False, 0
        self._budgets, self._name, self._local, self._usd = budgets, name, local, usd_of
        self._read, self._limit = read, written
        self._sign_at = time.monotonic() + _SECONDS_BETWEEN_SIGNS
        try:
            self._held: Held | None = budgets.hold(who, usd_of(Usage(read, written)), read + written)
        except OverBudget as error:
            raise BudgetRefusal(str(error)) from None

    def __enter__(self) -> "_Charge":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._held is None:
            return
        billed = getattr(error, "usage", None)
        # Who leaves (a closed stream, Ctrl-C) leaves a request that was sent.
        left = error is not None and not isinstance(error, Exception)
        if isinstance(error, ModelUnavailable) and isinstance(billed, Usage):
            self.settle(billed, getattr(error, "cost", None))
        elif self.sent or left or getattr(error, "sent", False):
            self.settle(self.estimated(), None)
        else:
            held, self._held = self._held, None
            self._kept(lambda: self._budgets.release(held))

    def settle(self, usage: Usage, cost: Cost | None) -> None:
        """What it did use; the provider's word is taken where it is possible."""
        if self._held is None:
            return
        if not self._local and not self._is_possible(usage):
            usage, cost = self.estimated(), None
        usd = cost.usd if cost else self._usd(usage) or 0.0
        held, self._held = self._held, None
        self._kept(lambda: self._budgets.settle(held, usd, usage.prompt_tokens + usage.completion_tokens))

    def estimated(self) -> Usage:
        """What was read and written, by its bytes."""
        return Usage(-(-self._read // _BYTES_OF_A_TOKEN), -(-self.written // _BYTES_OF_A_TOKEN))

    def goes_on(self) -> None:
        """A piece came. Raises BudgetRefusal where the model writes on and on, and the budget has no more."""
        if self._held is None:
            return
        if time.monotonic() > self._sign_at:
            held = self._held
            self._kept(lambda: self._extend(held))
            self._sign_at = time.monotonic() + _SECONDS_BETWEEN_SIGNS
        while self.written > self._limit * _MOST_BYTES_OF_A_TOKEN + _MOST_BYTES_BESIDE:
            more = max(self._limit, _FEWEST_MORE)
            try:
                self._budgets.enlarge(self._held, self._usd(Usage(0, more)), more)
            except OverBudget as error:
                raise BudgetRefusal(f"{self._name} wrote more than it was asked for: {error}") from None
            self._limit += more

    def _extend(self, held: Held) -> None:
        self._held = self._budgets.extend(held)

    def _is_possible(self, usage: Usage) -> bool:
        """No text has more tokens than bytes; nothing is written for nothing, nor read."""
        read, written = usage.prompt_tokens, usage.completion_tokens
        if not 0 < read <= self._read + _MOST_HIDDEN_READ or (self.written and written <= 0):
            return False
        return 0 <= written <= max(self._limit, self.written) + _MOST_HIDDEN_WRITTEN

    def _kept(self, write: Callable[[], None]) -> None:
        """An answer that is there is not lost with a file that cannot be written; what is held then lapses."""
        try:
            write()
        except UserError as error:
            _LOG.warning("a call of %s was not charged: %s", self._name, error)


_SECONDS_BETWEEN_SIGNS = 30.0


def _length_of(prompt: Prompt) -> int:
    """The most tokens that a prompt can have."""
    return (len(prompt.encode()) if isinstance(prompt, str) else len(prompt)) + _BYTES_OF_A_MESSAGE


def _bytes_of(messages: Sequence[Message], config: GenerationConfig) -> int:
    """The most tokens that a conversation, with its tools and form, can have."""
    texts = [message.content for message in messages]
    for message in messages:
        texts += [call.name + call.arguments for call in message.tool_calls]
    form = config.format.model_dump_json() if config.format else ""
    told = _TOLD_OF_TOOLS if isinstance(config.format, ToolFormat) else 0
    return told + sum(len(text.encode()) + _BYTES_OF_A_MESSAGE for text in (*texts, form))
