"""A tokenizer's vocabulary as bytes, for the grammar library."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakMethod, ref

import numpy as np
from llguidance import LLTokenizer

from yunque.generate.sampling import Ids
from yunque.tokenizer import Tokenizer

_LONGEST = 32
_SIGNED = re.compile(rb"[+-]?[0-9]+")
_LONG_EXPONENT = re.compile(rb"[0-9.]*[eE][+-]?[0-9]{3}")


class _Wrapper:
    """What the grammar library asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int], end: int, encode: Any) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


@lru_cache(maxsize=1)
def byte_tokenizer() -> LLTokenizer:
    """A vocabulary of the 256 bytes and an end."""
    tokens = [bytes([byte]) for byte in range(256)]
    return LLTokenizer(_Wrapper([*tokens, b"end"], [256], 256, str.encode), slices=[])  # type: ignore[arg-type]  # any such object will do


class Vocabulary:
    """The tokens of a tokenizer that a model with `rows` scores can write. Make it once for each tokenizer, which it
    does not keep alive."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        size = min(tokenizer.vocab_size, rows)
        tokens = [tokenizer.token_bytes(id) for id in range(size)]
        self.rows = rows
        self.ends = tuple(id for id in tokenizer.end_ids if id < rows)
        self.ids = {token: id for id, token in reversed(list(enumerate(tokens))) if token}
        self.longest = min(_LONGEST, max(map(len, tokens), default=0))
        self._tokenizer = ref(tokenizer)
        special = [id for id, token in enumerate(tokens) if not token]
        named = [token or b"special %d" % id for id, token in enumerate(tokens)]
        if not self.ends:
            # The library needs an end; this one is past the model's scores, so it is never drawn.
            special += range(size, rows + 1)
            named += [b"special %d" % id for id in range(size, rows + 1)]
        ends = list(self.ends or special[-1:])
        # The garbage collector does not see what the library holds: a cycle through it would never be freed.
        canonical = WeakMethod(self._canonical)
        wrapper = _Wrapper(
            named, special, ends[0], lambda text: found(text) if (found := canonical()) else ()
        )
        self.tokenizer = LLTokenizer(wrapper, eos_token=ends)  # type: ignore[arg-type]  # any such object will do
        self.tokens = tokens
        self.first_digits, self.long_exponents = _digits(tokens)
        self._fewest = lru_cache(maxsize=1024)(self._find_fewest)
        self.complete = all(bytes([byte]) in self.ids for byte in range(256))

    def _canonical(self, text: str) -> Sequence[int]:
        """The ids that the tokenizer gives a text, where they stand for exactly these bytes."""
        data = text.encode()
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            ids = tokenizer.encode(text)
            if b"".join(map(tokenizer.token_bytes, ids)) == data and all(id < self.rows for id in ids):
                return ids
        return self.fewest(data) or ()

    def fewest(self, data: bytes) -> tuple[int, ...] | None:
        """The fewest tokens that stand for `data`; None where there are none."""
        return self._fewest(data)

    def _find_fewest(self, data: bytes) -> tuple[int, ...] | None:
        # For each place, how many tokens are needed from there, and the first of them.
        best: list[tuple[int, int]] = [(0, 0)] * (len(data) + 1)
        for start in range(len(data) - 1, -1, -1):
            found = (len(data) + 1, -1)
            for length in range(min(self.longest, len(data) - start), 0, -1):
                id = self.ids.get(data[start : start + length])
                if id is not None and best[start + length][0] + 1 < found[0]:
                    found = (best[start + length][0] + 1, id)
            best[start] = found
        ids, start = list[int](), 0
        while start < len(data):
            id = best[start][1]
            if id < 0:
                return None
            ids.append(id)
            start += len(self.tokens[id])
        return tuple(ids)


def _digits(tokens: Sequence[bytes]) -> tuple[Ids, Ids]:
    """Of each token with how many digits it begins (behind a sign), and the ids of those that hold an exponent of
    three digits."""
    first = [len(found[0].lstrip(b"+-")) if (found := _SIGNED.match(token)) else 0 for token in tokens]
    long = [id for id, token in enumerate(tokens) if _LONG_EXPONENT.match(token)]
    return np.array(first, dtype=np.int64), np.array(long, dtype=np.int64)
