import functools
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yunque.errors import UserError
from yunque.tokenizer import SPECIAL_TOKENS, Tokenizer

TEXTS = [
    "The length of a string is given by the built-in function len().",
    "El equipaje de mano no puede pesar más de diez kilos; la niña viaja con su perro.",
    "El equipaje facturado pesa más que el equipaje de mano.",
] * 20


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 400)


ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n\t x  \r\n",
        "\x00\x7f",
        "Ñandú",
        unicodedata.normalize("NFD", "Ñandú"),
        "👩‍👩‍👧‍👦🇪🇸",
        "\u202e\ufeff",
        "<|end|>",
    ],
)
def test_awkward_texts_survive_the_round_trip(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert tokenizer().decode(tokenizer().encode("a\ud83db")) == "a\ufffdb"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "a", "<|", "|>"]), max_size=6).map("".join))
def test_a_text_cannot_forge_a_special_token(text: str) -> None:
    special = {tokenizer().end_id, *tokenizer().mark_ids}
    assert not special & set(tokenizer().encode(text))
    assert not special & {id for ids in tokenizer().encode_batch([text]) for id in ids}
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_every_special_token_has_its_own_id_and_no_bytes() -> None:
    ids = {tokenizer().end_id, *tokenizer().mark_ids}
    assert len(ids) == len(SPECIAL_TOKENS)
    assert tokenizer().pad_id != tokenizer().end_id
    assert {tokenizer().token_name(id) for id in ids} == set(SPECIAL_TOKENS)
    assert tokenizer().decode(ids) == ""


def test_token_bytes_join_to_the_bytes_of_the_text() -> None:
    text = "La niña comió paella 🥘."
    assert b"".join(map(tokenizer().token_bytes, tokenizer().encode(text))) == text.encode()


def test_learned_words_take_fewer_tokens_than_their_bytes() -> None:
    learned, unknown = tokenizer().encode("equipaje de mano"), tokenizer().encode("zzxqjkwvzzxqjkwv")
    assert len(learned) <= 6
    assert len(unknown) > 12


def test_training_again_gives_the_same_tokenizer() -> None:
    assert Tokenizer.train(TEXTS, 400).to_json() == tokenizer().to_json()


def test_it_is_the_same_after_saving_and_loading(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_json(), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    text = "El equipaje <|end|> más niños"
    assert loaded.encode(text) == tokenizer().encode(text)
    assert loaded.vocab_size == tokenizer().vocab_size
    assert loaded.end_id == tokenizer().end_id


def test_a_chat_marks_the_answers_and_their_ends_as_the_models_own() -> None:
    ids, written = tokenizer().encode_chat(
        [("system", "s"), ("user", "u <|assistant|>"), ("assistant", "niña"), ("user", "v")], True
    )
    mine = [id for id, own in zip(ids, written, strict=True) if own]
    assert mine == [*tokenizer().encode("niña"), tokenizer().end_id]
    names = [tokenizer().token_name(id) for id in ids if id in tokenizer().mark_ids]
    assert names == ["<|system|>", "<|user|>", "<|assistant|>", "<|user|>", "<|assistant|>"]


def test_what_is_asked_when_serving_is_the_beginning_of_what_was_taught() -> None:
    taught, _ = tokenizer().encode_chat([("user", "hola"), ("assistant", "adiós")], False)
    asked, _ = tokenizer().encode_chat([("user", "hola")], True)
    assert taught[: len(asked)] == asked


def test_an_unknown_role_is_told() -> None:
    with pytest.raises(UserError, match="'root' is not a role"):
        tokenizer().encode_chat([("root", "x")], False)


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"model": {"type": "BPE"}})])
def test_a_broken_file_is_one_sentence(tmp_path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(path)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="261"):
        Tokenizer.train(TEXTS, 100)
