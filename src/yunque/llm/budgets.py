"""A model whose calls are charged to budgets: the call that could pass one is refused before it is made."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

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

_BYTES_OF_A_MESSAGE = 16
_BYTES_OF_A_TOKEN = 4
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
    every token that may be written. Afterwards the real figures take its place; of an answer that was broken off or
    left, what had come of it, estimated at one token for four bytes. A model of this machine costs nothing, and uses
    tokens.
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
        """Answer a conversation piece by piece; raises BudgetRefusal before the first."""
        return self._streamed(
            _bytes_of(messages, config), config, lambda: self.model.stream_chat(messages, config)
        )

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises BudgetRefusal before the first."""
        return self._streamed(_length_of(prompt), config, lambda: self.model.stream_complete(prompt, config))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """A vector for each text; raises BudgetRefusal."""
        embed: Callable[[Sequence[Prompt]], Embeddings] = self.ability("embed")
        with self._held(sum(map(_length_of, texts)), 0) as (held, settle):
            del held
            made = embed(texts)
            settle(Usage(made.prompt_tokens, 0), made.cost)
            return made

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer; raises BudgetRefusal."""
        score: Callable[[Sequence[Message], Sequence[str]], list[float]] = self.ability("score")
        read = len(answers) * _bytes_of(messages, GenerationConfig()) + sum(map(_length_of, answers))
        with self._held(read, 0) as (held, settle):
            del held
            scores = score(messages, answers)
            settle(Usage(-(-read // _BYTES_OF_A_TOKEN), 0), None)
            return scores

    def _charged(self, read: int, config: GenerationConfig, ask: Callable[[], Completion]) -> Completion:
        with self._held(read, config.max_new_tokens * config.candidates) as (_, settle):
            completion = ask()
            settle(completion.usage, completion.cost)
            return completion

    def _streamed(
        self, read: int, config: GenerationConfig, ask: Callable[[], Iterator[Chunk]]
    ) -> Iterator[Chunk]:
        written = 0
        settled = False
        with self._held(read, config.max_new_tokens * config.candidates) as (held, settle):
            chunks = ask()
            sign_at = time.monotonic() + _SECONDS_BETWEEN_SIGNS
            try:
                for chunk in chunks:
                    written += len(chunk.text.encode())
                    for part in chunk.tool_calls:
                        written += len(part.arguments)
                    if chunk.usage:
                        # Before the caller sees it: who has the last piece need not ask for another.
                        settle(chunk.usage, chunk.cost)
                        settled = True
                    elif time.monotonic() > sign_at:
                        held[0] = self._budgets.extend(held[0])
                        sign_at = time.monotonic() + _SECONDS_BETWEEN_SIGNS
                    yield chunk
            finally:
                if close := getattr(chunks, "close", None):
                    close()
                if written and not settled:
                    settle(Usage(-(-read // _BYTES_OF_A_TOKEN), -(-written // _BYTES_OF_A_TOKEN)), None)

    @contextmanager
    def _held(
        self, read: int, written: int
    ) -> Iterator[tuple[list[Held], Callable[[Usage, Cost | None], None]]]:
        """Hold the most that a call can use while it lasts; it used nothing unless `settle` is told so."""
        try:
            held = [self._budgets.hold(self._who, self._usd(Usage(read, written)), read + written)]
        except OverBudget as error:
            raise BudgetRefusal(str(error)) from None

        def settle(usage: Usage, cost: Cost | None) -> None:
            usd = cost.usd if cost else self._usd(usage) or 0.0
            [last] = held
            held.clear()
            self._budgets.settle(last, usd, usage.prompt_tokens + usage.completion_tokens)

        try:
            yield held, settle
        except ModelUnavailable as error:
            # A provider bills what it declines to answer too.
            billed = getattr(error, "usage", None)
            if held and isinstance(billed, Usage):
                settle(billed, getattr(error, "cost", None))
            raise
        finally:
            if held:
                self._budgets.release(held[0])

    def _usd(self, usage: Usage) -> float | None:
        if self.local:
            return 0.0
        if self._price is None:
            return None
        read, written = usage.prompt_tokens * self._price.input, usage.completion_tokens * self._price.output
        return (read + written) / 1e6


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
