"""The engine: runs a model of the workspace token by token, with a key-value cache.

Shapes: T positions, V vocab_size; the batch is one request.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.opening import find_writer, open_writer
from yunque.generate.sampling import choose_token
from yunque.generate.search import beam_search
from yunque.generate.state import open_state
from yunque.generate.text_stream import TextStream
from yunque.model import CausalModel, EncoderDecoder, LanguageModel
from yunque.tokenizer import Tokenizer
from yunque.workspace import Workspace


@dataclass(frozen=True)
class Step:
    """One token that was generated.

    `text` is what became certain with it ("" while a character or a possible stop string is incomplete); the last
    step carries `finish_reason`: "stop" (end token or stop string) or "length".
    """

    text: str
    token_id: int
    finish_reason: Literal["stop", "length"] | None = None


class Engine:
    """A model and its tokenizer. May be called from several threads; they take turns at the model."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.context = model.config.context or sys.maxsize
        # Two forwards at once would share the same cores and both be slower.
        self._turn = threading.Lock()
        self._stop_ids = frozenset(tokenizer.end_ids)
        # Rows that only fill up a vocabulary (to a rounder number) were never trained, and stand for no token.
        spare = range(tokenizer.vocab_size, model.config.vocab_size)
        marks = [id for id in tokenizer.mark_ids if id < model.config.vocab_size]
        self._never = torch.tensor([*marks, *spare], dtype=torch.int64)

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "Engine":
        """The engine of a model, or of an adapter on its base, by name.

        Raises UserError where there is none, or its files are damaged.
        """
        artifact = find_writer(workspace, ref)
        model, tokenizer = open_writer(workspace, artifact)
        return cls(model, tokenizer, artifact.ref)

    def stream(self, prompt_ids: Sequence[int], config: GenerationConfig) -> Iterator[Step]:
        """Go on after the prompt, one Step for each token; an empty prompt is the beginning of a document.

        Raises UserError, at the call and not at the first step, when prompt and answer do not fit in the context.
        """
        tokenizer = self.tokenizer
        prompt = list(prompt_ids) or [tokenizer.end_id if tokenizer.bos_id is None else tokenizer.bos_id]
        self._check_room(len(prompt), config.max_new_tokens)
        return self._generate(prompt, config)

    def _generate(self, prompt: list[int], config: GenerationConfig) -> Iterator[Step]:
        tokens = self._searched(prompt, config) if config.num_beams > 1 else self._drawn(prompt, config)
        text = TextStream(config.stop)
        for left, token in zip(range(config.max_new_tokens - 1, -1, -1), tokens, strict=False):
            if token in self._stop_ids:
                yield Step(text.finish(), token, "stop")
                return
            shown = text.feed(self.tokenizer.token_bytes(token))
            if not left and not text.stopped:
                shown += text.finish()
            if text.stopped:
                yield Step(shown, token, "stop")
                return
            yield Step(shown, token, None if left else "length")

    def _drawn(self, prompt: list[int], config: GenerationConfig) -> Iterator[int]:
        """One token after the other, each chosen among those that are likely after all before it."""
        generator = torch.Generator()
        if config.seed is None:
            generator.seed()
        else:
            generator.manual_seed(config.seed)
        # An encoder-decoder repeats words of its source on purpose; a penalty is on what it wrote itself.
        seen = list(prompt) if isinstance(self.model, CausalModel) else []
        with self._turn, torch.inference_mode():
            state = open_state(self.model, [prompt], config.max_new_tokens)
            logits_V = self._allowed(state.next_logits())
        while True:
            token = choose_token(logits_V, torch.tensor(seen, dtype=torch.int64), config, generator)
            seen.append(token)
            yield token
            with self._turn, torch.inference_mode():
                logits_V = self._allowed(state.next_logits(torch.tensor([token])))

    def _allowed(self, logits_1V: Tensor) -> Tensor:
        """Scores [V]; marks of the chat format have none."""
        return logits_1V[0].index_fill(0, self._never, float("-inf"))

    def _searched(self, prompt: list[int], config: GenerationConfig) -> Iterator[int]:
        """The tokens of the best text that beam search finds; the first comes when the last is known."""
        with self._turn:
            beams = beam_search(
                self.model,
                [prompt],
                config.num_beams,
                config.max_new_tokens,
                self._stop_ids,
                config.length_penalty,
                self._never.tolist(),
            )
        yield from beams[0][0].ids

    def score(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> float:
        """Log-probability (nats, summed) of the continuation after the prompt.

        Raises UserError for an empty prompt or continuation, or when both do not fit in the context.
        """
        if not prompt_ids or not continuation_ids:
            raise UserError("a continuation is scored after a prompt: neither may be empty")
        self._check_room(len(prompt_ids), len(continuation_ids))
        return self._score(list(prompt_ids), list(continuation_ids))

    @torch.inference_mode()
    def _score(self, prompt: list[int], continuation: list[int]) -> float:
        chosen = torch.tensor(continuation)
        with self._turn:
            if isinstance(self.model, EncoderDecoder):
                start = self.model.config.decoder_start_token_id
                read = torch.tensor([[start, *continuation[:-1]]])
                hidden_TD = self.model.decode(read, self.model.encode(torch.tensor([prompt])))[0]
            else:
                assert isinstance(self.model, CausalModel)
                hidden_TD = self.model.hidden(torch.tensor([prompt + continuation[:-1]]))[
                    0, len(prompt) - 1 :
                ]
            logits_TV = self.model.logits(hidden_TD).float()
        return float(logits_TV.log_softmax(-1).gather(1, chosen[:, None]).sum())

    def room(self, prompt: int) -> int:
        """How many tokens may be written after a prompt of so many; below 1 where there is no room."""
        if isinstance(self.model, EncoderDecoder):
            return self.context if prompt <= self.context else 0
        return self.context - prompt

    def _check_room(self, prompt: int, fresh: int) -> None:
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
