"""The engine: a model and its tokenizer, which write for many requests side by side.

Shapes: V vocab_size.
"""

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.grammar_compiling import grammar_of
from yunque.generate.lone_runner import LoneRunner
from yunque.generate.open_runner import AnyRunner, open_runner
from yunque.generate.opening import find_writer, open_writer
from yunque.generate.sampler import Sampler
from yunque.generate.scheduler import Job, Scheduler
from yunque.generate.search import beam_search
from yunque.generate.speculation import Draft, ModelDraft, PromptLookup
from yunque.generate.step import Step
from yunque.generate.steps import Steps, best_of
from yunque.generate.text_stream import TextStream
from yunque.generate.turn import Turn
from yunque.generate.writing import Scoring, Writing
from yunque.model import EncoderDecoder, LanguageModel
from yunque.model.decoder import Decoder
from yunque.model.formats.files import Files
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace


@dataclass(frozen=True)
class Load:
    """What an engine is doing: texts under way, requests that wait, and blocks of the cache in use, of how many.

    Of `prompt_tokens` that were asked, `found_tokens` were in the cache already.
    """

    running: int = 0
    waiting: int = 0
    blocks_in_use: int = 0
    blocks: int = 0
    prompt_tokens: int = 0
    found_tokens: int = 0


class Engine:
    """A model and its tokenizer. May be called from any number of threads: their texts are written side by side.

    `draft` proposes tokens that the model then checks together, which changes no text but its speed: a small model
    with the same vocabulary, or "lookup" for what followed the same words before in a text. Weights and texts under
    way take `most_bytes` together (see `make_pool` for what they take without).
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        name: str,
        draft: "Engine | Literal['lookup'] | None" = None,
        most_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.context = model.config.context or sys.maxsize
        # Two forwards at once would share the same cores and both be slower.
        self._turn = Turn()
        # Rows that only fill up a vocabulary (to a rounder number) were never trained, and stand for no token.
        spare = range(tokenizer.vocab_size, model.config.vocab_size)
        marks = [id for id in tokenizer.mark_ids if id < model.config.vocab_size]
        self._never = torch.tensor([*marks, *spare], dtype=torch.int64)
        self._draft = draft
        self._most_bytes = most_bytes
        if isinstance(draft, Engine):
            _check_draft(draft, tokenizer, name)
        self._opening = threading.Lock()
        self._opened: tuple[AnyRunner, Scheduler] | None = None

    @classmethod
    def open(
        cls, workspace: Workspace, ref: str, draft: str | None = None, most_bytes: int | None = None
    ) -> "Engine":
        """The engine of a model, or of an adapter on its base, by name; `draft` is a model's name, or "lookup".

        Raises UserError where there is none, or its files are damaged.
        """
        artifact = find_writer(workspace, ref)
        model, tokenizer = open_writer(workspace, artifact)
        if draft is None or draft == "lookup":
            return cls(model, tokenizer, artifact.ref, "lookup" if draft else None, most_bytes)
        return cls(model, tokenizer, artifact.ref, cls.open(workspace, draft), most_bytes)

    def stream(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        adapter: str | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> Iterator[Step]:
        """Go on after the prompt, one Step for each token; an empty prompt is the beginning of a document.

        Generation begins at the call, and ends within one step when the iterator is closed. `adapter` is one that
        was loaded. `wanted` is asked before each step, and where it says no there are no more. Raises UserError, at
        the call and not at the first step, when prompt and answer do not fit in the context.
        """
        tokenizer = self.tokenizer
        prompt = list(prompt_ids) or [tokenizer.end_id if tokenizer.bos_id is None else tokenizer.bos_id]
        if config.truncate:
            prompt = self.cut(prompt, config.max_new_tokens)
        self.check_room(len(prompt), config.max_new_tokens)
        self._check_tokens(prompt)
        if config.num_beams > 1:
            return self._searched(prompt, config)
        if config.echo and isinstance(self.model, EncoderDecoder):
            raise UserError(f"echo: {self.name} is an encoder-decoder, which gives no scores to its source")
        return self._begun(config, Job(prompt, [], config.max_new_tokens, [], adapter, wanted))

    def _begun(self, config: GenerationConfig, job: Job) -> Iterator[Step]:
        prompt = job.prompt
        told = queue.SimpleQueue[Step | Exception]()
        vocab_size = self.model.config.vocab_size
        grammar = grammar_of(config.format, self.tokenizer, vocab_size) if config.format else None
        runner, scheduler = self._ready()
        ranked = config.candidates > config.n
        asked = config
        if ranked and config.logprobs is None:
            asked = config.model_copy(update={"logprobs": 0})
        # An encoder-decoder repeats words of its source on purpose; a penalty is on what it wrote itself.
        seen = [] if isinstance(self.model, EncoderDecoder) else prompt
        job.tasks += [
            Writing(
                asked,
                self.tokenizer,
                Sampler(asked, seen, vocab_size, self._never, index),
                told.put,
                prompt,
                index,
                grammar.copy() if grammar else None,
                self._proposer(config) if runner.can_truncate else None,
            )
            for index in range(config.candidates)
        ]
        if config.echo:
            # With nothing to write the last token of the prompt foretells nothing that is asked for.
            end = len(prompt) if config.max_new_tokens else max(1, len(prompt) - 1)
            job.prompt, job.ahead = prompt[:1], prompt[1:end]
            job.fresh += len(prompt) - 1
        steps = Steps(told, config.candidates)
        steps.submit(scheduler, job)
        return best_of(steps, config) if ranked else steps

    def _proposer(self, config: GenerationConfig) -> Draft | None:
        if isinstance(self._draft, Engine):
            draft = self._draft
            return ModelDraft(draft._ready()[0], config.max_new_tokens, draft.context, draft._turn)
        return PromptLookup() if self._draft == "lookup" else None

    def _ready(self) -> tuple[AnyRunner, Scheduler]:
        with self._opening:
            if self._opened is None:
                pool_bytes = self._most_bytes and max(1, self._most_bytes - self._weight_bytes)
                runner = open_runner(self.model, pool_bytes)
                self._opened = runner, Scheduler(runner, self._turn)
            return self._opened

    def _searched(self, prompt: list[int], config: GenerationConfig) -> Iterator[Step]:
        """The best text that beam search finds; the first step comes when the last is known."""
        stop_ids = frozenset(() if config.ignore_end else (*self.tokenizer.end_ids, *config.stop_ids))
        with self.alone() as model:
            beams = beam_search(
                model,
                [prompt],
                config.num_beams,
                config.max_new_tokens,
                stop_ids,
                config.length_penalty,
                self._never.tolist(),
            )
        text = TextStream(config.stop)
        for left, token in zip(range(config.max_new_tokens - 1, -1, -1), beams[0][0].ids, strict=False):
            if token in stop_ids:
                yield Step(text.finish(), token, "stop")
                return
            shown = text.feed(self.tokenizer.token_bytes(token))
            if not left and not text.stopped:
                shown += text.finish()
            if text.stopped:
                yield Step(shown, token, "stop")
                return
            yield Step(shown, token, None if left else "length")

    def score(
        self, prompt_ids: Sequence[int], continuation_ids: Sequence[int], adapter: str | None = None
    ) -> float:
        """Log-probability (nats, summed) of the continuation after the prompt.

        Raises UserError for an empty prompt or continuation, or when both do not fit in the context.
        """
        if not prompt_ids or not continuation_ids:
            raise UserError("a continuation is scored after a prompt: neither may be empty")
        prompt, continuation = list(prompt_ids), list(continuation_ids)
        self.check_room(len(prompt), len(continuation))
        self._check_tokens([*prompt, *continuation])
        told = queue.SimpleQueue[float | Exception]()
        scoring = Scoring(continuation, told.put)
        self._ready()[1].submit(
            Job(prompt, [scoring], len(continuation), ahead=continuation[:-1], adapter=adapter)
        )
        sum_or_error = told.get()
        if isinstance(sum_or_error, Exception):
            raise sum_or_error
        return sum_or_error

    @contextmanager
    def alone(self) -> Iterator[LanguageModel]:
        """The model for other work than writing, without adapters that were loaded; the texts under way wait."""
        runner, _ = self._ready()
        with self._turn, runner.adapters.selected(None):
            yield self.model

    def load_adapter(self, name: str, files: Files) -> None:
        """Let requests ask for an adapter: its files in PEFT's format. Raises UserError where it does not fit."""
        runner, _ = self._ready()
        with self._turn:
            runner.load_adapter(name, files)

    def drop_adapter(self, name: str) -> None:
        """Give an adapter up: no request gets it from now on, and its memory is free when the last text that is
        written with it is over. Raises UserError where it is not loaded."""
        runner, _ = self._ready()
        with self._turn:
            runner.drop_adapter(name)

    @property
    def load(self) -> Load:
        """What it is doing now."""
        if self._opened is None:
            return Load()
        runner, scheduler = self._opened
        if isinstance(runner, LoneRunner):
            return Load(scheduler.running, scheduler.waiting)
        pool = runner.pool
        return Load(
            scheduler.running,
            scheduler.waiting,
            pool.blocks_in_use,
            pool.num_blocks,
            pool.tokens_asked,
            pool.tokens_found,
        )

    def prepare(self) -> None:
        """Make the cache, and compile what is compiled, now and not at the first request."""
        self._ready()

    @property
    def memory_bytes(self) -> int:
        """What its weights take, and its texts under way at most."""
        runner = self._opened and self._opened[0]
        if runner is None or isinstance(runner, LoneRunner):
            return self._weight_bytes
        return self._weight_bytes + runner.pool.nbytes

    @property
    def _weight_bytes(self) -> int:
        return sum(part.nbytes for part in (*self.model.parameters(), *self.model.buffers()))

    def close(self) -> None:
        """End every request, and wait for the step under way. A closed engine takes no other call.

        A beam search goes on to its end.
        """
        if self._opened:
            self._opened[1].close()

    def room(self, prompt: int) -> int:
        """How many tokens may be written after a prompt of so many; below 1 where there is no room."""
        if isinstance(self.model, EncoderDecoder):
            return self.context if prompt <= self.context else 0
        return self.context - prompt

    def cut(self, prompt: list[int], fresh: int) -> list[int]:
        """The end of a prompt that fits with so many tokens behind it, one token at least."""
        fits = self.context if isinstance(self.model, EncoderDecoder) else self.context - fresh
        return prompt[-max(1, fits) :]

    def _check_tokens(self, ids: Sequence[int]) -> None:
        worst = max(ids, key=lambda id: id if id >= 0 else sys.maxsize)
        if not 0 <= worst < self.model.config.vocab_size:
            raise UserError(
                f"{self.name} knows {self.model.config.vocab_size} tokens: none has the number {worst}"
            )

    def check_room(self, prompt: int, fresh: int) -> None:
        if isinstance(self.model, EncoderDecoder):
            # Source and target have a context each.
            for what, count in (("prompt has", prompt), ("answer may have", fresh)):
                if count > self.context:
                    raise UserError(
                        f"the {what} {count} tokens, but the context of {self.name} is {self.context}"
                    )
        elif prompt + fresh > self.context:
            room = (
                f"at most {self.context - prompt} tokens fit behind it"
                if prompt < self.context
                else f"a prompt may have at most {self.context - 1} tokens"
            )
            raise UserError(
                f"the prompt has {prompt} tokens and {fresh} more were asked for, but the context of {self.name} is "
                f"{self.context} tokens: {room}"
            )


def _check_draft(draft: Engine, tokenizer: Tokenizer, name: str) -> None:
    if not isinstance(draft.model, Decoder):
        kind = draft.model.config.model_type
        raise UserError(f"{draft.name} proposes nothing: a {kind} model cannot take back what it has read")
    if not _alike(draft.tokenizer, tokenizer):
        raise UserError(f"{draft.name} proposes nothing for {name}: their vocabularies differ")


def _alike(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether the same number is the same token in both."""
    return (one.vocab_size, one.end_ids) == (other.vocab_size, other.end_ids) and all(
        one.token_name(id) == other.token_name(id) for id in range(one.vocab_size)
    )
