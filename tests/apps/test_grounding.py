"""Answers held against their sources: what is quoted stands there, numbers are real, citations bear out."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yunque.apps.retrieval.grounding import cited_numbers, ground

_PASSAGES = [
    ("El perro que viaja en cabina puede pesar como máximo 8 kg. El transportín va\nbajo el asiento.", "es"),
    ("A folding stroller travels free of charge in the hold. It's checked in at the gate.", "en"),
    ("Cambiar la fecha del vuelo cuesta 60 EUR con la tarifa Básica.", "es"),
]


@pytest.mark.parametrize(
    "sentence",
    [
        "El perro en cabina puede pesar 8 kg [1].",
        "«puede pesar como máximo 8 kg» [1].",
        'La norma dice "El transportín va bajo el asiento" [1].',
        "“El perro […] puede pesar como máximo 8 kg.” [1]",
        "Según el documento, «El perro que viaja en cabina ... El transportín va bajo el asiento» [1].",
        "«Puede pesar como máximo 8 kg» [1].",
        "«El perro que viaja en cabina puede pesar como máximo 8 kg. El transportín va bajo el asiento.» [1]",
        "The stroller travels “free of charge” in the hold [2].",
        "“It’s checked in at the gate” [2].",
    ],
)
def test_what_the_source_says_is_kept(sentence: str) -> None:
    found = ground(sentence, _PASSAGES)
    assert found.whole and found.text == sentence


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("El perro en cabina puede pesar 10 kg [1].", "number not found"),
        ("«puede pesar como maximo 8 kg» [1].", "quotation not found"),
        ("«Puede pesar como Máximo 8 kg» [1].", "quotation not found"),
        ("«El perro que viaja en cabina ... va bajo el asiento» [1].", "quotation not found"),
        ("«puede pesar como máximo 8 k» es el peso del perro en cabina [1].", "quotation not found"),
        ("«va bajo el asiento ... El perro que viaja en cabina» [1].", "quotation not found"),
        ("El perro en cabina «cuesta 60 EUR» [1].", "quotation not found"),
        ("Los caballos de carreras necesitan pasaporte europeo [1].", "not borne out"),
        ("El perro en cabina puede pesar 8 kg.", "no source"),
        ("El perro en cabina puede pesar 8 kg [9].", "no source"),
    ],
)
def test_what_it_does_not_say_is_dropped(sentence: str, reason: str) -> None:
    found = ground(sentence, _PASSAGES)
    assert [verdict.reason for verdict in found.verdicts] == [reason] and found.text == ""
    assert not found.whole


def test_a_false_sentence_goes_and_the_others_stay() -> None:
    answer = (
        "El perro en cabina puede pesar 8 kg. [1] Los gatos pagan 99 EUR [3]. "
        "Cambiar la fecha cuesta 60 EUR con la tarifa Básica [3]."
    )
    found = ground(answer, _PASSAGES)
    assert found.text == (
        "El perro en cabina puede pesar 8 kg. [1] Cambiar la fecha cuesta 60 EUR con la tarifa Básica [3]."
    )
    assert [verdict.kept for verdict in found.verdicts] == [True, False, True] and found.citations == (1, 3)
    for verdict in found.verdicts:
        assert answer[verdict.start : verdict.end] == verdict.text


def test_offsets_lead_to_the_words_of_the_source() -> None:
    (verdict,) = ground('El perro: "puede pesar como máximo 8 kg" [1].', _PASSAGES).verdicts
    (quotation,) = verdict.quotations
    assert _PASSAGES[0][0][quotation.start : quotation.end] == "puede pesar como máximo 8 kg"
    (source,) = verdict.sources
    assert _PASSAGES[0][0][source.start : source.end].startswith("El perro que viaja")
    (wrapped,) = ground("«va bajo el asiento» [1]", _PASSAGES).verdicts[0].quotations
    assert _PASSAGES[0][0][wrapped.start : wrapped.end] == "va\nbajo el asiento"


def test_a_citation_that_bears_nothing_out_is_taken_out() -> None:
    found = ground("El perro en cabina puede pesar 8 kg [1][2].", _PASSAGES)
    assert found.text == "El perro en cabina puede pesar 8 kg [1]." and found.citations == (1,)
    both = ground(
        "El perro en cabina puede pesar 8 kg y cambiar la fecha del vuelo cuesta 60 EUR [1][3].", _PASSAGES
    )
    assert both.citations == (1, 3)


def test_lines_of_a_list_are_judged_one_by_one() -> None:
    found = ground("- Perro en cabina: máximo 8 kg [1]\n- Gato en cabina: máximo 99 kg [1]", _PASSAGES)
    assert found.text == "- Perro en cabina: máximo 8 kg [1]"


def test_citation_numbers() -> None:
    assert cited_numbers("a [2] b [1], c [2]") == [2, 1]


_TERMS = [
    (
        "Refunds are not possible after the flight. The fee is 12,50 EUR for each bag of 23 kg. Children travel "
        "free. Dogs pay 50 EUR. Horses cannot travel. Check-in opens 24 hours before departure. "
        "Small cats can travel in the cabin but large cats cannot. The passengers' bags are weighed.",
        "en",
    ),
    (
        "El reembolso no es posible después del vuelo. La tasa es de 1.250,00 EUR. El bebé viaja sin asiento. "
        "Nadie puede fumar a bordo. El carrito viaja gratis. "
        "La maleta no puede superar los 10 kg ni los 55 cm.",
        "es",
    ),
]


@pytest.mark.parametrize(
    "quotation",
    ["‘{}’", "'{}'", "`{}`", "``{}''", "‹{}›", "「{}」", "『{}』", '"{}"', "“{}”", "„{}“", "»{}«", "＂{}＂"],
)
def test_every_kind_of_quotation_marks_is_held_to_the_words(quotation: str) -> None:
    good = f"The terms say {quotation.format('Dogs pay 50 EUR')} [1]."
    assert ground(good, _TERMS).text == good
    for made_up in ("dogs always pay 50 EUR", "Dogs pay\nalways 50 EUR", "Dogs pay 50 EUR, " * 200):
        (verdict,) = ground(f"The terms say {quotation.format(made_up)} [1].", _TERMS).verdicts
        assert verdict.reason == "quotation not found"


@pytest.mark.parametrize(
    "sentence",
    [
        'The terms say "dogs pay 50 EUR [1].',
        "The terms say “dogs pay 50 EUR [1].",
        "The terms say ‘dogs pay 50 EUR [1].",
        'The terms say dogs pay 50 EUR" always [1].',
        'The terms say "Children … pay 50 EUR" [1].',
        '"Refunds are … possible after the flight" [1].',
        '"Dogs pay 50 EUR … Check-in opens 24 hours before departure" [1].',
    ],
)
def test_marks_without_a_partner_and_stitched_quotations_are_dropped(sentence: str) -> None:
    assert [verdict.reason for verdict in ground(sentence, _TERMS).verdicts] == ["quotation not found"]


@pytest.mark.parametrize(
    "sentence",
    [
        "The passengers' bags are weighed [1].",
        "Children travel free, the passengers’ bags are weighed [1].",
        "The terms say ‘The passengers’ bags are weighed’ [1].",
        'The terms say "Children travel\nfree" [1].',
        '"Dogs … 50 EUR" [1].',
        '"Children travel free … Dogs pay 50 EUR" [1].',
    ],
)
def test_apostrophes_and_fair_quotations_are_kept(sentence: str) -> None:
    assert ground(sentence, _TERMS).text == sentence


def test_an_inch_mark_is_no_quotation_mark() -> None:
    found = ground(
        'A 15" laptop pays nothing. Children travel free [1]. It says "Dogs pay 50 EUR" [1].', _TERMS
    )
    assert found.text == 'Children travel free [1]. It says "Dogs pay 50 EUR" [1].'


@pytest.mark.parametrize(
    "sentence",
    ["Yes, you can. [1]", "No. [1]", "I don't know. [1]", "No lo sé. [2]", "Sí, puede hacerlo. [2]"],
)
def test_everyday_words_alone_are_not_borne_out(sentence: str) -> None:
    assert [verdict.reason for verdict in ground(sentence, _TERMS).verdicts] == ["not borne out"]


@pytest.mark.parametrize(
    "sentence",
    [
        "Refunds are possible after the flight [1].",
        "No, refunds are possible after the flight [1].",
        "Horses can travel [1].",
        "Children don’t travel free [1].",
        "Dogs never pay 50 EUR [1].",
        "Children travel free and refunds are possible after the flight [1].",
        "El reembolso es posible después del vuelo [2].",
        "El bebé viaja en su asiento [2].",
        "Se puede fumar a bordo [2].",
        "El carrito nunca viaja gratis [2].",
        "El carrito tampoco viaja gratis [2].",
        "Ningún carrito viaja gratis [2].",
    ],
)
def test_what_a_source_denies_is_not_affirmed_nor_the_other_way_round(sentence: str) -> None:
    assert [verdict.reason for verdict in ground(sentence, _TERMS).verdicts] == ["denied otherwise"]


@pytest.mark.parametrize(
    "sentence",
    [
        "No, refunds aren’t possible after the flight [1].",
        "No, dogs pay 50 EUR [1].",
        "Horses cannot travel [1].",
        "Small cats can travel in the cabin [1].",
        "Large cats can't travel [1].",
        "Children travel free but refunds are not possible after the flight [1].",
        "No hay reembolso posible después del vuelo [2].",
        "El carrito viaja gratis, sin coste [2].",
        "Nadie puede fumar a bordo [2].",
        "Each bag weighs no more than 23 kg [1].",
        "La maleta puede pesar 10 kg como máximo [2].",
    ],
)
def test_sentences_that_deny_what_their_source_denies_are_kept(sentence: str) -> None:
    assert ground(sentence, _TERMS).text == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "1. Check-in opens 24 hours before departure [1].\n2. Children travel free [1].",
        "3) Children travel free [1].",
        "**2.** Children travel free [1].",
        "Children travel free and el carrito viaja gratis [1, 2].",
        "Children travel free and el carrito viaja gratis [1-2].",
        "The fee is 12.50 EUR for each bag [1].",
        "The fee is 12,5 EUR for each bag [1].",
        "La tasa es de 1250 EUR [2].",
        "La tasa es de 1,250.00 EUR [2].",
        "Each bag of 23kg has a fee [1].",
        'The terms say "children travel free" [1].',
    ],
)
def test_the_same_in_another_way_of_writing_is_kept(sentence: str) -> None:
    assert ground(sentence, _TERMS).text == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "The fee is 1250 EUR for each bag [1].",
        "La tasa es de 1,25 EUR [2].",
        "Each bag of 25kg has a fee [1].",
    ],
)
def test_another_number_is_not_found(sentence: str) -> None:
    assert [verdict.reason for verdict in ground(sentence, _TERMS).verdicts] == ["number not found"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            "Children travel free [1]. Horses cannot travel.",
            "Children travel free [1]. Horses cannot travel [1].",
        ),
        ("Dogs pay 50 EUR [9]. Children travel free [1].", "Dogs pay 50 EUR [1]. Children travel free [1]."),
        (
            "El carrito viaja gratis. Children travel free [1, 2].",
            "El carrito viaja gratis [2]. Children travel free [1].",
        ),
        ("«Dogs pay 50 EUR.» Children travel free [1].", "«Dogs pay 50 EUR.» [1] Children travel free [1]."),
    ],
)
def test_every_kept_sentence_has_a_citation(answer: str, text: str) -> None:
    found = ground(answer, _TERMS)
    assert found.text == text and all(verdict.citations for verdict in found.verdicts)


def test_lists_of_citation_numbers() -> None:
    assert cited_numbers("a [3, 1] b [1-3]; c [2;5]") == [3, 1, 2, 5]


_AWKWARD = st.text(st.sampled_from("ab1 .,'\"«»“”‘’`[]2…\nßİ"), max_size=60)


@given(st.text(max_size=200) | _AWKWARD, st.text(max_size=200) | _AWKWARD)
def test_any_text_is_judged_without_breaking_and_nothing_but_citations_is_added(
    answer: str, source: str
) -> None:
    found = ground(answer, [(source, "es")])
    assert len(re.sub(r"\s*\[[\d, –;-]+\]", "", found.text)) <= len(answer) + 1
    assert all(cited_numbers(verdict.text) or verdict.citations for verdict in found.verdicts if verdict.kept)
    for verdict in found.verdicts:
        for span in verdict.quotations + verdict.sources:
            assert 0 <= span.start < span.end <= len(source)


@given(
    st.lists(
        st.sampled_from(["perro", "cabina", "pesa", "ocho", "kilos", "vuelo", "Básica"]),
        min_size=4,
        max_size=20,
    )
)
def test_any_stretch_of_the_source_can_be_quoted(words: list[str]) -> None:
    source = "  ".join(words)
    assert ground(f"«{' '.join(words[1:-1])}» [1]", [(source, "es")]).whole
    assert not ground(f"«{' '.join(words[1:-1])} zarandaja» [1]", [(source, "es")]).whole
