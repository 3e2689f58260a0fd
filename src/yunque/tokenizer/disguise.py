"""A tokenizer whose special tokens have names that nobody can type.

A text could otherwise forge them: `tokenizers` finds the names of special tokens inside of any text, and where a name
is in the vocabulary of the model itself (`</s>` in a Unigram model), the model would find it too. Here every special
token has a random name. A text never contains it; whoever may write a special token puts in the random name.
"""

import json
import secrets
from collections.abc import Container, Mapping
from typing import Any

from tokenizers import Tokenizer as AnyTokenizer

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def forgeable(tokenizer: Mapping[str, Any], ids: Mapping[str, int]) -> bool:
    """Whether the model itself could find one of the tokens in a text, so that only another name keeps it out.

    A BPE makes no token that no merge makes. (What is to pad or cut texts needs a copy without that too.)
    """
    if tokenizer.get("padding") or tokenizer.get("truncation"):
        return True
    model = tokenizer["model"]
    vocab = model.get("vocab")
    inside = {token for token in ids if token in vocab} if isinstance(vocab, dict) else set(ids)
    if not inside or model.get("type") != "BPE" or model.get("ignore_merges"):
        return bool(inside)
    return any(_touches(pair, inside) for pair in model.get("merges") or ())


def random_names(ids: Mapping[str, int]) -> dict[str, str]:
    """A name of letters and digits for each token, all of one length, so that none begins another."""
    nonce = secrets.token_hex(12)
    return {token: f"{nonce}{position:06x}" for position, token in enumerate(ids)}


def disguised(tokenizer: Mapping[str, Any], ids: Mapping[str, int], names: Mapping[str, str]) -> AnyTokenizer:
    """The tokenizer of a `tokenizer.json` with the tokens of `ids` renamed as in `names`; ids stay as they are."""
    # Not normalized: a normalizer that puts a space first would change the name itself, and hide it.
    added = [
        {**entry, "content": names[entry["content"]], "special": True, "normalized": False}
        if entry["content"] in names
        else entry
        for entry in tokenizer.get("added_tokens") or ()
    ]
    known = {entry["content"] for entry in tokenizer.get("added_tokens") or ()}
    added += [
        {"id": ids[token], "content": names[token], "special": True, **_FLAGS}
        for token in names
        if token not in known
    ]
    model = dict(tokenizer["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("merges"):
        model["merges"] = [pair for pair in model["merges"] if not _touches(pair, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    plain = {**tokenizer, "added_tokens": added, "model": model, "post_processor": None}
    plain |= {"truncation": None, "padding": None}
    inner = AnyTokenizer.from_str(json.dumps(plain))
    assert all(inner.token_to_id(names[token]) == ids[token] for token in names)
    return inner


def _touches(pair: str | list[str], names: Container[str]) -> bool:
    """Whether a merge makes one of the tokens, or is made of one."""
    parts = pair.split(" ", 1) if isinstance(pair, str) else pair
    return "".join(parts) in names or any(part in names for part in parts)
