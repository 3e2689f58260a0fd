"""Answers held against their sources: what is quoted stands there, numbers are real, citations bear out."""

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
        "Según el documento, «El perro que viaja en cabina ... va bajo el asiento» [1].",
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
        ("«Puede pesar como máximo 8 kg» [1].", "quotation not found"),
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


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_judged_without_breaking_and_is_only_ever_shortened(answer: str, source: str) -> None:
    found = ground(answer, [(source, "es")])
    assert len(found.text) <= len(answer) + 1
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
