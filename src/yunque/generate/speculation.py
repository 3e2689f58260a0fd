"""Speculative decoding: a cheap guess proposes the next tokens, the model scores them all at once, and a rule keeps
as many as it may without changing what the model writes (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023,
arXiv:2302.01318).

A text under way: the model reads its last token and the k proposed behind it, with k + 1 scores wanted; `verify` says
which tokens were written, 1 to k + 1; what was read behind the last one but itself is to be forgotten.

Shapes: K proposed tokens, V vocab_size.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from yunque.generate.grammar import Grammar
from yunque.generate.runner import Runner, Text, Work
from yunque.generate.sampler import Chosen, Sampler
from yunque.generate.sampling import Floats
from yunque.generate.turn import Turn


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next. Each was drawn from its row of `probabilities`, after those before it; none where
    there was no chance in it."""

    ids: tuple[int, ...]
    probabilities: tuple[Floats, ...] | None = None


class Draft(Protocol):
    """Who proposes tokens for one text."""

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> Proposal:
        """At most `count` tokens behind `ids`: the prompt and all that `sampler` has chosen, which is unchanged
        afterwards but for its random numbers."""
        ...

    def close(self) -> None:
        """The text is over."""
        ...


class PromptLookup:
    """Proposes what followed the last time that the text said the same few tokens (Saxena 2023, prompt lookup
    decoding): answers often repeat what they were asked about."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._after: dict[tuple[int, ...], int] = {}
        self._read = 0

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> Proposal:  # noqa: ARG002
        """See `Draft`."""
        for place in range(self._read, len(ids)):
            for length in self._lengths:
                if place >= length:
                    self._after[tuple(ids[place - length : place])] = place
        self._read = len(ids)
        for length in self._lengths:
            found = self._after.get(tuple(ids[-length:])) if len(ids) >= length else None
            if found is not None:
                return Proposal(tuple(ids[found : found + count]))
        return Proposal(())

    def close(self) -> None:
        """See `Draft`."""


class ModelDraft:
    """Proposes what a small model with the same vocabulary would write, with the settings of the text.

    `room` is how many tokens the text may still get, `context` what the small model can read: beyond it nothing is
    proposed. `turn` is held while it computes. Raises NoRoom from `propose` where its cache is full.
    """

    def __init__(self, runner: Runner, room: int, context: int, turn: Turn) -> None:
        self._runner = runner
        self._room = room
        self._context = context
        self._turn = turn
        self._text: Text | None = None
        # What the small model has read.
        self._read: list[int] = []

    def propose(self, ids: Sequence[int], count: int, sampler: Sampler) -> Proposal:
        """See `Draft`."""
        count = min(count, self._context - len(ids))
        if count < 1:
            return Proposal(())
        with self._turn:
            return self._written(list(ids), count, sampler)

    def _written(self, ids: list[int], count: int, sampler: Sampler) -> Proposal:
        scores_V = self._catch_up(ids)
        assert self._text is not None
        proposed: list[int] = []
        rows: list[Floats] = []
        while True:
            if sampler.greedy:
                proposed.append(sampler.choose(scores_V).token_id)
            else:
                rows.append(sampler.distribution(scores_V))
                proposed.append(sampler.draw(rows[-1]))
                sampler.advance(proposed[-1])
            if len(proposed) == count:
                break
            scores_V = self._runner.run([Work(self._text, proposed[-1:])])[0][-1]
            self._read.append(proposed[-1])
        sampler.rollback(count)
        return Proposal(tuple(proposed), None if sampler.greedy else tuple(rows))

    def _catch_up(self, ids: list[int]) -> Tensor:
        """The small model's scores behind `ids`."""
        if self._text is None:
            self._text = self._runner.open(ids, min(self._room, self._context - len(ids)))
            unread = self._text.unread
        else:
            pairs = zip(ids[:-1], self._read, strict=False)
            known = next((place for place, (one, two) in enumerate(pairs) if one != two), None)
            if known is None:
                known = min(len(ids) - 1, len(self._read))
            self._text.truncate(known)
            unread = ids[known:]
        self._read = ids
        return self._runner.run([Work(self._text, unread)])[0][-1]

    def close(self) -> None:
        """See `Draft`."""
        if self._text is not None:
            self._text.close()
            self._text = None


def verify(
    proposal: Proposal,
    scores_KV: Tensor,
    sampler: Sampler,
    left: int,
    ends: Collection[int] = (),
    grammar: Grammar | None = None,
) -> list[Chosen]:
    """The tokens that are written, from the model's scores behind the last token and behind each of those proposed
    ([K + 1, V]): 1 to K + 1 of them, and no more than `left`. None comes after one of `ends`.

    Greedy tokens are those that the model would have written alone; drawn ones have the distribution that they would
    have had. Sampler and grammar count them as written.
    """
    chosen: list[Chosen] = []
    for place, scores_V in enumerate(scores_KV):
        now_left = left - place
        proposed = proposal.ids[place] if place < len(proposal.ids) else None
        if grammar is not None and grammar.watches(now_left):
            # Near the end the grammar has a say that no distribution tells: what is proposed from here on is unheard.
            chosen.append(grammar.choose(sampler, scores_V, now_left))
            break
        allowed = None if grammar is None else grammar.allowed()
        if proposed is None or sampler.greedy:
            chosen.append(sampler.choose(scores_V, allowed))
        else:
            probabilities = proposal.probabilities[place] if proposal.probabilities else None
            target = sampler.distribution(scores_V, allowed)
            token_id = _settled(proposed, target, probabilities, sampler)
            sampler.advance(token_id)
            chosen.append(sampler.told(scores_V, token_id))
        token_id = chosen[-1].token_id
        if grammar is not None:
            grammar.accept(token_id)
        over = token_id in ends or now_left == 1 or (grammar is not None and grammar.finished)
        if over or token_id != proposed:
            break
    return chosen


def _settled(proposed: int, target: Floats, draft: Floats | None, sampler: Sampler) -> int:
    """The proposed token, with probability min(1, target / draft); else one drawn from what the target has more of.

    Both together have the target's distribution.
    """
    chance = 1.0 if draft is None else float(draft[proposed])
    if sampler.uniform() * chance < target[proposed]:
        return proposed
    rest = target.copy()
    if draft is None:
        rest[proposed] = 0
    else:
        np.maximum(target - draft, 0, out=rest)
    # Where both are alike but for rounding, nothing is left.
    return sampler.draw(rest if rest.any() else target)
