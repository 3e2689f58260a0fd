"""An engine without any cleverness: the whole text through the model for every token. And one that says what it is
told to say."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from yunque.generate.config import GenerationConfig
from yunque.generate.step import Step, TokenScore
from yunque.generate.text_stream import TextStream
from yunque.llm.local import LocalModel


class PlainEngine:
    """What an engine is for the layers above it; `script` gives the texts (by their index) that are written, instead
    of what the model would write."""

    def __init__(self, real: Any, script: Sequence[str] = ()) -> None:
        self.model, self.tokenizer, self.name = real.model, real.tokenizer, real.name
        self.context, self.room, self.score = real.context, real.room, real.score
        self._check, self.cut = real.check_room, real.cut
        self._script = script
        self.configs: list[GenerationConfig] = []
        self.prompts: list[list[int]] = []
        self.closed = False
        self.memory_bytes = 0

    def close(self) -> None:
        self.closed = True

    @contextmanager
    def alone(self) -> Iterator[Any]:
        yield self.model

    def stream(
        self, prompt_ids: Sequence[int], config: GenerationConfig, *_: Any, **__: Any
    ) -> Iterator[Step]:
        self.configs.append(config)
        self.prompts.append(list(prompt_ids))
        self._check(1 if config.truncate else len(prompt_ids), config.max_new_tokens)
        kept = list(prompt_ids)[-(self.context - config.max_new_tokens) :]
        return self._interleaved([self._text(kept, config, index) for index in range(config.n)])

    def _interleaved(self, texts: list[Iterator[Step]]) -> Iterator[Step]:
        while texts:
            for text in list(texts):
                step = next(text, None)
                if step is None:
                    texts.remove(text)
                else:
                    yield step

    @torch.inference_mode()
    def _text(self, prompt: list[int], config: GenerationConfig, index: int) -> Iterator[Step]:
        logprobs = self._logprobs(prompt) if config.echo else None
        shown = TextStream(())
        for place, token in enumerate(prompt if config.echo else ()):
            last = place == len(prompt) - 1 and not config.max_new_tokens
            text = shown.feed(self.tokenizer.token_bytes(token))
            scored = self._scored(None if place == 0 else logprobs[place - 1], token, config)
            yield Step(text, token, "length" if last else None, index, True, *scored)
        generator = torch.Generator().manual_seed((config.seed or 0) + index)
        read, text_stream = list(prompt), TextStream(config.stop)
        script = self._scripted(index)
        for left in range(config.max_new_tokens - 1, -1, -1):
            scores = self._logprobs(read)[-1]
            token = next(script) if script else self._chosen(scores, config, generator)
            read.append(token)
            over = token in (*self.tokenizer.end_ids, *config.stop_ids)
            text = text_stream.finish() if over else text_stream.feed(self.tokenizer.token_bytes(token))
            over = over or text_stream.stopped
            if not left and not over:
                text += text_stream.finish()
            reason = "stop" if over else None if left else "length"
            yield Step(text, token, reason, index, False, *self._scored(scores, token, config))
            if reason:
                return

    def _scripted(self, index: int) -> Iterator[int] | None:
        if not self._script:
            return None
        text = self._script[index % len(self._script)]
        return iter([*self.tokenizer.encode(text), self.tokenizer.end_id])

    def _chosen(self, scores: torch.Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
        for token, bias in config.logit_bias.items():
            scores = scores.index_add(0, torch.tensor([token]), torch.tensor([bias]))
        if not config.temperature:
            return int(scores.argmax())
        return int(torch.multinomial((scores / config.temperature).softmax(0), 1, generator=generator))

    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        logits = self.model.logits(self.model.hidden(torch.tensor([ids])))[0].float()
        return logits.log_softmax(-1)

    def _scored(
        self, scores: torch.Tensor | None, token: int, config: GenerationConfig
    ) -> tuple[TokenScore | None, tuple[TokenScore, ...]]:
        if config.logprobs is None:
            return None, ()
        if scores is None:
            return TokenScore(token, None), ()
        best, ids = scores.topk(config.logprobs)
        likeliest = [TokenScore(id, value) for id, value in zip(ids.tolist(), best.tolist(), strict=True)]
        return TokenScore(token, float(scores[token])), tuple(likeliest)


def plain(opened: Any, *script: str) -> LocalModel:
    """The same model on a plain engine."""
    return LocalModel(opened.name, PlainEngine(opened.engine, script))  # type: ignore[arg-type]
