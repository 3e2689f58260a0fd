"""Byte-level BPE from a vocabulary and its merges (GPT-2's files, GGUF's `gpt2`), or from tiktoken's ranks."""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as AnyTokenizer

from yunque.errors import UserError
from yunque.tokenizer.alphabet import letters_of
from yunque.tokenizer.conventions import Conventions, around_text
from yunque.tokenizer.tokenizer import Tokenizer

_LARGEST_RANKS = 2_000_000
_LONGEST_TOKEN = 4096
_MOST_HOLES = 100_000

# How each vocabulary divides a text before it merges; a vocabulary gives its makers' ids with no other.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> Callable[[], Any]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _digits(individual: bool) -> Callable[[], Any]:
    return lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _falcon() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )


PATTERNS: Mapping[str, Callable[[], Any]] = {
    "gpt2": _split(_GPT2),
    "cl100k": _split(_CL100K),
    "o200k": _split(_O200K),
    "llama3": _split(_CL100K),
    "qwen2": _split(_CL100K.replace(r"\p{N}{1,3}", r"\p{N}")),
    "smollm": _digits(True),
    "falcon": _falcon,
}
# The special tokens of OpenAI's vocabularies: they are not in the rank file.
_TIKTOKEN_SPECIAL: Mapping[str, Mapping[str, int]] = {
    "gpt2": {"<|endoftext|>": 50256},
    "cl100k": {
        "<|endoftext|>": 100257,
        "<|fim_prefix|>": 100258,
        "<|fim_middle|>": 100259,
        "<|fim_suffix|>": 100260,
        "<|endofprompt|>": 100276,
    },
    "o200k": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
}
_PATTERN_OF_SIZE = {50256: "gpt2", 100256: "cl100k", 199998: "o200k", 128000: "llama3"}


def tokenizer_from_merges(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special_tokens: Mapping[str, int] | Sequence[str] = (),
    pattern: str = "gpt2",
    *,
    bos: str | None = None,
    eos: str | None = None,
    pad: str | None = None,
    add_bos: bool = False,
    composed: bool = False,
    conventions: Conventions | None = None,
) -> Tokenizer:
    """The byte-level BPE of a vocabulary (token -> id, bytes as GPT-2's letters) and its merges, best first.

    `special_tokens` are names in the vocabulary, or name -> id of tokens that are not; `pattern` is one of PATTERNS:
    how the text is divided first. With `composed`, ñ is one letter also where a text spells it as two (Qwen's texts
    were so). `conventions`, what files beside it say, go before `bos` and its like.
    Raises UserError where ids repeat, or a merge names a token that is not there.
    """
    given = special_tokens if isinstance(special_tokens, Mapping) else {}
    whole = {**vocab, **given}
    _check_ids(whole)
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocab:
                raise UserError(
                    f"the merge of {left!r} and {right!r} names {token!r}, which is not in the vocabulary"
                )
    return _byte_level(
        whole,
        merges,
        special_tokens,
        pattern,
        {"bos": bos, "eos": eos, "pad": pad},
        add_bos,
        conventions,
        composed=composed,
    )


def tokenizer_from_ranks(
    ranks: Mapping[bytes, int],
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    conventions: Conventions | None = None,
) -> Tokenizer:
    """The tokenizer of tiktoken's ranks (bytes -> id, which is also the order of merging).

    `pattern` is one of PATTERNS; without it, the one that OpenAI's vocabulary of that size has, else cl100k's.
    `special_tokens` are name -> id; without them, those of OpenAI's vocabulary where its size is that.
    """
    known = _PATTERN_OF_SIZE.get(len(ranks))
    pattern = pattern or known or "cl100k"
    if special_tokens is None:
        special_tokens = _TIKTOKEN_SPECIAL.get(pattern, {}) if pattern == known else {}
    for byte in range(256):
        if bytes([byte]) not in ranks:
            raise UserError(
                f"the rank file has no token for the byte {byte:#04x}: it is cut off, or no rank file"
            )
    vocab = {letters_of(token): rank for token, rank in ranks.items()}
    whole = {**vocab, **special_tokens}
    _check_ids(whole, range(max(vocab.values()) + 1, min(max(whole.values()), len(whole) + _MOST_HOLES)))
    merges: list[tuple[int, int, int, tuple[str, str]]] = []
    for token, rank in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((rank, vocab[left], vocab[right], (left, right)))
    merges.sort(key=lambda merge: merge[:3])
    named = {"eos": "<|endoftext|>" if "<|endoftext|>" in special_tokens else None}
    return _byte_level(
        whole, [merge[3] for merge in merges], special_tokens, pattern, named, False, conventions, True
    )


def read_ranks(data: bytes) -> dict[bytes, int]:
    """The ranks of a `.tiktoken` file: lines of a token in base64 and its rank. Raises UserError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.split()
        try:
            token = base64.b64decode(parts[0], validate=True)
            rank = int(parts[1]) if len(parts) == 2 and len(parts[1]) < 10 else -1
        except (binascii.Error, ValueError, IndexError):
            raise UserError(f"line {number} is not a token in base64 and its rank") from None
        if not token or rank < 0 or len(token) > _LONGEST_TOKEN:
            raise UserError(f"line {number} is not a token in base64 and its rank")
        if token in ranks:
            raise UserError(f"line {number} has the token {token!r} a second time")
        ranks[token] = rank
        if len(ranks) > _LARGEST_RANKS:
            raise UserError(f"has more than {_LARGEST_RANKS:,} tokens")
    return ranks


def read_merges(data: bytes) -> list[tuple[str, str]]:
    """The pairs of a `merges.txt`, best first. Raises UserError for a line that is no pair."""
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text") from None
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, found, right = line.partition(" ")
        if not found or not left or not right or " " in right:
            raise UserError(f"line {number} is not two tokens with a space between")
        pairs.append((left, right))
    return pairs


def read_vocabulary(value: Mapping[str, Any]) -> dict[str, int]:
    """The token -> id of a `vocab.json`. Raises UserError where an id is none."""
    for token, number in value.items():
        if type(number) is not int or number < 0:
            raise UserError(f"the token {token!r} has the id {number!r}, which is not a number")
    return dict(value)


def _check_ids(vocab: Mapping[str, int], allowed: range = range(0)) -> None:
    """Every id once, from 0 without a hole (but for those that are `allowed` to be missing)."""
    tokens: dict[int, str] = {}
    for token, number in vocab.items():
        if number in tokens:
            raise UserError(f"the tokens {tokens[number]!r} and {token!r} have the same id {number}")
        tokens[number] = token
    if not tokens:
        raise UserError("the vocabulary is empty")
    missing = next((number for number in range(max(tokens)) if number not in tokens), None)
    if missing is not None and (missing not in allowed or max(tokens) > allowed.stop):
        raise UserError(f"the vocabulary has {len(tokens)} tokens, but none with the id {missing}")


def _byte_level(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Mapping[str, int] | Sequence[str],
    pattern: str,
    roles: Mapping[str, str | None],
    add_bos: bool,
    conventions: Conventions | None,
    whole_words: bool = False,
    composed: bool = False,
) -> Tokenizer:
    if pattern not in PATTERNS:
        raise UserError(f"{pattern!r} is not a pattern ({', '.join(PATTERNS)})")
    for token in [*special, *(name for name in roles.values() if name)]:
        if token not in vocab:
            raise UserError(f"the special token {token!r} is not in the vocabulary")
    inner = AnyTokenizer(models.BPE(vocab=dict(vocab), merges=list(merges), ignore_merges=whole_words))
    if composed:
        inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = PATTERNS[pattern]()
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    told = conventions or Conventions()
    named = {f"{role}_token": name for role, name in roles.items() if name} | dict(told.named)
    bos = add_bos if told.add_bos is None else told.add_bos
    inner.post_processor = around_text(inner, named, bos, bool(told.add_eos))
    files = dict(told.files)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    files.setdefault("tokenizer_config.json", json.dumps(described, ensure_ascii=False, indent=1).encode())
    made = replace(told, named=named, special=(*named.values(), *told.special), files=files)
    return Tokenizer(inner, made)
