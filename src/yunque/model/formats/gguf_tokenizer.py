"""The tokenizer in a GGUF file: tokens, scores or merges, and how they are used. Read, and written again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yunque.errors import UserError
from yunque.tokenizer import PATTERNS, PieceType, Tokenizer, tokenizer_from_merges, tokenizer_from_pieces
from yunque.tokenizer.alphabet import is_byte_level
from yunque.tokenizer.conventions import TEMPLATE_FILE, Conventions

# How a text is divided before it is merged: GGUF's name (`tokenizer.ggml.pre`) and ours.
_READ = {
    "gpt-2": "gpt2",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
    "smollm": "smollm",
    "falcon": "falcon",
    "gpt-4o": "o200k",
}
_WRITTEN = {
    "gpt2": "gpt-2",
    "llama3": "llama-bpe",
    "qwen2": "qwen2",
    "smollm": "smollm",
    "falcon": "falcon",
    "o200k": "gpt-4o",
}
_NO_VOCABULARY = ("none", "no_vocab")


@dataclass(frozen=True)
class GgufVocabulary:
    """What a GGUF file says of a tokenizer; a vocabulary has scores or merges."""

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()


def read_tokenizer_values(values: Mapping[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer in the header of a GGUF file; None where it has none. Raises UserError where it is damaged."""
    kind = values.get("tokenizer.ggml.model")
    if kind is None or kind in _NO_VOCABULARY:
        return None
    tokens, types = values.get("tokenizer.ggml.tokens"), list(map(int, _numbers(values, "token_type")))
    if not isinstance(tokens, list) or (types and len(types) != len(tokens)):
        raise UserError(f"{where}: tokenizer.ggml.tokens and token_type do not go together")
    if set(types) - {type.value for type in PieceType}:
        raise UserError(f"{where}: tokenizer.ggml.token_type has a type that is not known")
    types = types or [PieceType.NORMAL] * len(tokens)
    try:
        if kind == "llama":
            return _of_pieces(values, tokens, types)
        if kind == "gpt2":
            return _of_merges(values, tokens, types)
    except UserError as error:
        raise UserError(f"{where}: its tokenizer cannot be read: {error}") from None
    raise UserError(
        f"{where}: its tokenizer is of the kind {str(kind)[:40]!r}; 'llama' and 'gpt2' can be read"
    )


def _of_pieces(values: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> Tokenizer:
    scores = _numbers(values, "scores")
    if len(scores) != len(tokens):
        raise UserError("it has not one score for each token")
    return tokenizer_from_pieces(
        [
            (token, float(score), PieceType(type))
            for token, score, type in zip(tokens, scores, types, strict=True)
        ],
        "bpe",
        bos_id=_id(values, "bos", tokens),
        eos_id=_id(values, "eos", tokens),
        pad_id=_id(values, "padding", tokens),
        add_bos=values.get("tokenizer.ggml.add_bos_token") is not False,
        add_eos=values.get("tokenizer.ggml.add_eos_token") is True,
        add_dummy_prefix=values.get("tokenizer.ggml.add_space_prefix") is not False,
        conventions=_conventions(values),
    )


def _of_merges(values: Mapping[str, Any], tokens: list[str], types: Sequence[int]) -> Tokenizer:
    merges = values.get("tokenizer.ggml.merges")
    pre = values.get("tokenizer.ggml.pre", "gpt-2")
    if not isinstance(merges, list):
        raise UserError("it has no merges")
    if pre not in _READ:
        raise UserError(f"it divides texts as {str(pre)[:40]!r} does, which is not known")
    # A merge is two tokens with a space between; no token of this alphabet has one in it, or begins with it.
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError("a merge is not two tokens")
    names = {role: _id(values, role, tokens) for role in ("bos", "eos", "padding")}
    bos, eos, pad = (None if number is None else tokens[number] for number in names.values())
    return tokenizer_from_merges(
        _ids(tokens),
        [(left, right) for left, right in pairs],
        [token for token, type in zip(tokens, types, strict=True) if type == PieceType.CONTROL],
        _READ[pre],
        bos=bos,
        eos=eos,
        pad=pad,
        add_bos=values.get("tokenizer.ggml.add_bos_token") is True,
        conventions=_conventions(values),
    )


def _ids(tokens: list[str]) -> dict[str, int]:
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise UserError("a token stands in its vocabulary twice")
    return ids


def _conventions(values: Mapping[str, Any]) -> Conventions:
    template = values.get("tokenizer.chat_template")
    if not isinstance(template, str):
        return Conventions()
    return Conventions(chat_template=template, files={TEMPLATE_FILE: template.encode()})


def _numbers(values: Mapping[str, Any], name: str) -> Sequence[int | float]:
    array = values.get(f"tokenizer.ggml.{name}")
    if array is None:
        return []
    if not hasattr(array, "tolist"):
        raise UserError(f"tokenizer.ggml.{name} is not a list of numbers")
    numbers: list[int | float] = array.tolist()
    return numbers


def _id(values: Mapping[str, Any], role: str, tokens: list[str]) -> int | None:
    number = values.get(f"tokenizer.ggml.{role}_token_id")
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(tokens):
        raise UserError(f"{role}_token_id is {str(number)[:40]}, which is no token of it")
    return number


def gguf_vocabulary(tokenizer: Mapping[str, Any], vocab_size: int, where: str) -> GgufVocabulary:
    """What GGUF says of a `tokenizer.json`, with names for the rows of the embedding that have no token.

    Raises UserError for tokenizers that GGUF has no words for.
    """
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE":
        raise UserError(
            f"{where}: GGUF cannot hold a tokenizer of the type {model.get('type')} with this model"
        )
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", ())}
    names = {number: token for token, number in model["vocab"].items()}
    names |= {number: entry["content"] for number, entry in added.items()}
    if max(names) >= vocab_size:
        raise UserError(f"{where}: the tokenizer has more tokens than the model has rows ({vocab_size:,})")
    tokens = [names.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    byte_level = is_byte_level(dict(tokenizer))
    types = [_type(number, names, added, model.get("unk_token"), byte_level) for number in range(vocab_size)]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if byte_level:
        pre = _pattern_of(tokenizer, where)
        return GgufVocabulary("gpt2", pre, tokens, types, merges=[" ".join(pair) for pair in pairs])
    # SentencePiece joins the pair that makes the piece with the highest score: the merge that comes first.
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(pairs):
        rank.setdefault(left + right, number)
    scores = [-float(rank.get(token, 0)) for token in tokens]
    return GgufVocabulary("llama", "default", tokens, types, scores=scores)


def _type(
    number: int,
    names: Mapping[int, str],
    added: Mapping[int, Mapping[str, Any]],
    unknown: str | None,
    byte_level: bool,
) -> int:
    name = names.get(number)
    if name is None:
        return PieceType.UNUSED
    if name == unknown and not byte_level:
        return PieceType.UNKNOWN
    if number in added:
        return PieceType.CONTROL if added[number]["special"] else PieceType.USER_DEFINED
    is_byte = not byte_level and len(name) == 6 and name.startswith("<0x") and name.endswith(">")
    return PieceType.BYTE if is_byte else PieceType.NORMAL


def _pattern_of(tokenizer: Mapping[str, Any], where: str) -> str:
    """GGUF's name for the way in which a byte-level tokenizer divides a text."""
    wanted = _steps(tokenizer.get("pre_tokenizer"))
    if wanted == [("ByteLevel", None, True)]:
        return _WRITTEN["gpt2"]
    for name, make in PATTERNS.items():
        if name in _WRITTEN and _steps(json.loads(make().__getstate__())) == wanted:
            return _WRITTEN[name]
    raise UserError(f"{where}: GGUF has no name for the way in which this tokenizer divides a text")


def _steps(part: Any) -> list[tuple[str, Any, Any]]:
    """The steps of a pre-tokenizer, as far as they change what is divided."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [step for each in part["pretokenizers"] for step in _steps(each)]
    pattern = part.get("pattern")
    text = next(iter(pattern.values())) if isinstance(pattern, dict) else None
    return [(str(part.get("type")), text, part.get("use_regex", part.get("individual_digits")))]
