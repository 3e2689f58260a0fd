"""Answers that have a form: JSON of a schema, a regular expression, one of some texts, calls of tools.

A grammar library (llguidance) says before each token which ones may come; all others are left out of the draw. So
that an answer is whole when it may have no more tokens, the way to its end is watched: a token after which the end
could not be reached any more is not taken, and a short way to the end is written instead (grammar_closing.py).

Shapes: V vocab_size.
"""

import re

import numpy as np
from llguidance import LLMatcher
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.grammar_closing import Closer
from yunque.generate.grammar_vocabulary import Vocabulary
from yunque.generate.sampler import Chosen, Sampler
from yunque.generate.sampling import Ids

# Every so many tokens the way to the end is measured.
_SURVEY = 32
_EXPONENT = re.compile(rb"[0-9.][eE][+-]?([0-9]*)$")
# A number with an exponent of three digits is more than a float can hold.
_MOST_DIGITS = 2


class Grammar:
    """The form of one text under way. Make one with `grammar_of` or `copy`; take tokens with `choose`, or with
    `allowed` and `accept`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        matcher: LLMatcher,
        closer: Closer,
        opening: tuple[int, ...],
        reserve: int,
    ) -> None:
        """`opening` is a short whole text. The way to the end is watched when twice its length and `reserve` tokens
        are left: more than one token may open."""
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._closer = closer
        self._place = closer.place
        # The ids of a short way to the end from here; None where it is not known now.
        self._way: tuple[int, ...] | None = opening
        self._next: tuple[int, tuple[int, ...]] | None = None
        self._reserve = reserve
        self._watch_from = 2 * len(opening) + reserve
        self._ids: list[int] = []
        self._text = b""

    def copy(self) -> "Grammar":
        """The same for another text that begins as this one does."""
        matcher, closer = self._matcher.deep_copy(), self._closer.copy()
        made = Grammar(self._vocabulary, matcher, closer, self._way or (), self._reserve)
        made._place, made._way, made._watch_from = self._place, self._way, self._watch_from
        made._ids, made._text = list(self._ids), self._text
        return made

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting() or self._matcher.is_stopped())

    @property
    def finished(self) -> bool:
        """Whether nothing but an end may follow: the text is to be ended."""
        return bool(self._matcher.is_stopped())

    @property
    def whole(self) -> bool:
        """Whether the text may end here and has its form for that: free text, before any call of a tool, has none."""
        return self.complete and self._place.kind != "tools"

    def choose(self, sampler: Sampler, logits_V: Tensor, left: int) -> Chosen:
        """The next token of the text, of which there may be `left` more; sampler and grammar count it as written."""
        chosen = sampler.choose(logits_V, self.allowed())
        if self.watches(left) and not self._leaves_room(chosen.token_id, left):
            sampler.rollback(1)
            chosen = sampler.choose(logits_V, self._forced())
        self.accept(chosen.token_id)
        return chosen

    def allowed(self) -> Ids:
        """The ids, in rising order, of the tokens that may come next: of end tokens only where the text is complete.

        Raises UserError where the tokenizer has no token to go on with, and where the form is too much to follow.
        """
        vocabulary = self._vocabulary
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        ids = np.flatnonzero(np.unpackbits(bits, count=vocabulary.rows, bitorder="little"))
        if not self._place.in_string:
            ids = self._short_exponents(ids)
        if not len(ids):
            if self.complete:
                return np.array(vocabulary.ends, dtype=np.int64)
            raise UserError(
                f"format: the tokenizer has no token that goes on after {self._text[-40:].decode(errors='replace')!r}"
            )
        return ids

    def accept(self, token_id: int) -> None:
        """Count a token as written; it is one of `allowed`."""
        following = None
        if self._next is not None and self._next[0] == token_id:
            following = self._next[1]
        elif self._way and self._way[0] == token_id:
            following = self._way[1:]
        self._next, self._way = None, following
        self._ids.append(token_id)
        if token_id not in self._vocabulary.ends:
            self._matcher.consume_token(token_id)
            self._check()
            token = self._vocabulary.tokens[token_id]
            self._text += token
            self._place = self._place.after(token)

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens."""
        if not count:
            return
        taken = [id for id in self._ids[-count:] if id not in self._vocabulary.ends]
        del self._ids[-count:]
        if taken:
            self._matcher.rollback(len(taken))
            length = sum(len(self._vocabulary.tokens[id]) for id in taken)
            self._text = self._text[: len(self._text) - length]
            self._place = self._place.start(self._closer.kind).after(self._text)
        self._next = self._way = None

    def watches(self, left: int) -> bool:
        """Whether the end may be so near that `choose` decides more than `allowed` does."""
        if left > self._watch_from and len(self._ids) % _SURVEY == 0 and self._ids:
            self._watch_from = 2 * len(self._known_way() or ()) + self._reserve
        return left <= self._watch_from

    def _leaves_room(self, token_id: int, left: int) -> bool:
        """Whether the text can be ended in `left` tokens of which this is the first; True too where it could not be
        ended in so many anyway."""
        if token_id in self._vocabulary.ends:
            return True
        way = self._known_way()
        if way is None or len(way) > left or not (way or self._vocabulary.ends):
            return True
        if way and way[0] == token_id:
            return True
        following = self._way_after(token_id, left - 1)
        if following is None or len(following) >= left:
            return False
        self._next = (token_id, following)
        return True

    def _known_way(self) -> tuple[int, ...] | None:
        """The ids of a short way to the end from here."""
        if self._way is None and self._closer.read(self._text):
            self._way = self._tokens(self._closer.shortest())
        return self._way

    def _way_after(self, token_id: int, most: int) -> tuple[int, ...] | None:
        """The ids of a short way to the end behind one more token; the way that is known is tried first."""
        token = self._vocabulary.tokens[token_id]
        if not self._closer.read(self._text + token):
            return None
        old = b"".join(self._vocabulary.tokens[id] for id in self._way or ())
        for start in range(min(len(old), len(token)) + 1):
            if self._closer.ends_with(old[start:]):
                found = self._tokens(old[start:]) if start else self._way
                if found is not None and len(found) <= most:
                    return found
                break
        return self._tokens(self._closer.shortest())

    def _tokens(self, data: bytes | None) -> tuple[int, ...] | None:
        return None if data is None else self._vocabulary.fewest(data)

    def _forced(self) -> Ids:
        """The one token that leads to the end."""
        return np.array(self._way[:1] if self._way else self._vocabulary.ends, dtype=np.int64)

    def _short_exponents(self, ids: Ids) -> Ids:
        vocabulary = self._vocabulary
        found = _EXPONENT.search(self._text[-8:])
        if found:
            short = ids[vocabulary.first_digits[ids] <= _MOST_DIGITS - len(found[1])]
        elif len(vocabulary.long_exponents):
            short = np.setdiff1d(ids, vocabulary.long_exponents, assume_unique=True)
        else:
            return ids
        return short if len(short) else ids

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UserError(
                f"format: the form is too much to follow ({self._matcher.get_error().splitlines()[0]})"
            )
