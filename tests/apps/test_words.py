from yunque.apps.retrieval.stores import Entry
from yunque.apps.retrieval.stores.sqlite import SQLiteStore
from yunque.apps.retrieval.vocabulary import Vocabulary
from yunque.apps.retrieval.words import language_of, stem, words_of


def test_forms_of_a_word_share_a_stem_and_different_words_do_not() -> None:
    for language, forms in (
        ("es", "facturar facturado facturación facturas"),
        ("es", "volar vuelo vuelos vuela"),
        ("es", "reembolso reembolsable reembolsan"),
        ("es", "perder pierdo perdido"),
        ("en", "cancel cancelled cancellation cancels"),
        ("en", "carry carries carried"),
        ("en", "delay delayed delays"),
    ):
        assert len({stem(word, language) for word in words_of(forms)}) == 1, forms
    assert stem("perro", "es") != stem("pero", "es")
    assert stem("salida", "es") != stem("sala", "es")


def test_accents_case_and_compatible_forms_do_not_matter() -> None:
    assert words_of("FACTURACIÓN del Niño’s ｆｕｌｌ") == ["facturacion", "del", "nino", "full"]


def test_the_language_of_a_short_question_is_told() -> None:
    spanish = ["puedo llevar mi perro", "q cuesta una maleta", "precio mascotas", "¿DNI?"]
    english = ["can my cat fly", "pet price", "how heavy may my bag be", "wheres my luggage"]
    assert [language_of(text) for text in spanish] == ["es"] * 4
    assert [language_of(text) for text in english] == ["en"] * 4


def test_typing_mistakes_are_mended_and_other_words_left_alone() -> None:
    store = SQLiteStore()
    store.put([Entry("a", "passport suitcase horses moves pasaporte", language="en")])
    index = Vocabulary(store)
    assert index.nearest_words("pasport") == ["passport"]
    assert index.nearest_words("suticase") == ["suitcase"]
    assert index.nearest_words("movies") == []
    assert index.nearest_words("mouses") == []
