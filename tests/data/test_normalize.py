"""Every text has one form, and reaching it twice changes nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yunque.data.normalize import normalize

TEXT = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(list("aeñü \t\n\r\x0b\x00\xa0\xad\u200b\u200d\u0301\u0303\u2028\ufeff\u3000")),
    ),
    max_size=60,
)


@given(TEXT)
def test_normalizing_twice_is_normalizing_once(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once


@given(TEXT)
def test_composed_and_decomposed_input_give_the_same(text: str) -> None:
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("can\u0303o\u0301n", "cañón"),
        ("uno\r\ndos\rtres\u2028cuatro", "uno\ndos\ntres\ncuatro"),
        ("a\u200bb\xadc\x00d\ufeff", "abcd"),
        ("a\xa0 \u3000b", "a b"),
        ("a \t b", "a\tb"),
        ("a\tb", "a\tb"),
        ("uno\n\n\n\n\ndos   \n", "uno\n\ndos"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
    ],
)
def test_known_forms(written: str, wanted: str) -> None:
    assert normalize(written) == wanted


def test_what_says_something_is_kept() -> None:
    text = "¿Cuánto pesa? 23 kg, «máximo» 50 € – sí\n\n\t- niño"
    assert normalize(text) == text
