"""One form for every text that enters: composed letters, plain line ends, nothing invisible."""

import re
import unicodedata

# Line ends of every system, and the characters that Unicode counts as line or paragraph ends.
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Controls but tab and newline; soft hyphen; zero-width and direction marks; byte order mark; interlinear marks.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# Half of a UTF-16 pair, which JSON can hold and UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRAILING = re.compile(r"[ \t]+(?=\n|\Z)")
# The indentation at the start of a line says something in code and lists: only runs after it are collapsed.
_RUN = re.compile(r"(?<=[^ \t\n])[ \t]{2,}")
_BLANK_LINES = re.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """`text` in Unicode NFC, with newlines as line ends and without control or zero-width characters.

    Unusual spaces become plain ones; runs of blanks inside a line become one (a tab if one is among them), runs
    of blank lines one blank line; indentation stays. Doing it twice changes nothing more.
    """
    text = _LINE_END.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", _SPACES.sub(" ", text))
        text = unicodedata.normalize("NFC", text)
    text = _TRAILING.sub("", text)
    text = _RUN.sub(lambda run: "\t" if "\t" in run[0] else " ", text)
    return _BLANK_LINES.sub("\n\n", text).strip()
