import json
from pathlib import Path

import pytest
from foreign_tokenizers import AWKWARD, SPECIAL, byte_level, write_foreign
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.errors import UserError
from yunque.tokenizer import Tokenizer, read_tokenizer

transformers = pytest.importorskip("transformers")

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.fixture(scope="module")
def ours(foreign_folder: Path) -> Tokenizer:
    return read_tokenizer(foreign_folder)


@pytest.fixture(scope="module")
def theirs(foreign_folder: Path):
    return transformers.AutoTokenizer.from_pretrained(foreign_folder)


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT)
def test_any_text_has_the_ids_of_transformers_and_comes_back(ours: Tokenizer, theirs, text: str) -> None:
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode_batch([text])[0].tolist() == ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_a_prompt_begins_as_the_original_does(ours: Tokenizer, theirs, text: str) -> None:
    assert ours.encode_prompt(text) == theirs(text).input_ids
    assert b"".join(map(ours.token_bytes, ours.encode(text))) == text.encode()


def test_what_transformers_takes_for_a_special_token_is_text_here(ours: Tokenizer, theirs) -> None:
    text = f"a{SPECIAL[1]}b"
    assert 401 in theirs(text).input_ids
    assert 401 not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


def test_the_ends_come_from_the_tokenizer_and_from_the_model(ours: Tokenizer) -> None:
    assert ours.end_ids == (402, 400)
    assert ours.end_id == 402
    assert ours.pad_id == ours.end_id
    assert ours.bos_id == 403
    assert ours.mark_ids == ()
    assert [ours.token_name(id) for id in (400, 401, 402, 403, 404)] == [*SPECIAL, "<think>"]
    assert ours.decode([400, *ours.encode("a"), 402]) == "a"
    assert ours.token_bytes(9999) == b""


@pytest.mark.parametrize(
    "flags", [{"add_bos_token": False}, {"add_bos_token": True}, {"add_eos_token": True}]
)
def test_what_tokenizer_json_puts_around_a_text_goes_before_flags(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    folder = write_foreign(tmp_path, pad_token="<|endoftext|>", **flags)
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode_prompt("a") == [403, *tokenizer.encode("a")]
    assert tokenizer.encode_prompt("a") == transformers.AutoTokenizer.from_pretrained(folder)("a").input_ids
    assert tokenizer.pad_id == 400


def test_the_files_it_writes_open_as_the_same_tokenizer(ours: Tokenizer, tmp_path: Path) -> None:
    for name, data in ours.to_files().items():
        (tmp_path / name).write_bytes(data)
    again = read_tokenizer(tmp_path)
    assert again.to_files() == ours.to_files()
    talk = [("user", "niña"), ("assistant", "sí")]
    assert again.encode_chat(talk, True) == ours.encode_chat(talk, True)
    assert (again.end_ids, again.pad_id, again.vocab_size) == (ours.end_ids, ours.pad_id, ours.vocab_size)


def test_ends_that_only_the_model_tells_are_kept(tmp_path: Path) -> None:
    inner = byte_level()
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 401}))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.end_ids == (401,)
    (tmp_path / "again").mkdir()
    for name, data in tokenizer.to_files().items():
        (tmp_path / "again" / name).write_bytes(data)
    assert read_tokenizer(tmp_path / "again").end_ids == (401,)


def test_tokens_that_only_the_companion_files_name_are_added(tmp_path: Path) -> None:
    folder = write_foreign(tmp_path, pad_token="[PAD]")
    tokenizer = read_tokenizer(folder)
    assert tokenizer.pad_id == 405 == transformers.AutoTokenizer.from_pretrained(folder).pad_token_id
    assert 405 not in tokenizer.encode("[PAD]")
    wrong = {"999": {"content": "<new>", "special": True}}
    with pytest.raises(UserError, match="'<new>' has the id 999"):
        read_tokenizer(write_foreign(tmp_path / "wrong", added_tokens_decoder=wrong))


def test_without_an_end_token_it_says_what_to_do(tmp_path: Path) -> None:
    inner = byte_level()
    described = json.loads(inner.to_str())
    described["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.encode_prompt("a") == tokenizer.encode("a")
    with pytest.raises(UserError, match="eos_token"):
        _ = tokenizer.end_id


def test_words_of_bert_come_back_with_their_spaces(tmp_path: Path) -> None:
    vocab = {
        word: id
        for id, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "el", "perro", "##s", ",", "sep"])
    }
    (tmp_path / "vocab.txt").write_text("\n".join(vocab))
    theirs = transformers.BertTokenizer(vocab=vocab)
    theirs.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    for text in ("El perros, perro", "[SEP] el gato", "[CLS]"):
        ids = theirs(text, split_special_tokens=True).input_ids
        assert tokenizer.encode_prompt(text) == ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.encode_prompt("el") == [2, 4, 3]
    assert tokenizer.pad_id == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", "nonsense"),
        ("chat_template.jinja", "\xff"),
        ("special_tokens_map.json", "[" * 100_000),
    ],
)
def test_a_broken_companion_is_told_by_name(tmp_path: Path, name: str, content: str) -> None:
    folder = write_foreign(tmp_path)
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_tokenizer(folder)


def test_ids_past_all_reason_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    described = json.loads(byte_level().to_str())
    described["model"]["vocab"]["far"] = 1_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def _prefix(described: dict) -> None:
    described["model"]["continuing_subword_prefix"] = "####################"


def _token(described: dict) -> None:
    described["post_processor"]["special_tokens"] = {}


def _twice(described: dict) -> None:
    described["model"]["vocab"]["b"] = described["model"]["vocab"]["a"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(_prefix, "subword_prefix"), (_token, "names the token"), (_twice, "one id to several")],
)
def test_what_would_make_the_library_panic_is_one_sentence(tmp_path: Path, change, sentence: str) -> None:
    path = write_foreign(tmp_path) / "tokenizer.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match=sentence):
        read_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"merges\.txt"):
        read_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_tokenizer(tmp_path / "nowhere")


def test_added_tokens_that_are_not_special_stay_so(tmp_path: Path) -> None:
    described = json.loads(byte_level().to_str())["model"]
    vocab = {token: id for token, id in described["vocab"].items() if id < 400}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, described["merges"])))
    added = {"400": ("<|endoftext|>", True), "401": ("<tool>", False), "402": ("<|im_end|>", True)}
    entries = {id: {"content": token, "special": special} for id, (token, special) in added.items()}
    told = {"eos_token": "<|im_end|>", "added_tokens_decoder": entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {"<|endoftext|>": 400, "<|im_end|>": 402}
    assert tokenizer.encode("<tool>") == [401]
    assert tokenizer.end_id == 402
