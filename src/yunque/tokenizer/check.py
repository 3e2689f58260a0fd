"""What is looked at in a `tokenizer.json` before the library reads it, which trusts some of it."""

from collections.abc import Iterator
from typing import Any

from yunque.errors import UserError

_LARGEST_VOCABULARY = 16_000_000


def check_described(described: Any) -> None:
    """Raise UserError for a `tokenizer.json` that would take all memory, or make the library panic."""
    if not isinstance(described, dict) or not isinstance(described.get("model"), dict):
        raise UserError("has no model")
    _check_ids(described)
    model = described["model"]
    prefix = model.get("continuing_subword_prefix")
    for pair in (model.get("merges") or ()) if prefix else ():
        parts = pair.split(" ", 1) if isinstance(pair, str) else pair
        if len(parts) != 2 or not str(parts[1]).startswith(str(prefix)):
            raise UserError(f"the merge {pair!r} has no continuing_subword_prefix {prefix!r}")
    for processor in _processors(described.get("post_processor")):
        if processor.get("type") == "TemplateProcessing":
            _check_template(processor)


def _check_ids(described: dict[str, Any]) -> None:
    """The library takes memory and time for every id up to the largest."""
    vocab = described["model"].get("vocab")
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    if len(set(map(str, ids))) != len(ids):
        raise UserError("the vocabulary gives one id to several tokens")
    ids += [entry.get("id") for entry in described.get("added_tokens") or () if isinstance(entry, dict)]
    wrong = next((id for id in ids if type(id) is not int or not 0 <= id < _LARGEST_VOCABULARY), None)
    if wrong is not None:
        raise UserError(f"a token has the id {wrong!r}, which is not one below {_LARGEST_VOCABULARY:,}")


def _processors(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for each in part.get("processors") or ():
            yield from _processors(each)


def _check_template(processor: dict[str, Any]) -> None:
    known = processor.get("special_tokens")
    for piece in [*(processor.get("single") or ()), *(processor.get("pair") or ())]:
        token = piece.get("SpecialToken") if isinstance(piece, dict) else None
        name = token.get("id") if isinstance(token, dict) else None
        if token is not None and (not isinstance(known, dict) or name not in known):
            raise UserError(
                f"the post_processor names the token {name!r}, which is not among its special_tokens"
            )
