"""Who chooses the tokens of one text: its settings, what it has written so far, and its own random numbers.

Shapes: V vocab_size. Scores are float32.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.sampling import (
    COLDEST,
    Floats,
    Ids,
    divide_seen,
    draw,
    highest,
    shortlist,
    softmax,
    spread,
    subtract,
)
from yunque.generate.step import TokenScore


@dataclass(frozen=True)
class Chosen:
    """A token, and where log-probabilities were asked for its own and the likeliest ones (see `Step`)."""

    token_id: int
    scored: TokenScore | None = None
    likeliest: tuple[TokenScore, ...] = ()


class Sampler:
    """Chooses the tokens of one text.

    `prompt_ids` are what the repetition penalty counts as said before the text begins (nothing of an
    encoder-decoder's source, which is repeated on purpose); presence and frequency count what is written only, as
    OpenAI defines them. `never` are ids that are no text. Text number `index` of a request has random numbers of its
    own, which depend on nothing but it and the seed. Raises UserError for a `logit_bias` of tokens that are not in
    the vocabulary.

    The scores of a token are changed in this order: logit_bias, repetition, presence and frequency, what is not
    allowed, temperature, top-k, top-p, min-p, typical. Log-probabilities are the model's own, before all of this.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: Sequence[int],
        vocab_size: int,
        never: Tensor | None = None,
        index: int = 0,
    ) -> None:
        self.config = config
        self.greedy = config.temperature < COLDEST
        self._never: Ids = np.empty(0, dtype=np.int64) if never is None else never.numpy()
        self._refused = frozenset(self._never.tolist())
        self._bias = _bias(config.logit_bias, vocab_size)
        self._said = _Tally() if config.repetition_penalty != 1 else None
        penalties = config.presence_penalty or config.frequency_penalty
        self._written = _Tally() if penalties else None
        if self._said is not None:
            for token_id in prompt_ids:
                self._said.add(token_id)
        self._random = random.Random(None if config.seed is None else f"{config.seed}/{index}")
        self._ids: list[int] = []

    @property
    def _changes(self) -> bool:
        """Whether settings change scores, other than temperature and filters."""
        return self._bias is not None or self._said is not None or self._written is not None

    def choose(self, logits_V: Tensor, allowed: Ids | None = None) -> Chosen:
        """The next token, which is now part of the text. `allowed` are the ids that a format lets through."""
        token_id = self._pick(logits_V, allowed)
        self.advance(token_id)
        return self.told(logits_V, token_id)

    def _pick(self, logits_V: Tensor, allowed: Ids | None) -> int:
        scores = _array(logits_V)
        if self.greedy and allowed is None and not self._changes:
            token_id = int(scores.argmax())
            if token_id not in self._refused:
                return token_id
        scores = self._scores(scores, allowed)
        places: Ids | None = None
        if self.greedy:
            place = int(scores.argmax())
        else:
            scores, places = shortlist(scores / np.float32(self.config.temperature), self.config)
            place = draw(softmax(scores), self.uniform())
        if places is not None:
            place = int(places[place])
        return place if allowed is None else int(allowed[place])

    def distribution(self, logits_V: Tensor, allowed: Ids | None = None) -> Floats:
        """What the next token is drawn from [V]; all of it on the likeliest token where the choice is greedy."""
        scores = self._scores(_array(logits_V), allowed)
        places: Ids | None
        if self.greedy:
            probabilities, places = np.ones(1, dtype=np.float32), np.array([scores.argmax()])
        else:
            scores, places = shortlist(scores / np.float32(self.config.temperature), self.config)
            probabilities = softmax(scores)
        if allowed is not None:
            places = allowed if places is None else allowed[places]
        return spread(probabilities, places, len(logits_V))

    def draw(self, weights_V: Floats) -> int:
        """A token of a distribution (which need not sum to 1), with this text's random numbers."""
        return draw(weights_V, self.uniform())

    def uniform(self) -> float:
        """The next of this text's random numbers, of [0, 1)."""
        return self._random.random()

    def _scores(self, logits: Floats, allowed: Ids | None) -> Floats:
        """The scores of what is allowed, changed as the settings say."""
        if len(self._never) or self._changes:
            logits = logits.copy()
        config = self.config
        if self._bias is not None:
            places, biases = self._bias
            logits[places] += biases
        if self._said is not None:
            divide_seen(logits, self._said.ids, config.repetition_penalty)
        if self._written is not None:
            tally = self._written
            subtract(logits, tally.ids, tally.counts, config.presence_penalty, config.frequency_penalty)
        if len(self._never):
            logits[self._never] = -np.inf
        if allowed is not None:
            logits = logits[allowed]
        # The largest is moved to 0, which changes no probability: dividing by a low temperature cannot overflow.
        return logits if self.greedy else logits - logits.max()

    def advance(self, token_id: int) -> None:
        """Count a token as written."""
        self._ids.append(token_id)
        if self._said is not None:
            self._said.add(token_id)
        if self._written is not None:
            self._written.add(token_id)

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens; random numbers that were used stay used."""
        for _ in range(count):
            token_id = self._ids.pop()
            if self._said is not None:
                self._said.remove(token_id)
            if self._written is not None:
                self._written.remove(token_id)

    def told(self, logits_V: Tensor, token_id: int) -> Chosen:
        """A token with the log-probabilities that were asked for, by the model's own scores."""
        if self.config.logprobs is None:
            return Chosen(token_id)
        return Chosen(token_id, *score_token(logits_V, token_id, self.config.logprobs, self._never))


def score_token(
    logits_V: Tensor, token_id: int, count: int, never: Ids | None = None
) -> tuple[TokenScore, tuple[TokenScore, ...]]:
    """The log-probability of a token by the model's own scores, and the `count` likeliest tokens (none of `never`),
    best first."""
    total = float(logits_V.logsumexp(0))
    scored = TokenScore(token_id, float(logits_V[token_id]) - total)
    if not count:
        return scored, ()
    scores = _array(logits_V)
    if never is not None and len(never):
        scores = scores.copy()
        scores[never] = -np.inf
    ids = highest(scores, count)
    ids = ids[np.argsort(-scores[ids], kind="stable")]
    return scored, tuple(TokenScore(int(id), float(scores[id]) - total) for id in ids if scores[id] > -np.inf)


def _array(scores: Tensor) -> Floats:
    """The scores where numpy reads them: themselves, unless they are on another device."""
    array: Floats = scores.cpu().numpy()
    return array


def _bias(biases: dict[int, float], vocab_size: int) -> tuple[Ids, Floats] | None:
    for token_id in biases:
        if not 0 <= token_id < vocab_size:
            raise UserError(f"logit_bias: there is no token {token_id} in a vocabulary of {vocab_size}")
    if not biases:
        return None
    return np.array(list(biases), dtype=np.int64), np.array(list(biases.values()), dtype=np.float32)


class _Tally:
    """Distinct ids and how often each was added. What was added last is removed first."""

    def __init__(self) -> None:
        self.size = 0
        self._place: dict[int, int] = {}
        self._ids = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)

    @property
    def ids(self) -> Ids:
        """The ids, in the order of their first time."""
        return self._ids[: self.size]

    @property
    def counts(self) -> Floats:
        """How often each of `ids` was added."""
        return self._counts[: self.size]

    def add(self, token_id: int) -> None:
        """Once more."""
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = self.size
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place], self._counts[place] = token_id, 0
            self.size += 1
        self._counts[place] += 1

    def remove(self, token_id: int) -> None:
        """Once less; it was the last to be added."""
        place = self._place[token_id]
        self._counts[place] -= 1
        if not self._counts[place]:
            del self._place[token_id]
            self.size -= 1
