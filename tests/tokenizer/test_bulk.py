"""The quick encoder gives the ids of the slow one, or there is none."""

import json
from typing import Any

import pytest
import tiktoken
from foreign_tokenizers import AWKWARD, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.tokenizer import PATTERNS, Tokenizer, tokenizer_from_merges
from yunque.tokenizer.alphabet import LETTERS
from yunque.tokenizer.bulk import BulkEncoder, bulk_encoder

LETTER_IDS = {letter: number for number, letter in enumerate(LETTERS)}


def quick(tokenizer: Tokenizer) -> BulkEncoder | None:
    return bulk_encoder(tokenizer._described, tokenizer._inner)


def merged(*merges: str, pattern: str = "gpt2", special: tuple[str, ...] = ()) -> Tokenizer:
    pairs = [(left, right) for left, right in (merge.split("+") for merge in merges)]
    tokens = [*LETTER_IDS, *dict.fromkeys(left + right for left, right in pairs), *special]
    return tokenizer_from_merges(
        {token: id for id, token in enumerate(tokens)},
        pairs,
        special,
        pattern,
        eos=special[0] if special else None,
    )


def learned(pattern: str) -> Tokenizer:
    own = Tokenizer.train(TEXTS * 3, 600)
    if pattern == "own":
        return own
    model = json.loads(own.to_json())["model"]
    tokens = [token for token in model["vocab"] if not token.startswith("<|")]
    vocab = {token: id for id, token in enumerate([*tokens, "<|endoftext|>"])}
    merges = [(pair[0], pair[1]) for pair in model["merges"]]
    return tokenizer_from_merges(
        vocab, merges, ("<|endoftext|>",), pattern, eos="<|endoftext|>", composed=pattern == "qwen2"
    )


TOKENIZERS = {pattern: learned(pattern) for pattern in ("own", "gpt2", "cl100k", "o200k", "qwen2")}
SIGNS = st.sampled_from(
    ["<|endoftext|>", "<|user|>", "  ", "\n\n", "aaaa", "n\u0303", "ñ", "'LL", "===", *AWKWARD]
)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(SIGNS | st.text(max_size=12), max_size=8))
def test_the_quick_encoder_gives_the_same_ids(name: str, parts: list[str]) -> None:
    encoder = quick(TOKENIZERS[name])
    assert encoder is not None
    text = "".join(parts).encode("utf-8", "replace").decode()
    assert encoder.encode(text).tolist() == TOKENIZERS[name].encode(text)


def test_many_texts_come_back_in_their_order() -> None:
    encoder = quick(TOKENIZERS["own"])
    assert encoder is not None
    texts = [f"{number} " * (number % 50) * 100 for number in range(200)]
    encoded = encoder.encode_batch(texts)
    assert [TOKENIZERS["own"].decode(ids.tolist()) for ids in encoded] == texts
    assert encoder.encode_batch([]) == []


def test_a_run_of_blanks_that_is_too_long_for_it_is_encoded_all_the_same() -> None:
    encoder = quick(TOKENIZERS["own"])
    assert encoder is not None
    text = "a" + " " * 1_000_000 + "b"
    with pytest.raises(ValueError, match="Max stack"):
        encoder._encoding.encode_to_numpy(text)
    assert encoder.encode(text).tolist() == TOKENIZERS["own"].encode(text)


def test_a_tokenizer_that_learned_marks_of_spans_has_a_quick_encoder_too() -> None:
    marked = TOKENIZERS["own"].with_tokens(["<extra_id_0>"])
    encoder = quick(marked)
    assert encoder is not None
    text = "uno <extra_id_0> dos"
    assert encoder.encode(text).tolist() == marked.encode(text)
    assert marked.token_id("<extra_id_0>") in encoder.encode(text)


def test_a_vocabulary_whose_tokens_are_not_themselves_is_left_to_the_slow_one() -> None:
    # b+c comes first, so that "abc" never becomes the token that a+b and c make.
    tokenizer = merged("b+c", "a+b", "ab+c")
    assert quick(tokenizer) is None
    # The reason: ranks alone merge a and bc, for which there is no listed pair.
    ranks = {bytes([LETTERS[letter]]): number for number, letter in enumerate(LETTERS)}
    ranks |= {b"bc": 256, b"ab": 257, b"abc": 258}
    by_rank = tiktoken.Encoding("x", pat_str=r"\w+", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(AssertionError):
        assert by_rank.encode("abc") == tokenizer.encode("abc")
    assert quick(merged("a+b", "ab+c")) is not None


@pytest.mark.parametrize("pattern", sorted(set(PATTERNS) - {"gpt2", "cl100k", "o200k", "llama3", "qwen2"}))
def test_a_text_that_is_divided_in_several_ways_is_left_to_the_slow_one(pattern: str) -> None:
    assert quick(merged("a+b", pattern=pattern)) is None


def changed(tokenizer: Tokenizer, **fields: Any) -> BulkEncoder | None:
    described = json.loads(tokenizer.to_json())
    return bulk_encoder({**described, **fields}, tokenizer._inner)


def test_what_ranks_do_not_tell_is_left_to_the_slow_one() -> None:
    tokenizer = merged("a+b")
    model = json.loads(tokenizer.to_json())["model"]
    assert changed(tokenizer) is not None
    assert changed(tokenizer, normalizer={"type": "Lowercase"}) is None
    assert changed(tokenizer, model={**model, "dropout": 0.1}) is None
    assert changed(tokenizer, model={**model, "type": "Unigram"}) is None
    assert (
        changed(
            tokenizer, model={**model, "vocab": {**model["vocab"], "palabra": 999}, "ignore_merges": True}
        )
        is None
    )
    assert changed(tokenizer, pre_tokenizer={"type": "Whitespace"}) is None


def test_much_text_goes_through_the_quick_encoder_and_little_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = learned("own")
    made: list[int] = []
    real = bulk_encoder
    monkeypatch.setattr(
        "yunque.tokenizer.tokenizer.bulk_encoder", lambda *given: made.append(1) or real(*given)
    )
    few, many = ["poco"], ["El avión despega. " * 1000] * 3
    assert [ids.tolist() for ids in tokenizer.encode_batch(few)] == [tokenizer.encode(few[0])]
    assert not made
    assert [ids.tolist() for ids in tokenizer.encode_batch(many)] == [tokenizer.encode(many[0])] * 3
    tokenizer.encode_batch(many)
    assert made == [1]
