"""Vocabularies of pieces with scores (SentencePiece, GGUF's `llama`, llama2.c), as a tokenizer."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any, Literal

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as AnyTokenizer

from yunque.errors import UserError
from yunque.tokenizer.alphabet import BLANK
from yunque.tokenizer.conventions import Conventions, around_text
from yunque.tokenizer.tokenizer import Tokenizer

_ALL = 1_000_000
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


class PieceType(IntEnum):
    """The types of SentencePiece, with its numbers; GGUF's `token_type` has the same."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


Piece = tuple[str, float, PieceType]


def tokenizer_from_pieces(
    pieces: Sequence[Piece],
    kind: Literal["unigram", "bpe"],
    *,
    bos_id: int | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
    add_bos: bool = False,
    add_eos: bool = False,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    charsmap: bytes = b"",
    conventions: Conventions | None = None,
) -> Tokenizer:
    """The tokenizer whose ids are the positions of `pieces` (name, score, type).

    "unigram" takes the division of a text with the highest sum of scores (Kudo 2018, arXiv:1804.10959); "bpe" joins
    the pair that makes the piece with the highest score (SentencePiece's BPE), bytes for what no piece covers where
    the vocabulary has all 256. `charsmap` is SentencePiece's precompiled normalization. `conventions` are what files
    beside the model say; they go before `bos_id` and its like. Raises UserError for a vocabulary that cannot work.
    """
    _check(pieces)
    for name, number in (("bos", bos_id), ("eos", eos_id), ("pad", pad_id)):
        if number is not None and not 0 <= number < len(pieces):
            raise UserError(f"the {name} id {number} is not in the vocabulary of {len(pieces)} pieces")
    unknown = next((n for n, piece in enumerate(pieces) if piece[2] == PieceType.UNKNOWN), None)
    fallback = sum(piece[2] == PieceType.BYTE for piece in pieces) == 256
    inner = AnyTokenizer(
        _unigram(pieces, unknown, fallback) if kind == "unigram" else _bpe(pieces, unknown, fallback)
    )
    inner.normalizer = _normalizer(charsmap, add_dummy_prefix, remove_extra_whitespaces)
    defined = sorted(
        (piece for piece, _, type in pieces if type == PieceType.USER_DEFINED), key=len, reverse=True
    )
    if defined and kind == "bpe":
        inner.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(_literal, defined))), "isolated")
    steps: list[Any] = [decoders.Replace(BLANK, " ")]
    steps += [decoders.ByteFallback()] if fallback else []
    steps += [decoders.Fuse()]
    if add_dummy_prefix:
        steps.append(decoders.Strip(" ", _ALL if remove_extra_whitespaces else 1, 0))
    inner.decoder = decoders.Sequence(steps)
    hidden = (PieceType.CONTROL, PieceType.UNKNOWN, PieceType.UNUSED)
    inner.add_tokens(
        [AddedToken(name, special=True, normalized=False) for name, _, type in pieces if type in hidden]
    )
    named = {
        role: pieces[number][0]
        for role, number in zip(_ROLES, (bos_id, eos_id, unknown, pad_id), strict=True)
        if number is not None
    }
    told = conventions or Conventions()
    named = {**named, **told.named}
    inner.post_processor = around_text(inner, named, add_bos, add_eos)
    return Tokenizer(inner, _completed(told, named))


def _check(pieces: Sequence[Piece]) -> None:
    if not pieces:
        raise UserError("the vocabulary has no pieces")
    seen: dict[str, int] = {}
    for number, (name, score, _) in enumerate(pieces):
        if name in seen:
            raise UserError(
                f"the piece {name!r} stands twice in the vocabulary, as {seen[name]} and {number}"
            )
        if not math.isfinite(score):
            raise UserError(f"the piece {name!r} (id {number}) has the score {score}, which is not a number")
        seen[name] = number


def _unigram(pieces: Sequence[Piece], unknown: int | None, fallback: bool) -> models.Unigram:
    normal = [score for _, score, type in pieces if type == PieceType.NORMAL] or [0.0]
    best, worst = max(normal), min(normal)
    scores: list[tuple[str, float]] = []
    for name, score, type in pieces:
        if type == PieceType.USER_DEFINED:
            # SentencePiece prefers a user's symbol to any division of it.
            score = len(name.encode()) * best - 0.1
        elif type == PieceType.BYTE:
            # A byte is never found by its name, `<0x41>`: its six letters, even if all unknown, are better.
            score = 7 * (worst - 10.0)
        scores.append((name, score))
    return models.Unigram(scores, unk_id=unknown, byte_fallback=fallback)


def _bpe(pieces: Sequence[Piece], unknown: int | None, fallback: bool) -> models.BPE:
    ids = {name: number for number, (name, _, _) in enumerate(pieces)}
    joined = {name for name, _, type in pieces if type == PieceType.NORMAL}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for name, score, type in pieces:
        if type != PieceType.NORMAL:
            continue
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in joined and right in joined:
                merges.append((-score, ids[left], ids[right], (left, right)))
    merges.sort(key=lambda merge: merge[:3])
    return models.BPE(
        vocab=ids,
        merges=[merge[3] for merge in merges],
        unk_token=None if unknown is None else pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=fallback,
        ignore_merges=any(type == PieceType.USER_DEFINED for _, _, type in pieces),
    )


def _normalizer(charsmap: bytes, add_dummy_prefix: bool, remove_extra_whitespaces: bool) -> Any:
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(r"\A +|[ ▁]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])


def _literal(text: str) -> str:
    """A regular expression for exactly this text, for the library's engine."""
    return "".join(
        letter if letter.isalnum() or ord(letter) > 127 else f"\\x{{{ord(letter):x}}}" for letter in text
    )


def _completed(told: Conventions, named: dict[str, str]) -> Conventions:
    """The conventions with the roles that the vocabulary itself names, and a file that tells them again."""
    files = dict(told.files)
    files.setdefault(
        "tokenizer_config.json",
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", **named}, ensure_ascii=False, indent=1
        ).encode(),
    )
    return replace(told, named=named, special=(*named.values(), *told.special), files=files)
