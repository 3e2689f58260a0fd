"""Undoing disguises: a text as a reader or a model would take it, however it was written down."""

import base64
import binascii
import html
import re
import unicodedata
from urllib.parse import unquote

# Letters of other scripts that look like Latin ones.
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁһӏԛԝкмтвнАВЕЅІЈКМНОРСТУХαορνικτυΑΒΕΖΗΙΚΜΝΟΡΤΥΧɡɑıƖ",
    "aeopcyxijsdhlqwkmtbnABESIJKMHOPCTYXaopviktuABEZHIKMNOPTYXgail",
)
_LEET = str.maketrans("013457@$!|", "oieastasil")
_SPACED = re.compile(r"(?<![^\W_])(?:[^\W\d_](?:[ .\-_*·|]{1,2})){3,}[^\W\d_](?![^\W_])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{16,}={0,2}(?![A-Za-z0-9+/=_-])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{2}[ :]?){10,}(?![0-9A-Za-z])")
_ROT13 = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "nopqrstuvwxyzabcdefghijklmNOPQRSTUVWXYZABCDEFGHIJKLM",
)
_READ = 40_000


def visible(text: str) -> str:
    """The text without characters that nobody sees (zero-width, direction marks, tags), compatible forms unified.

    Unicode tag characters spell ASCII invisibly, so they are turned into it rather than dropped.
    """
    tags = "".join(chr(ord(c) - 0xE0000) if 0xE0020 <= ord(c) <= 0xE007E else c for c in text)
    unified = unicodedata.normalize("NFKC", tags)
    return "".join(
        c for c in unified if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cn")
    )


def plain(text: str) -> str:
    """Visible text in lower-case Latin letters without accents, look-alikes of other scripts replaced."""
    latin = visible(text).translate(_LOOK_ALIKES)
    decomposed = unicodedata.normalize("NFKD", latin)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def views(text: str) -> list[tuple[str, str]]:
    """(how it was read, plain text) of a text: as it stands, and with each disguise undone that it seems to wear."""
    text = text[:_READ]
    straight = visible(text).translate(_LOOK_ALIKES)
    found = [("", plain(text))]

    def add(name: str, candidate: str) -> None:
        read = plain(candidate)
        if read and read not in (known for _, known in found):
            found.append((name, read))

    if "&" in straight or "%" in straight:
        add("escaped characters", unquote(html.unescape(straight)))
    if _SPACED.search(straight):
        add("spaced letters", _SPACED.sub(lambda match: re.sub(r"[^\w]|_", "", match[0]), straight))
    if re.search(r"[^\W\d_][013457@$!|]+[^\W\d_]", straight):
        add("digits for letters", straight.translate(_LEET))
    for decoded in _decoded(straight):
        add("encoded text", decoded)
    add("ROT13", straight.translate(_ROT13))
    add("reversed text", straight[::-1])
    return found


def _decoded(text: str) -> list[str]:
    """What base64 and hexadecimal stretches of a text say, when they say something."""
    found = []
    for match in _BASE64.finditer(text):
        raw = match[0].replace("-", "+").replace("_", "/").rstrip("=")
        try:
            found.append(base64.b64decode(raw + "=" * (-len(raw) % 4)).decode("utf-8"))
        except (binascii.Error, ValueError):
            continue
    for match in _HEX.finditer(text):
        try:
            found.append(bytes.fromhex(re.sub(r"[ :]", "", match[0])).decode("utf-8"))
        except ValueError:
            continue
    return [said for said in found if said and sum(c.isprintable() or c.isspace() for c in said) == len(said)]
