import functools
import io
import json
import struct
from pathlib import Path

import pytest
from foreign_tokenizers import AWKWARD, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.errors import UserError
from yunque.tokenizer import PieceType, Tokenizer, read_tokenizer, tokenizer_from_pieces

sentencepiece = pytest.importorskip("sentencepiece")

# `nmt_nfkc` and a combining mark behind a letter that it replaces: the library that we normalize with looks at
# both together and finds no rule (transformers' fast tokenizers have the same).
LETTERS = st.sampled_from(list("aábcñÑ ü1290<>/._\n\t-=¿¡ﬁ①Ａ👩漢字か"))
ANY_TEXT = st.text(LETTERS, max_size=30) | st.sampled_from([*TEXTS, *AWKWARD])
KINDS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    | {"remove_extra_whitespaces": False, "vocab_size": 420},
    "bpe": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc", "vocab_size": 150},
    "symbols": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    | {"user_defined_symbols": ["<sep>", "@@"], "vocab_size": 420},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "vocab_size": 150}
    | {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"}
    | {"user_defined_symbols": ["<sep>", "@@"], "vocab_size": 420, "add_dummy_prefix": False},
}


@functools.cache
def model(kind: str) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *["x = 0x41 <4> <1>"] * 10]),
        model_writer=writer,
        minloglevel=2,
        hard_vocab_limit=False,
        character_coverage=0.99,
        **KINDS[kind],
    )
    return writer.getvalue()


@pytest.fixture(params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path: Path):
    data = model(request.param)
    (tmp_path / "tokenizer.model").write_bytes(data)
    return read_tokenizer(tmp_path), sentencepiece.SentencePieceProcessor(model_proto=data)


def test_any_text_has_the_ids_of_sentencepiece(pair) -> None:
    ours, theirs = pair

    @settings(max_examples=250, deadline=None)
    @given(ANY_TEXT)
    def same(text: str) -> None:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)

    same()
    assert ours.vocab_size == theirs.vocab_size()
    for text in TEXTS[:2]:
        # The control: the ids of another text.
        with pytest.raises(AssertionError):
            assert ours.encode(text + " más") == theirs.encode(text)


def test_its_own_ends_are_known(pair) -> None:
    ours, theirs = pair
    assert ours.end_id == theirs.eos_id()
    around = (ours.encode_prompt("a")[0], ours.encode_prompt("a")[-1])
    # Llama begins with its begin token, T5 (which has none) ends with its end token.
    assert around[0] == theirs.bos_id() if theirs.bos_id() >= 0 else around[1] == theirs.eos_id()


def test_control_pieces_cannot_be_typed(pair) -> None:
    ours, _ = pair
    forged = set(ours.encode("</s> <s> <unk> <pad>a</s>")) & set(ours.special_tokens.values())
    assert forged <= {ours.special_tokens["<unk>"]}


def test_the_files_it_writes_open_as_the_same_tokenizer(pair, tmp_path: Path) -> None:
    ours, _ = pair
    folder = tmp_path / "kept"
    folder.mkdir()
    for name, data in ours.to_files().items():
        (folder / name).write_bytes(data)
    again = read_tokenizer(folder)
    for text in [*TEXTS[:4], *AWKWARD]:
        assert again.encode_prompt(text) == ours.encode_prompt(text)
    assert (again.end_ids, again.bos_id, again.pad_id) == (ours.end_ids, ours.bos_id, ours.pad_id)


def test_the_files_open_with_transformers_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(model("llama"))
    ours = read_tokenizer(tmp_path)
    (tmp_path / "kept").mkdir()
    for name, data in ours.to_files().items():
        (tmp_path / "kept" / name).write_bytes(data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "kept")
    for text in [*TEXTS[:4], *AWKWARD[:-1]]:
        assert theirs(text).input_ids == ours.encode_prompt(text)


def test_the_marks_of_t5_stand_behind_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(model("t5"))
    marks = [f"<extra_id_{number}>" for number in range(100)]
    told = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "additional_special_tokens": marks}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    tokenizer = read_tokenizer(tmp_path)
    count = sentencepiece.SentencePieceProcessor(model_proto=model("t5")).vocab_size()
    assert tokenizer.special_tokens["<extra_id_99>"] == count
    assert tokenizer.special_tokens["<extra_id_0>"] == count + 99 == tokenizer.vocab_size - 1
    assert tokenizer.encode_prompt("la")[-1] == tokenizer.end_id == 1
    assert max(tokenizer.encode("<extra_id_0>")) < count
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_cut_off_model_is_one_sentence(tmp_path: Path, kind: str) -> None:
    data = model(kind)
    path = tmp_path / "spiece.model"
    refused = 0
    for size in [0, 1, 5, *range(10, len(data), max(len(data) // 40, 1))]:
        path.write_bytes(data[:size])
        try:
            read_tokenizer(path).encode("niña")
        except UserError as error:
            assert "spiece.model" in str(error)
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x0a" + b"\xff" * 9 + b"\x01", "longer than what is left"),
        (b"\x0a\xff\xff\xff\xff\x0fabc", "longer than what is left"),
        (b"\xff" * 20, "longer than 64 bits"),
        (b"\x0b", "wire type"),
        (b"\x0a\x05\x0a\x03\xff\xfe\xfd", "not UTF-8"),
        (b"\x0a\x05\x0a\x01a\x18\x63", "type 99"),
        (b"", "no pieces"),
        (b"<html>", "not a SentencePiece model"),
    ],
)
def test_bytes_that_are_no_model_are_one_sentence(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        read_tokenizer(tmp_path / "x.model")


def test_a_normalization_that_leads_out_of_its_table_is_refused(tmp_path: Path) -> None:
    data = model("t5")
    start = (
        data.index(b"nmt_nfkc", len(data) // 2) if data.count(b"nmt_nfkc") > 1 else data.index(b"nmt_nfkc")
    )
    hostile = bytearray(data)
    for position in range(start + 2000, start + 6000, 4):
        hostile[position : position + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "x.model").write_bytes(bytes(hostile))
    try:
        tokenizer = read_tokenizer(tmp_path / "x.model")
    except UserError:
        return
    for code in range(32, 0x3000):
        tokenizer.encode(chr(code))


def pieces() -> list[tuple[str, float, PieceType]]:
    made = [
        ("<unk>", 0.0, PieceType.UNKNOWN),
        ("<s>", 0.0, PieceType.CONTROL),
        ("</s>", 0.0, PieceType.CONTROL),
    ]
    made += [(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]
    return [
        *made,
        *((name, -float(n), PieceType.NORMAL) for n, name in enumerate(("la", "▁la", "l", "a", "▁"))),
    ]


def test_pieces_of_another_format_make_a_tokenizer() -> None:
    tokenizer = tokenizer_from_pieces(pieces(), "bpe", bos_id=1, eos_id=2, add_bos=True)
    assert [tokenizer.token_name(id) for id in tokenizer.encode_prompt("la lañ")] == [
        *("<s>", " la", " la", "\ufffd", "\ufffd")
    ]
    assert tokenizer.decode(tokenizer.encode("la lañ")) == "la lañ"
    assert tokenizer.token_bytes(3 + 0xC3) == b"\xc3"
    assert tokenizer_from_pieces(pieces(), "bpe", add_dummy_prefix=False).encode("la") == [259]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda made: made[:0], "no pieces"),
        (lambda made: [*made, ("la", 0.0, PieceType.NORMAL)], "'la' stands twice"),
        (lambda made: [*made, ("x", float("nan"), PieceType.NORMAL)], "score nan"),
    ],
)
def test_pieces_that_cannot_work_are_one_sentence(change, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tokenizer_from_pieces(change(pieces()), "bpe")
    with pytest.raises(UserError, match="the eos id 999"):
        tokenizer_from_pieces(pieces(), "bpe", eos_id=999)


def llama2c(made: list[tuple[str, float, PieceType]]) -> bytes:
    named = [(name if n not in (1, 2) else f"\n{name}\n", score) for n, (name, score, _) in enumerate(made)]
    out = struct.pack("<i", 7)
    for name, score in named:
        data = name.replace("▁", " ").encode()
        out += struct.pack("<fi", score, len(data)) + data
    return out


def test_a_vocabulary_of_llama2c_is_the_same_as_its_pieces(tmp_path: Path) -> None:
    (tmp_path / "tok264.bin").write_bytes(llama2c(pieces()))
    tokenizer = read_tokenizer(tmp_path)
    expected = tokenizer_from_pieces(pieces(), "bpe", bos_id=1, eos_id=2, add_bos=True)
    for text in ["la lañ", *AWKWARD]:
        assert tokenizer.encode_prompt(text) == expected.encode_prompt(text)
    assert (tokenizer.end_id, tokenizer.vocab_size) == (2, 264)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0",
        struct.pack("<i", 10**9),
        llama2c(pieces())[:-1],
        llama2c(pieces()[:100]),
        struct.pack("<ifi", 7, 0.0, 10**9),
        struct.pack("<ifi", 7, 0.0, -1),
        struct.pack("<ifi", 7, 0.0, 1) + b"\xff",
    ],
)
def test_a_broken_llama2c_vocabulary_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tok.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"tok\.bin: "):
        read_tokenizer(tmp_path / "tok.bin")


def test_the_face_is_the_same_for_all_of_them(pair) -> None:
    ours, _ = pair
    assert isinstance(ours, Tokenizer)
    text = "la niña de"
    assert b"".join(map(ours.token_bytes, ours.encode(text))).decode().strip() == text
