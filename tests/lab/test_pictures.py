"""Pictures: labels that can be read, files that are equal when what they show is."""

from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.lab.bits import every_format, read_number
from yunque.lab.draw_bits import draw_bits
from yunque.lab.pictures import checked_picture, label, new_figure, picture_bytes, save_picture, token_label


@pytest.mark.parametrize(
    "data, shown",
    [
        (" canción".encode(), "·canción"),
        ("niña".encode(), "niña"),
        ("nin\u0303a".encode(), "niña"),
        (b"\xc3", "<C3>"),
        (b"a\xb1", "a<B1>"),
        (b"\\xc3", "\\xc3"),
        (b"\n\t", "⏎⇥"),
        (b"\x00", "<U+0000>"),
        ("👩".encode(), "<U+1F469>"),
        ("中".encode(), "<U+4E2D>"),
        ("\u202e".encode(), "<U+202E>"),
        (b"$x_1$", "$x_1$"),
    ],
)
def test_a_token_is_shown_with_its_blanks_and_bytes(data: bytes, shown: str) -> None:
    assert token_label(data) == shown


def test_a_long_token_keeps_its_beginning_and_its_end() -> None:
    shown = label("electroencefalografista", 11)
    assert shown == "elect…fista"
    assert len(shown) == 11


def test_equal_pictures_are_equal_bytes_and_keep_their_accents(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        figure = draw_bits("−2,5 ñandú $x$", every_format(read_number("-2.5")))
        save_picture(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "−2,5 ñandú $x$" in drawn
    # Negative control: another number is another picture.
    other = picture_bytes(draw_bits("−2,5 ñandú $x$", every_format(read_number("-2.25"))), ".svg")
    assert other != (tmp_path / "a.svg").read_bytes()


def test_drawing_leaves_no_global_figure() -> None:
    import sys

    new_figure(2, 2)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("name", ["a.pdf", "a", "nowhere/a.png", "folder.png"])
def test_a_picture_that_cannot_be_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError):
        checked_picture(tmp_path / name)
    assert checked_picture(tmp_path / "A.PNG") == tmp_path / "A.PNG"
