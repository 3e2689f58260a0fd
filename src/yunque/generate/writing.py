"""One text that is being written: from scores to tokens, to the text that may be shown, to its end.

Shapes: W scores, V vocab_size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from yunque.generate.config import GenerationConfig
from yunque.generate.sampler import Chosen, Sampler
from yunque.generate.scheduler import Next
from yunque.generate.step import FinishReason, Step, TokenScore
from yunque.generate.text_stream import TextStream
from yunque.tokenizer import Tokenizer

Emit = Callable[[Step | Exception], None]


class Writing:
    """Text number `index` of a request: a task of the scheduler. `emit` is told each step, or what went wrong.

    The tokens of `echoed`, a prompt, are told with their log-probabilities before anything is written; the scores of
    all but the first come before those of what is written.
    """

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        sampler: Sampler,
        emit: Emit,
        index: int = 0,
        echoed: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._emit = emit
        self._index = index
        self._text = TextStream(config.stop)
        self._left = config.max_new_tokens
        self._end_ids = frozenset(() if config.ignore_end else (*tokenizer.end_ids, *config.stop_ids))
        self._echoed = list(echoed)
        self._prompt_text = TextStream(())
        if self._echoed:
            self._echo(None)

    def take(self, scores_WV: Tensor) -> Next | None:
        """See `Task`."""
        token: int | None = None
        for scores_V in scores_WV:
            if self._echoed:
                token = self._echo(scores_V)
            elif self._left:
                token = self._write(scores_V)
            if token is None or not (self._left or self._echoed):
                return None
        return None if token is None else Next([token])

    def fail(self, error: Exception) -> None:
        """See `Task`."""
        self._emit(error)

    def _echo(self, scores_V: Tensor | None) -> int:
        """Tell the next token of the prompt, and its score where there is one."""
        token = self._echoed.pop(0)
        text = self._prompt_text.feed(self._tokenizer.token_bytes(token))
        over = not self._echoed
        if over:
            text += self._prompt_text.finish()
        told = Chosen(token, TokenScore(token, None))
        if scores_V is not None:
            told = self._sampler.told(scores_V, token)
        reason: FinishReason | None = "length" if over and not self._left else None
        self._emit(Step(text, token, reason, self._index, True, told.scored, told.likeliest))
        return token

    def _write(self, scores_V: Tensor) -> int | None:
        """Choose and tell the next token; None where it was the last."""
        chosen = self._sampler.choose(scores_V)
        self._left -= 1
        token = chosen.token_id
        reason: FinishReason | None = None if self._left else "length"
        if token in self._end_ids:
            text, reason = self._text.finish(), "stop"
        else:
            text = self._text.feed(self._tokenizer.token_bytes(token))
            if not self._left and not self._text.stopped:
                text += self._text.finish()
            if self._text.stopped:
                reason = "stop"
        self._emit(Step(text, token, reason, self._index, False, chosen.scored, chosen.likeliest))
        return None if reason else token


class Scoring:
    """The log-probability of given tokens: a task of the scheduler. `tell` gets the sum (nats) or what went wrong."""

    def __init__(self, ids: Sequence[int], tell: Callable[[float | Exception], None]) -> None:
        self._ids = list(ids)
        self._tell = tell
        self._sum = 0.0

    def take(self, scores_WV: Tensor) -> Next | None:
        """See `Task`."""
        ids, self._ids = self._ids[: len(scores_WV)], self._ids[len(scores_WV) :]
        logprobs_WV = scores_WV[: len(ids)].log_softmax(-1)
        self._sum += float(logprobs_WV.gather(1, torch.tensor(ids)[:, None]).sum(dtype=torch.float64))
        if self._ids:
            return Next([])
        self._tell(self._sum)
        return None

    def fail(self, error: Exception) -> None:
        """See `Task`."""
        self._tell(error)
