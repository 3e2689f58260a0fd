import base64
import json
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from foreign_tokenizers import AWKWARD, TEXTS, byte_level
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.errors import UserError
from yunque.tokenizer import PATTERNS, Tokenizer, read_tokenizer, tokenizer_from_merges, tokenizer_from_ranks
from yunque.tokenizer.alphabet import bytes_of_letters

SENTENCE = "Soy uno con la fuerza y la fuerza esta conmigo"
IDS = [50, 726, 555, 78, 369, 8591, 14035, 263, 4496, 331, 8591, 14035, 263, 4496, 1556, 64, 369, 76, 14031]
# Of GPT-2's vocabulary: every token that a merge inside one of these words makes or takes, and in their order
# the merges. (All of it: `yunque tokenizer show FOLDER --text "..." --json` with GPT-2's vocab.json and merges.txt.)
GPT2_IDS = {
    "S": 50, "a": 64, "c": 66, "e": 68, "f": 69, "g": 70, "i": 72, "l": 75, "m": 76, "n": 77, "o": 78, "r": 81,
    "s": 82, "t": 83, "u": 84, "y": 88, "z": 89, "Ġ": 220, "on": 261, "er": 263, "Ġc": 269, "es": 274, "Ġf": 277,
    "Ġl": 300, "st": 301, "Ġe": 304, "ig": 328, "Ġy": 331, "Ġu": 334, "Ġcon": 369, "est": 395, "un": 403, "ue": 518,
    "Ġun": 555, "oy": 726, "Ġco": 763, "co": 1073, "con": 1102, "Ġest": 1556, "Ġes": 1658, "go": 2188, "So": 2396,
    "no": 3919, "za": 4496, "la": 5031, "ta": 8326, "Ġla": 8591, "mi": 11632, "igo": 14031, "Ġfu": 14035,
    "uer": 15573, "esta": 18059, "fu": 20942, "nm": 21533, "uno": 36909, "Ġfue": 37911, "sta": 38031,
}  # fmt: skip
GPT2_MERGES = (
    "o+n e+r Ġ+c e+s Ġ+f Ġ+l s+t Ġ+e i+g Ġ+y Ġ+u Ġc+on es+t u+n u+e Ġu+n o+y Ġc+o c+o c+on Ġ+est Ġ+es g+o S+o n+o "
    "z+a l+a t+a Ġl+a m+i ig+o Ġf+u u+er est+a f+u n+m un+o Ġf+ue st+a"
)
SPECIAL = {"<|endoftext|>": 400, "<|im_start|>": 401}


def gpt2(merges: str = GPT2_MERGES) -> Tokenizer:
    named = {id: token for token, id in GPT2_IDS.items()}
    vocab = {named.get(id, f"unused {id}"): id for id in range(max(named) + 1)}
    return tokenizer_from_merges(vocab, [tuple(pair.split("+")) for pair in merges.split()])


def test_the_sentence_of_the_class_has_the_ids_of_gpt2() -> None:
    assert len(SENTENCE) == 46
    assert gpt2().encode(SENTENCE) == IDS
    assert gpt2().decode(IDS) == SENTENCE
    # The control: with two merges in another order it is another tokenizer.
    with pytest.raises(AssertionError):
        assert gpt2(GPT2_MERGES.replace("o+y Ġc+o", "Ġc+o").replace("S+o", "S+o o+y")).encode(SENTENCE) == IDS


def learned(pattern: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    described = json.loads(byte_level(_regexes()[pattern]).to_str())
    vocab = dict(described["model"]["vocab"])
    # tiktoken wants its bytes first in rank; a learned vocabulary has them first as well.
    return vocab, [tuple(pair) for pair in described["model"]["merges"]]


def _regexes() -> dict[str, str]:
    described = {name: json.loads(_state(PATTERNS[name]())) for name in ("gpt2", "cl100k", "o200k", "qwen2")}
    return {name: state["pretokenizers"][0]["pattern"]["Regex"] for name, state in described.items()}


def _state(pre_tokenizer) -> str:
    return pre_tokenizer.__getstate__().decode()


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "qwen2"])
def test_ranks_give_the_ids_of_tiktoken(tmp_path: Path, pattern: str) -> None:
    vocab, _ = learned(pattern)
    ranks = {bytes_of_letters(token): id for token, id in vocab.items()}
    theirs = tiktoken.Encoding("tiny", pat_str=_regexes()[pattern], mergeable_ranks=ranks, special_tokens={})
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (tmp_path / f"{pattern}.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    ours = read_tokenizer(tmp_path, pattern)

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(exclude_categories=("Cs",))) | st.sampled_from([*TEXTS, *AWKWARD]))
    def same(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, disallowed_special=())
        assert ours.decode(ours.encode(text)) == text

    same()
    # The control: another division of the text gives other ids.
    others = [read_tokenizer(tmp_path, name) for name in ("gpt2", "cl100k", "qwen2") if name != pattern]
    texts = ["  return kilos", "kilos\n    return", "(f(x):\n", *TEXTS]
    assert any(other.encode(text) != theirs.encode(text) for other in others for text in texts)


def test_special_tokens_of_ranks_may_leave_holes_before_them() -> None:
    vocab, _ = learned("gpt2")
    ranks = {bytes_of_letters(token): id for token, id in vocab.items()}
    tokenizer = tokenizer_from_ranks(ranks, "gpt2", {"<|endoftext|>": 405})
    assert tokenizer.end_ids == (405,)
    assert tokenizer.vocab_size == 406
    assert 405 not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.token_bytes(403) == b""
    with pytest.raises(UserError, match="none with the id 400"):
        tokenizer_from_ranks(ranks, "gpt2", {"<|endoftext|>": 10**9})


def test_vocab_and_merges_give_what_transformers_gives(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vocab, merges = learned("gpt2")
    vocab["<|endoftext|>"] = len(vocab)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    lines = "#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n"
    (tmp_path / "merges.txt").write_text(lines, encoding="utf-8")
    theirs = transformers.GPT2Tokenizer(vocab=vocab, merges=merges)
    ours = read_tokenizer(tmp_path)
    for text in [*TEXTS, *AWKWARD]:
        assert ours.encode(text) == theirs(text, split_special_tokens=True).input_ids
        assert ours.encode_prompt(text) == ours.encode(text)
    assert ours.end_ids == (vocab["<|endoftext|>"],)
    (tmp_path / "encoder.json").write_bytes((tmp_path / "vocab.json").read_bytes())
    assert read_tokenizer(tmp_path / "vocab.json").encode(SENTENCE) == ours.encode(SENTENCE)


def test_qwen_reads_letters_spelled_in_two_parts_as_one(tmp_path: Path) -> None:
    vocab, merges = learned("qwen2")
    for name, content in (
        ("vocab.json", json.dumps(vocab)),
        ("merges.txt", "\n".join(map(" ".join, merges))),
        ("tokenizer_config.json", json.dumps({"tokenizer_class": "Qwen2Tokenizer"})),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
    qwen = read_tokenizer(tmp_path)
    gpt2 = tokenizer_from_merges(vocab, merges, [], "gpt2")
    for text in ("El niño comió piñas", "Ñandú, pingüino y cigüeña"):
        apart = unicodedata.normalize("NFD", text)
        assert qwen.encode(apart) == qwen.encode(text)
        assert gpt2.encode(apart) != gpt2.encode(text)


def test_a_vocabulary_of_merges_keeps_what_it_was_told() -> None:
    vocab, merges = learned("gpt2")
    tokenizer = tokenizer_from_merges(
        vocab, merges, SPECIAL, "llama3", bos="<|im_start|>", eos="<|endoftext|>", add_bos=True
    )
    assert tokenizer.encode_prompt("a") == [401, *tokenizer.encode("a")]
    assert (tokenizer.end_ids, tokenizer.bos_id, tokenizer.pad_id) == ((400,), 401, 400)
    assert not {400, 401} & set(tokenizer.encode("<|im_start|>"))


@pytest.mark.parametrize("name", list(PATTERNS))
def test_every_pattern_brings_every_text_back(name: str) -> None:
    vocab, merges = learned("gpt2")
    tokenizer = tokenizer_from_merges(vocab, merges, SPECIAL, name)
    for text in [*TEXTS, *AWKWARD]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("vocab", "merges", "sentence"),
    [
        ({"a": 0, "b": 1}, "a c", "names 'c'"),
        ({"a": 0, "b": 1}, "a b", "names 'ab'"),
        ({"a": 0, "b": 0}, "", "same id 0"),
        ({"a": 0, "b": 2}, "", "none with the id 1"),
        ({"a": 0, "b": 10**9}, "", "none with the id 1"),
        ({"a": 0, "b": -1}, "", "not a number"),
        ({"a": 0, "b": "x"}, "", "not a number"),
        ({}, "", "empty"),
        ({"a": 0}, "abc", "line 1 is not two tokens"),
    ],
)
def test_a_broken_vocabulary_is_one_sentence(
    tmp_path: Path, vocab: object, merges: str, sentence: str
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(UserError, match=sentence) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="go together"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("!!! 0", "line 1"),
        ("YQ== 0\nYg==", "line 2"),
        ("YQ== 0\nYg== x", "line 2"),
        ("YQ== 99999999999999999999", "line 1"),
        ("YQ== 0\nYQ== 1", "a second time"),
        ("YQ== 0", "no token for the byte 0x00"),
        ("", "no token for the byte"),
    ],
)
def test_a_broken_rank_file_is_one_sentence(tmp_path: Path, lines: str, sentence: str) -> None:
    (tmp_path / "tiny.tiktoken").write_text(lines)
    with pytest.raises(UserError, match=sentence):
        read_tokenizer(tmp_path)


def test_an_unknown_pattern_is_told() -> None:
    with pytest.raises(UserError, match="'gpt9' is not a pattern"):
        tokenizer_from_merges({"a": 0}, [], (), "gpt9")
