import pytest
from hypothesis import given
from hypothesis import strategies as st

from yunque.generate.text_stream import TextStream


def run(data: bytes, stop: list[str], cuts: list[int]) -> tuple[list[str], bool]:
    stream, pieces, start = TextStream(stop), [], 0
    for cut in [*sorted(cuts), len(data)]:
        pieces.append(stream.feed(data[start : max(start, cut)]))
        start = max(start, cut)
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


@given(st.text(st.characters(exclude_categories=("Cs",))), st.lists(st.integers(0, 40), max_size=12))
def test_characters_cut_in_pieces_come_out_whole(text: str, cuts: list[int]) -> None:
    pieces, stopped = run(text.encode(), [], cuts)
    assert "".join(pieces) == text and not stopped


@given(
    st.text("abñ", max_size=30),
    st.lists(st.text("abñ", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 40), max_size=12),
)
def test_nothing_of_a_stop_string_is_shown_wherever_tokens_end(
    text: str, stop: list[str], cuts: list[int]
) -> None:
    shown = "".join(run(text.encode(), stop, cuts)[0])
    assert text.startswith(shown)
    places = [text.find(each) for each in stop if each in text]
    if places:
        # Token by token the first stop string to be complete ends the text; none of it is ever shown.
        assert not any(each in shown for each in stop)
        assert len(shown) >= min(places)
    else:
        assert shown == text


def test_text_that_only_began_like_a_stop_string_is_shown_at_last() -> None:
    stream = TextStream(["###"])
    assert stream.feed(b"a#") == "a"
    assert stream.feed(b"#b") == "##b"
    assert stream.feed(b"##") == ""
    assert stream.finish() == "##"
    assert not stream.stopped


@pytest.mark.parametrize("data", [b"\xf0\x9f\xa5", b"\xff"])
def test_bytes_that_never_become_a_character_are_replaced(data: bytes) -> None:
    pieces, _ = run(b"a" + data, [], [])
    assert "".join(pieces) == "a\ufffd"
