"""What was made quick gives what the plain way gives: words, stems, sentences, a store's words and lists."""

import re
import unicodedata
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from yunque.apps.retrieval import passages
from yunque.apps.retrieval.passages import sentences
from yunque.apps.retrieval.stores import Entry
from yunque.apps.retrieval.stores.postings import HEADING_WEIGHT, analyze
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.apps.retrieval.words import STOP, fold, stem, words_of

WESTERN = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(256))
LETTERS = st.sampled_from([*WESTERN, *"ﬁｆｕ７İſ\u0301\u0327\u2009日", *" .,:'’sS0129aeñ\n" * 4])
TEXTS = st.text(LETTERS, max_size=40)
WORDS = [
    "el", "la", "un", "que", "the", "of", "a", "volar", "vuelo", "vuelos", "maletas", "bags", "carried",
    "12,50", "3.º", "niño’s", "it's", "¿Qué?", "Más.", "a.2",
]  # fmt: skip
SENTENCES = st.lists(st.sampled_from([*WORDS, "...", "?!", "Sr.", "«Sí.»", "- ", "\n"]), max_size=30).map(
    " ".join
)


def _plainly_folded(text: str) -> str:
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[.,:][0-9]+)*", re.sub(r"(?<=\w)['’]s\b", "", _plainly_folded(text)))


def test_every_character_is_folded_as_unicode_says() -> None:
    for code in [*range(0xD800), *range(0xE000, 0x30000)]:
        assert fold(chr(code)) == _plainly_folded(chr(code)), hex(code)


@given(TEXTS)
@example("12,50 a,² b’s ½, …'S")
@example("a.5b 1.2.3 _x_y_ ¿«a»")
def test_words_are_those_of_the_plain_way(text: str) -> None:
    assert fold(text) == _plainly_folded(text)
    assert words_of(text) == _plain_words(text)


def test_the_plain_way_tells_a_number_from_two() -> None:
    assert _plain_words("12,50 kg, l’été’s") == words_of("12,50 kg, l’été’s") == ["12,50", "kg", "l", "ete"]
    assert words_of("12, 50") != words_of("12,50")


@given(SENTENCES, SENTENCES, st.sampled_from(["es", "en", "und"]))
def test_an_entry_is_taken_apart_as_word_by_word(heading: str, text: str, language: str) -> None:
    stop = STOP["en" if language == "en" else "es"]
    inside = [stem(word, language) for word in _plain_words(text) if word not in stop]
    above = {stem(word, language) for word in _plain_words(heading) if word not in stop}
    found = analyze(heading, text, language)
    assert found.length == len(inside)
    assert dict(found.counts) == Counter(inside) + Counter(dict.fromkeys(above, HEADING_WEIGHT))
    words = {*_plain_words(text), *_plain_words(heading)}
    assert found.words == {word: stem(word, language) for word in words}


@given(SENTENCES)
@example("¿Sí?. no ... Sí?! vale. «Bien.» 3 cosas")
def test_sentences_end_where_either_rule_says(text: str) -> None:
    plain = re.compile(r"""[.!?…]+["'»”)\]]*(?=\s+["'«“(\[¿¡]*[A-ZÁÉÍÓÚÜÑ0-9€])|[?!]+["'»”)\]]*(?=\s)""")
    ends = [match.span() for match in plain.finditer(text)]
    assert [match.span() for match in passages._SENTENCE_END.finditer(text)] == ends
    for start, end in sentences(text, 0, len(text)):
        assert text[start:end] == text[start:end].strip() != ""
        assert end in {*(end for _, end in ends), len(text.rstrip())}


@settings(max_examples=30)
@given(st.lists(st.tuples(SENTENCES, st.sampled_from(["es", "en"]), st.booleans()), min_size=1, max_size=8))
def test_a_store_counts_each_word_of_each_language_once_for_an_entry(
    told: list[tuple[str, str, bool]],
) -> None:
    store = SQLiteStore()
    groups = [("staff",) if closed else () for _, _, closed in told]
    rows = [(text, language) for text, language, _ in told]
    store.put([Entry(str(n), *pair[:1], language=pair[1], groups=groups[n]) for n, pair in enumerate(rows)])
    wanted = {(word, stem(word, spoken)) for text, spoken in rows for word in _plain_words(text)}
    assert set(store.words()) == wanted
    often = Counter(one for text, spoken in rows for one in {*analyze("", text, spoken).counts})
    assert store.frequencies([*often, "nowhere"]) == {**often, "nowhere": 0}
    store.delete([str(n) for n in range(len(rows))])
    assert list(store.words()) == []
    store.close()
