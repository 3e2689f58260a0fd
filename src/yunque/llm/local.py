"""A model of the workspace, run on this machine."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import cast

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.generate.conversation import encode_answer
from yunque.generate.engine import Engine
from yunque.generate.step import Step, TokenScore
from yunque.generate.tool_calls import CallDelta, ContentDelta, ToolStream
from yunque.generate.tool_conversation import encode_conversation
from yunque.llm.embedding import embed_with, texts_to_embed
from yunque.llm.face import (
    Chunk,
    Completion,
    ContextOverflow,
    Cost,
    Embeddings,
    FinishReason,
    Message,
    Prompt,
    TokenLogprob,
    ToolCallPart,
    Usage,
    joined_calls,
)
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace


class LocalModel:
    """A model that this process runs; nothing leaves the machine. Tokens are the model's own."""

    local = True

    def __init__(self, name: str, engine: Engine, adapter: str | None = None) -> None:
        """`adapter` is one that the engine has loaded."""
        self.name = name
        self.engine = engine
        self.adapter = adapter

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self.engine.tokenizer

    @property
    def context(self) -> int | None:
        """How many tokens it can read and write together; None where there is no limit."""
        return self.engine.model.config.context

    @classmethod
    def open(cls, workspace: Workspace, ref: str, most_bytes: int | None = None) -> "LocalModel":
        """The model `[model/]NAME[@VERSION]`, or the adapter `adapter/NAME` on its base; raises UserError when there
        is none. `most_bytes` is what it may take, texts under way included, and what it takes at once."""
        engine = Engine.open(workspace, ref, most_bytes=most_bytes)
        if most_bytes is not None:
            engine.prepare()
        return cls(engine.name, engine)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation; raises ContextOverflow when it and the answer are longer than the context."""
        return self._whole(self.stream_chat(messages, config))

    def stream_chat(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        wanted: Callable[[], bool] | None = None,
    ) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; raises ContextOverflow at the call. `wanted` as for a text."""
        return self._stream(self.encode(messages, config), config, wanted)

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text; raises ContextOverflow."""
        return self._whole(self.stream_complete(prompt, config))

    def stream_complete(
        self, prompt: Prompt, config: GenerationConfig, wanted: Callable[[], bool] | None = None
    ) -> Iterator[Chunk]:
        """Go on with a text piece by piece; raises ContextOverflow at the call. Where `wanted`, asked before each
        step, says no, there are no more."""
        ids = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        return self._stream(ids, config, wanted)

    def encode(self, messages: Sequence[Message], config: GenerationConfig) -> list[int]:
        """The tokens that a conversation is asked with."""
        tools = config.format.tools if isinstance(config.format, ToolFormat) else ()
        return encode_conversation(self.tokenizer, self.engine.model, messages, tools)

    def score(self, messages: Sequence[Message], answers: Sequence[str]) -> list[float]:
        """The log-likelihood (nats) of each answer to a conversation, with its end; raises ContextOverflow."""
        engine, likelihoods = self.engine, list[float]()
        asked = [(message.role, message.content) for message in messages]
        for answer in answers:
            written = encode_answer(engine.tokenizer, engine.model, asked, answer)
            try:
                likelihoods.append(engine.score(written.prompt, written.answer, self.adapter))
            except UserError as error:
                raise ContextOverflow(str(error), engine.room(len(written.prompt))) from None
        return likelihoods

    def embed(self, texts: Sequence[Prompt], wanted: Callable[[], bool] | None = None) -> Embeddings:
        """A vector for each text: the mean of a decoder's (or of an encoder-decoder's source's) last hidden vectors,
        at length 1. Raises ContextOverflow, and Unwanted where `wanted`, asked now and then, says no."""
        return embed_with(self.engine.alone, self.read(texts), wanted)

    def read(self, texts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens of texts that are to get vectors; raises ContextOverflow."""
        if self.adapter:
            raise UserError(f"{self.name} is an adapter: ask the model that it is for, for vectors")
        return texts_to_embed(self.engine.model, self.tokenizer, texts, self.name)

    def fitted(self, prompt_ids: list[int], config: GenerationConfig) -> list[int]:
        """What is read of a prompt: all, or with `truncate` as much of its end as there is room for.

        Raises ContextOverflow where it does not fit with what may be written, UserError for tokens that do not exist.
        """
        engine, fresh = self.engine, config.max_new_tokens
        beyond = max((*prompt_ids, *config.logit_bias), default=0)
        if beyond >= engine.model.config.vocab_size:
            raise UserError(
                f"token {beyond} does not exist: {self.name} has {engine.model.config.vocab_size}"
            )
        read = engine.cut(prompt_ids, fresh) if config.truncate else prompt_ids
        try:
            if fresh > engine.room(len(read)):
                # Told with the length that the prompt has, not with what would be left of it.
                engine.check_room(len(prompt_ids), fresh)
        except UserError as error:
            raise ContextOverflow(str(error), self.room(len(prompt_ids), config.truncate)) from None
        return read

    def room(self, prompt_tokens: int, truncate: bool = False) -> int:
        """How many tokens may be written after so many; of a prompt that may be cut, half of the context is kept."""
        if truncate:
            return max(self.engine.room(prompt_tokens), self.engine.context // 2)
        return self.engine.room(prompt_tokens)

    def close(self) -> None:
        """Give the model's memory back."""
        self.engine.close()

    def _stream(
        self, prompt_ids: list[int], config: GenerationConfig, wanted: Callable[[], bool] | None = None
    ) -> Iterator[Chunk]:
        read = self.fitted(prompt_ids, config)
        steps = self.engine.stream(read, config, self.adapter, wanted=wanted)
        return self._chunks(len(read), steps, config)

    def _chunks(self, prompt_tokens: int, steps: Iterator[Step], config: GenerationConfig) -> Iterator[Chunk]:
        """One chunk for each step, also where no text became certain."""
        calls = [_Calls() for _ in range(config.n)] if isinstance(config.format, ToolFormat) else []
        written = finished = 0
        with _ended(steps):
            for step in steps:
                written += (not step.echoed) + step.unseen
                text, reason = step.text, cast("FinishReason | None", step.finish_reason)
                parts: tuple[ToolCallPart, ...] = ()
                if calls and not step.echoed:
                    text, parts, reason = calls[step.index].read(step)
                scored = (self._told(step),) if step.scored else ()
                finished += reason is not None
                last = reason is not None and finished == config.n
                usage, model = (Usage(prompt_tokens, written), self.name) if last else (None, None)
                yield Chunk(
                    text,
                    reason,
                    usage,
                    model,
                    step.index,
                    step.echoed,
                    scored,
                    parts,
                    Cost(0.0) if last else None,
                )

    def _told(self, step: Step) -> TokenLogprob:
        assert step.scored
        token, likeliest = self._named(step.scored), tuple(map(self._named, step.likeliest))
        return TokenLogprob(token.text, token.data, token.logprob, likeliest)

    def _named(self, scored: TokenScore) -> TokenLogprob:
        data = self.tokenizer.token_bytes(scored.token_id)
        name = self._special_names.get(scored.token_id) or data.decode("utf-8", errors="replace")
        return TokenLogprob(name, data, scored.logprob)

    @cached_property
    def _special_names(self) -> dict[int, str]:
        return {id: token for token, id in self.tokenizer.special_tokens.items()}

    def _whole(self, chunks: Iterator[Chunk]) -> Completion:
        """The first answer of a stream."""
        texts: list[str] = []
        parts: list[ToolCallPart] = []
        reason: FinishReason = "length"
        for chunk in chunks:
            if chunk.index == 0 and not chunk.echoed:
                texts.append(chunk.text)
                parts += chunk.tool_calls
                reason = chunk.finish_reason or reason
            if chunk.usage:
                return Completion(
                    "".join(texts), self.name, reason, chunk.usage, joined_calls(parts), Cost(0.0)
                )
        raise AssertionError("the engine's last step says why it ended")


class _Calls:
    """The calls of tools in one answer, told apart from its text."""

    def __init__(self) -> None:
        self._stream = ToolStream()
        self._called = False

    def read(self, step: Step) -> tuple[str, tuple[ToolCallPart, ...], FinishReason | None]:
        """The text of a step, the pieces of calls in it, and why the answer ends with it."""
        told = self._stream.feed(step.text)
        if step.finish_reason:
            told += self._stream.finish()
        parts = tuple(_part(delta) for delta in told if isinstance(delta, CallDelta))
        text = "".join(delta.text for delta in told if isinstance(delta, ContentDelta))
        self._called = self._called or bool(parts)
        reason: FinishReason | None = step.finish_reason
        if reason == "stop" and self._called:
            reason = "tool_calls"
        return text, parts, reason


def _part(delta: CallDelta) -> ToolCallPart:
    id = None if delta.name is None else f"call_{secrets.token_hex(12)}"
    return ToolCallPart(delta.index, delta.arguments, id, delta.name)


@contextmanager
def _ended(steps: Iterator[Step]) -> Iterator[None]:
    """However this is left, the generation has ended then."""
    try:
        yield
    finally:
        if close := getattr(steps, "close", None):
            close()
