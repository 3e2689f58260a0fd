"""Span corruption: some spans of a text are taken out of it, and a model is to write them.

Where a span was, the source has a sentinel; the target has each sentinel and the span that belongs there, then the
end token. How many tokens are taken, in how many spans, and that a text begins with one that is not, is the law of
`random_spans_noise_mask`: Raffel et al. 2019 (arXiv:1910.10683), section 3.1.4.

Shapes: T tokens of a text, K spans.
"""

import numpy as np
import numpy.typing as npt
from pydantic import Field

from yunque.configuration import Settings
from yunque.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# As many as T5 has.
_SENTINELS = 100


class CorruptionSettings(Settings):
    """`noise_share` of a text's tokens is taken out, in spans of `mean_span` tokens on average."""

    noise_share: float = Field(default=0.15, gt=0, lt=1)
    mean_span: float = Field(default=3.0, ge=1)

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of a text of `length` (2 or more) are taken out, and in how many spans."""
        tokens = min(max(round(length * self.noise_share), 1), length - 1)
        # Between two spans something stays.
        return tokens, min(max(round(tokens / self.mean_span), 1), length - tokens)

    def lengths(self, length: int) -> tuple[int, int]:
        """How long source and target of such a text are, the target with its end token."""
        tokens, spans = self.counts(length)
        return length - tokens + spans, tokens + spans + 1

    def longest(self, source: int, target: int) -> int | None:
        """How long a text may be so that its source and target are no longer than these; None where it cannot be."""
        length = 1
        while all(
            have <= room for have, room in zip(self.lengths(length + 1), (source, target), strict=True)
        ):
            length += 1
        return length if length > 1 else None


def noise_mask(length: int, settings: CorruptionSettings, random: np.random.Generator) -> Mask:
    """Which tokens [T] of a text of `length` (2 or more) are taken out."""
    tokens, spans = settings.counts(length)
    kept_K, taken_K = (_divided(count, spans, random) for count in (length - tokens, tokens))
    lengths = np.stack((kept_K, taken_K), axis=1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _divided(count: int, parts: int, random: np.random.Generator) -> Ids:
    """The lengths of `parts` parts of `count`, none of them empty; every division is as likely."""
    cuts = np.sort(random.choice(count - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [count])))


def corrupt(ids_T: Ids, mask_T: Mask, sentinels: Ids) -> tuple[Ids, Ids]:
    """What is left of a text, and what was taken out; a sentinel stands in each for a span that the other has."""
    return _replaced(ids_T, mask_T, sentinels), _replaced(ids_T, ~mask_T, sentinels)


def _replaced(ids_T: Ids, mask_T: Mask, sentinels: Ids) -> Ids:
    """The text with each span of the mask as one sentinel, in their order."""
    starts_T = mask_T & ~np.concatenate(([False], mask_T[:-1]))
    replaced_T = ids_T.copy()
    replaced_T[starts_T] = sentinels[: starts_T.sum()]
    return replaced_T[starts_T | ~mask_T]


def add_sentinels(tokenizer: Tokenizer, spans: int) -> tuple[Tokenizer, Ids]:
    """The tokenizer with sentinels, enough for so many spans in a text, and their ids in order.

    They have the names that T5 gives them, so a vocabulary that has some already is used as it is.
    """
    names = [f"<extra_id_{number}>" for number in range(max(_SENTINELS, spans))]
    extended = tokenizer.with_tokens(names)
    ids = [extended.token_id(name) for name in names]
    return extended, np.array(ids, dtype=np.int64)
