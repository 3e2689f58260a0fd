"""The engine: runs a model of the workspace token by token, with a key-value cache.

Shapes: T positions, V vocab_size; the batch is one request.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.sampling import choose_token
from yunque.generate.text_stream import TextStream
from yunque.model import KeyValueCache, Llama, load_model
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

    def __init__(self, model: Llama, tokenizer: Tokenizer, name: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.context: int = model.config.max_position_embeddings
        # Two forwards at once would share the same cores and both be slower.
        self._turn = threading.Lock()
        marks = [id for id in tokenizer.mark_ids if id < model.config.vocab_size]
        self._never = torch.tensor(marks, dtype=torch.int64)

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "Engine":
        """The engine of a model artifact. Raises UserError where there is none, or its files are damaged."""
        artifact = workspace.get(ref, "model")
        model = load_model({path: workspace.file(artifact, path) for path in artifact.files})
        tokenizer = Tokenizer.load(workspace.file(artifact, "tokenizer.json"))
        return cls(model, tokenizer, artifact.ref)

    def stream(self, prompt_ids: Sequence[int], config: GenerationConfig) -> Iterator[Step]:
        """Go on after the prompt, one Step for each token; an empty prompt is the beginning of a document.

        Raises UserError, at the call and not at the first step, when prompt and answer do not fit in the context.
        """
        prompt = list(prompt_ids) or [self.tokenizer.end_id]
        self._check_room(len(prompt), config.max_new_tokens)
        return self._generate(prompt, config)

    def _generate(self, prompt: list[int], config: GenerationConfig) -> Iterator[Step]:
        generator = torch.Generator()
        if config.seed is None:
            generator.seed()
        else:
            generator.manual_seed(config.seed)
        capacity = len(prompt) + config.max_new_tokens
        cache = KeyValueCache(self.model.config, 1, capacity, torch.float32)
        text = TextStream(config.stop)
        ids = list(prompt)
        logits_V = self._forward(prompt, cache)
        for left in range(config.max_new_tokens - 1, -1, -1):
            token = choose_token(logits_V, torch.tensor(ids), config, generator)
            if token == self.tokenizer.end_id:
                yield Step(text.finish(), token, "stop")
                return
            ids.append(token)
            shown = text.feed(self.tokenizer.token_bytes(token))
            if not left and not text.stopped:
                shown += text.finish()
            if text.stopped:
                yield Step(shown, token, "stop")
                return
            yield Step(shown, token, None if left else "length")
            if left:
                logits_V = self._forward([token], cache)

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
        with self._turn:
            hidden_1TD = self.model.hidden(torch.tensor([prompt + continuation[:-1]]))
            logits_TV = self.model.embedding.logits(hidden_1TD[0, len(prompt) - 1 :]).float()
        chosen = torch.tensor(continuation)[:, None]
        return float(logits_TV.log_softmax(-1).gather(1, chosen).sum())

    @torch.inference_mode()
    def _forward(self, ids: list[int], cache: KeyValueCache) -> Tensor:
        """Scores [V] of the token after `ids`, which the cache takes in; marks of the chat format have none."""
        with self._turn:
            hidden_1TD = self.model.hidden(torch.tensor([ids]), cache)
            logits_V: Tensor = self.model.embedding.logits(hidden_1TD[0, -1]).float()
        return logits_V.index_fill(0, self._never, float("-inf"))

    def _check_room(self, prompt: int, fresh: int) -> None:
        if prompt + fresh > self.context:
            room = (
                f"at most {self.context - prompt} tokens fit behind it"
                if prompt < self.context
                else f"a prompt may have at most {self.context - 1} tokens"
            )
            raise UserError(
                f"the prompt has {prompt} tokens and {fresh} more were asked for, but the context of {self.name} is "
                f"{self.context} tokens: {room}"
            )
