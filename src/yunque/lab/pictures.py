"""What the laboratory's pictures share: files, colours, labels. matplotlib is imported when a picture is made."""

import io
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yunque.errors import UserError
from yunque.workspace.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")

RED, GREEN, BLUE, ORANGE, GREY = "#c8553d", "#3a7d44", "#2f6690", "#d98e04", "#8d99a6"

_VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "·"})
_LONGEST_LABEL = 16
# How the bytes of a cut character look after decoding with `backslashreplace`.
_BYTE = re.compile(r"\\x([0-9a-f]{2})")


def checked_picture(path: Path) -> Path:
    """`path`, if a picture can be written there; called before the work, so that none is lost.

    Raises UserError for an ending other than .png and .svg, and for a folder that does not exist.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: a picture is a file that ends in {' or '.join(ENDINGS)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    return path


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches, tied to no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def picture_bytes(figure: "Figure", ending: str) -> bytes:
    """The figure as PNG or SVG; equal figures give equal bytes. Text in an SVG stays text."""
    import matplotlib

    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "yunque", "svg.fonttype": "none"}):
        # The date and the version of the library would make two equal pictures differ.
        metadata: dict[str, Any] = {"Date": None} if ending == ".svg" else {"Software": None}
        figure.savefig(drawn, format=ending[1:], dpi=130, metadata=metadata)
    return drawn.getvalue()


def save_picture(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG or SVG, by the ending of `path`; raises UserError where that cannot be done."""
    checked_picture(path)
    try:
        atomic_write(path, picture_bytes(figure, path.suffix.lower()))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def token_label(data: bytes, longest: int = _LONGEST_LABEL) -> str:
    """The bytes of a token as a label: blanks visible, half characters as <C3>, long ones cut in the middle."""
    text = data.decode("utf-8", errors="backslashreplace")
    if b"\\x" not in data:
        text = _BYTE.sub(lambda found: f"<{found[1].upper()}>", text)
    return label(text, longest)


def label(text: str, longest: int = _LONGEST_LABEL, blanks: bool = True) -> str:
    """A text as a label: blanks visible, what no font can draw by its code point, long ones cut in the middle.

    Without `blanks` spaces stay spaces: for what a person wrote, not a tokenizer.
    """
    text = (
        unicodedata.normalize("NFC", text) if blanks else " ".join(unicodedata.normalize("NFC", text).split())
    )
    shown = "".join(_drawable(letter) for letter in (text.translate(_VISIBLE) if blanks else text))
    if len(shown) <= longest:
        return shown
    head = (longest - 1) // 2 + (longest - 1) % 2
    return shown[:head] + "…" + shown[head + 1 - longest :]


def _drawable(letter: str) -> str:
    if letter.isascii() and letter.isprintable():
        return letter
    return (
        letter if letter.isprintable() and ord(letter) in _letters_of_the_font() else f"<U+{ord(letter):04X}>"
    )


_FONT: set[int] = set()


def _letters_of_the_font() -> set[int]:
    """The code points that matplotlib's own font has; another machine's fonts must not change a picture."""
    if not _FONT:
        from matplotlib.font_manager import findfont, get_font

        _FONT.update(get_font(findfont("DejaVu Sans")).get_charmap())
    return _FONT


def plain_text(axes: Any, where: str, positions: Any, labels: list[str], **style: Any) -> None:
    """Ticks of the "x" or "y" axis with these labels; a dollar sign in a token is no formula."""
    axis = axes.xaxis if where == "x" else axes.yaxis
    axis.set_ticks(positions, labels, parse_math=False, **style)
