"""One text that is being written: from scores to tokens, to the text that may be shown, to its end.

Shapes: W scores, V vocab_size.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from yunque.generate.config import GenerationConfig
from yunque.generate.grammar import Grammar
from yunque.generate.runner import NoRoom
from yunque.generate.sampler import Chosen, Sampler
from yunque.generate.scheduler import Next
from yunque.generate.speculation import Draft, Proposal, verify
from yunque.generate.step import FinishReason, Step, TokenScore
from yunque.generate.text_stream import TextStream
from yunque.tokenizer import Tokenizer

Emit = Callable[[Step | Exception], None]


# So many tokens are proposed at a time. What is read in vain costs little more than a step of one token does.
_MOST_PROPOSED = 5


class Writing:
    """Text number `index` of a request: a task of the scheduler. `emit` is told each step, or what went wrong.

    With `echo` the tokens of the prompt are told, with their log-probabilities, before anything is written; the
    scores of all but the first come before those of what is written. `draft` proposes tokens that the model then
    reads together.
    """

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        sampler: Sampler,
        emit: Emit,
        prompt: Sequence[int],
        index: int = 0,
        grammar: Grammar | None = None,
        draft: Draft | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._emit = emit
        self._index = index
        self._grammar = grammar
        self._draft = draft
        self._ids = list(prompt)
        self._proposal = Proposal(())
        # How many of the proposed tokens were read in vain.
        self._vain = 0
        self._text = TextStream(config.stop)
        self._left = config.max_new_tokens
        self._end_ids = frozenset(() if config.ignore_end else (*tokenizer.end_ids, *config.stop_ids))
        self._echoed = deque(prompt if config.echo else ())
        self._prompt_text = TextStream(())
        if self._echoed:
            self._echo(None)

    def take(self, scores_WV: Tensor) -> Next | None:
        """See `Task`."""
        while self._echoed and len(scores_WV):
            self._echo(scores_WV[0])
            scores_WV = scores_WV[1:]
        if self._echoed or (self._left and not len(scores_WV)):
            return Next([])
        if not self._left or self._write(scores_WV):
            self._close()
            return None
        return self._next()

    def fail(self, error: Exception) -> None:
        """See `Task`."""
        self._close()
        self._emit(error)

    def _close(self) -> None:
        if self._draft is not None:
            self._draft.close()
            self._draft = None

    def _echo(self, scores_V: Tensor | None) -> None:
        """Tell the next token of the prompt, and its score where there is one."""
        token = self._echoed.popleft()
        text = self._prompt_text.feed(self._tokenizer.token_bytes(token))
        over = not self._echoed
        if over:
            text += self._prompt_text.finish()
        told = Chosen(token, TokenScore(token, None))
        if scores_V is not None:
            told = self._sampler.told(scores_V, token)
        reason: FinishReason | None = "length" if over and not self._left else None
        self._emit(Step(text, token, reason, self._index, True, told.scored, told.likeliest))

    def _write(self, scores_WV: Tensor) -> bool:
        """Choose and tell the next tokens; whether it was over with one of them."""
        chosen = verify(self._proposal, scores_WV, self._sampler, self._left, self._end_ids, self._grammar)
        self._vain = len(self._proposal.ids) + 1 - len(chosen)
        return any(self._told(one, last=one is chosen[-1]) for one in chosen)

    def _told(self, chosen: Chosen, last: bool) -> bool:
        """Tell a token that is written; whether the text is over with it."""
        self._left -= 1
        token = chosen.token_id
        self._ids.append(token)
        reason: FinishReason | None = None if self._left else "length"
        if token in self._end_ids:
            text, reason = self._text.finish(), "stop"
        else:
            text = self._text.feed(self._tokenizer.token_bytes(token))
            whole = last and self._grammar is not None and self._is_whole(self._grammar)
            if whole or not self._left:
                text += self._text.finish()
            if whole or self._text.stopped:
                reason = "stop"
        self._emit(Step(text, token, reason, self._index, False, chosen.scored, chosen.likeliest))
        return reason is not None

    def _is_whole(self, grammar: Grammar) -> bool:
        """Whether the form is full, so that no end token is waited for."""
        return grammar.finished or (not self._left and grammar.whole)

    def _next(self) -> Next:
        """What is read next: the last token, and what is proposed behind it."""
        vain, self._proposal = self._vain, Proposal(())
        count = min(_MOST_PROPOSED, self._left - 1)
        if self._draft is not None and count > 0:
            try:
                self._proposal = self._draft.propose(self._ids, count, self._sampler)
            except NoRoom:
                self._close()
        return Next([self._ids[-1], *self._proposal.ids], vain)


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
