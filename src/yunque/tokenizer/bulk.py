"""Encoding in bulk: tiktoken gives the ids of a byte-level BPE vocabulary several times quicker than `tokenizers`.

Both merge the pair of lowest rank first, but `tokenizers` merges listed pairs only, and tiktoken whatever makes a
token of the vocabulary. That comes to the same where every token, encoded alone, is itself: a pair that is not listed
could stand side by side only where a part of a text merged otherwise than that token does alone. The exception are
runs of one token, where what stands before decides how they pair up; those are tried. A vocabulary that fails, or
that divides texts in a way that tiktoken does not know, is left to `tokenizers`.
"""

import os
import random
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tokenizers import models

from yunque.tokenizer.alphabet import LETTERS, bytes_of_letters

if TYPE_CHECKING:
    from tiktoken import Encoding
    from tokenizers import Tokenizer as AnyTokenizer

Ids = npt.NDArray[np.int32]

# What `tokenizers`' ByteLevel divides by, in GPT-2's words.
_BYTE_LEVEL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LONGEST_RUN = 64
_CHARACTERS_AT_ONCE = 200_000
_PROBES = 400
_PROBE_PARTS = (
    *(
        "a",
        "B",
        "ñ",
        "Á",
        "ß",
        "中",
        "か",
        "ك",
        "я",
        "Σ",
        "ǅ",
        "ª",
        "\u0301",
        "\u200d",
        "👩",
        "🏽",
        "1",
        "²",
        "Ⅷ",
        "٣",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u00a0",
        "\u2028",
        "\u3000",
        "\x85",
        "\x00",
        "\x1c",
        "\u180e",
        "\ufeff",
    ),
    *(".", ",", "¿", "_", "-", "/", "'s", "'S", "'ll", "’t", "%", "€", "´", "$", "\ufffd", "\U0010fffd"),
)


class BulkEncoder:
    """Texts to ids on every core; the ids are those of the tokenizer that it was made of."""

    def __init__(self, encoding: "Encoding", ids: Ids, inner: "AnyTokenizer", added: Sequence[str]) -> None:
        self._encoding, self._ids, self._inner, self._added = encoding, ids, inner, added
        self._composed = inner.normalizer is not None

    def encode(self, text: str) -> Ids:
        """The ids of a text; special tokens are no more than their letters."""
        decomposed = self._composed and not unicodedata.is_normalized("NFC", text)
        if not decomposed and not any(token in text for token in self._added):
            try:
                return self._ids[self._encoding.encode_to_numpy(text, disallowed_special=())]
            except ValueError:
                pass  # a run of blanks that is too long for its regular expressions
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of many texts."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            shares = threads.map(lambda share: [self.encode(text) for text in share], _shares(texts))
            return [ids for share in shares for ids in share]


def bulk_encoder(described: Mapping[str, Any], inner: "AnyTokenizer") -> BulkEncoder | None:
    """The quick encoder of a `tokenizer.json`, opened as `inner`; None where its ids would not be the same."""
    import tiktoken

    pattern = _pattern(described)
    if pattern is None or (vocabulary := _mergeable(described)) is None:
        return None
    ranks, ids = vocabulary
    try:
        encoding = tiktoken.Encoding("bulk", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # a regular expression that it does not know
        return None
    added = [entry["content"] for entry in described["added_tokens"] if not entry["special"]]
    encoder = BulkEncoder(encoding, ids, inner, added)
    return encoder if _agrees(encoder, inner) else None


def _shares(texts: Sequence[str]) -> list[Sequence[str]]:
    """The texts in shares of about as many characters, in their order."""
    ends, characters = [0], 0
    for number, text in enumerate(texts, start=1):
        characters += len(text)
        if characters >= _CHARACTERS_AT_ONCE:
            ends.append(number)
            characters = 0
    if ends[-1] != len(texts):
        ends.append(len(texts))
    return [texts[start:end] for start, end in pairwise(ends)]


def _pattern(described: Mapping[str, Any]) -> str | None:
    """The regular expression that divides a text before it merges; None where it is not one expression alone."""
    normalizer = described.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    divider = described.get("pre_tokenizer") or {}
    steps = divider["pretokenizers"] if divider.get("type") == "Sequence" else [divider]
    match [step.get("type") for step in steps]:
        case ["ByteLevel"] if not steps[0]["add_prefix_space"] and steps[0].get("use_regex", True):
            return _BYTE_LEVEL
        case ["Split", "ByteLevel"]:
            split, letters = steps
            plain = not letters["add_prefix_space"] and not letters.get("use_regex", True)
            whole = split["behavior"] == "Isolated" and not split["invert"]
            pattern = split["pattern"].get("Regex")
            return pattern if plain and whole and isinstance(pattern, str) else None
    return None


def _mergeable(described: Mapping[str, Any]) -> tuple[dict[bytes, int], Ids] | None:
    """The rank of each token of a BPE, and the id of each rank; None where ranks alone do not tell how it merges."""
    model = described["model"]
    odd = (
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
        "fuse_unk",
    )
    if model.get("type") != "BPE" or any(model.get(name) for name in odd):
        return None
    vocab: Mapping[str, int] = model["vocab"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    if any(letter not in vocab for letter in LETTERS):
        return None
    order = list(LETTERS)
    for pair in merges:
        token = "".join(pair)
        # All the pairs that make one token stand together, best token first: its rank says it all.
        if token != order[-1]:
            order.append(token)
    if len(set(order)) != len(order) or not _are_themselves(vocab, merges, order):
        return None
    # A whole word may be a token without any merge there; a special token among letters and signs is no word.
    added = {entry["content"] for entry in described["added_tokens"] if not entry["content"].isalnum()}
    if model.get("ignore_merges") and not added.issuperset(vocab.keys() - set(order)):
        return None
    return {bytes_of_letters(token): rank for rank, token in enumerate(order)}, np.array(
        [vocab[token] for token in order], dtype=np.int32
    )


def _are_themselves(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, ...]], order: Sequence[str]
) -> bool:
    """Whether each token, encoded alone, is itself."""
    bare = models.BPE(vocab=dict(vocab), merges=[(left, right) for left, right in merges])
    return all([token.value for token in bare.tokenize(each)] == [each] for each in order)


def _agrees(encoder: BulkEncoder, inner: "AnyTokenizer") -> bool:
    """Whether the ids are the same on runs of every short token, and on odd texts."""
    draw = random.Random(0)
    texts = ["".join(draw.choices(_PROBE_PARTS, k=draw.randint(1, 12))) for _ in range(_PROBES)]
    texts += [
        before + part * count
        for part in (*_PROBE_PARTS, *"=-_*#.~0ax")
        for before in ("", "a", " ")
        for count in (2, 3, 4, 5, 7, 11, _LONGEST_RUN)
    ]
    expected = inner.encode_batch_fast(texts, add_special_tokens=False)
    return all(
        encoding.ids == encoder.encode(text).tolist() for text, encoding in zip(texts, expected, strict=True)
    )
