"""Personal data in text: finding it, and replacing it by pseudonyms or by placeholders that can be put back.

Found: Spanish NIF, NIE, CIF and social security numbers, IBAN, payment cards, e-mail addresses, telephone numbers
and public IP addresses, also when they are written with dots, blanks, full-width digits or invisible characters.
**Names of persons, postal addresses and dates of birth are not found**: they have no form that a rule could check.
"""

import hashlib
import hmac
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from yunque.data.personal_kinds import (
    MAY_HOLD_PERSONAL_DATA,
    Candidate,
    Recognizer,
    find_card,
    find_cif,
    find_email,
    find_iban,
    find_ip,
    find_nie,
    find_nif,
    find_nss,
)
from yunque.data.personal_phone import find_phone

KINDS = ("NIF", "NIE", "CIF", "NSS", "IBAN", "CARD", "EMAIL", "PHONE", "IP")

# Where two findings overlap the stronger proof wins, then the longer text.
_STRENGTH = {"IBAN": 5, "EMAIL": 5, "CARD": 4, "NIE": 4, "NIF": 3, "CIF": 3, "NSS": 3, "IP": 2, "PHONE": 1}
_RECOGNIZERS: tuple[Recognizer, ...] = (
    *(find_email, find_iban, find_card, find_nif, find_nie, find_cif, find_nss, find_ip, find_phone),
)
_PSEUDONYM_DIGITS = 8
_CHUNK = 4096
_SAFE_CUT = re.compile(r"\n|[a-zñáéíóú]{3} (?=[a-zñáéíóú]{3})")
_KINDS_PATTERN = "|".join(KINDS)
_PSEUDONYM = re.compile(rf"\[(?:{_KINDS_PATTERN})-[0-9a-f]{{{_PSEUDONYM_DIGITS}}}\]")
_INVISIBLE = "\xad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufe0f\ufeff"
_INVISIBLE_RUN = re.compile(f"[{_INVISIBLE}]")


@dataclass(frozen=True)
class Finding:
    """Personal data in a text: `value` is `text[start:end]`, `canonical` one form for all ways to write it."""

    kind: str
    start: int
    end: int
    value: str
    canonical: str


def find_personal_data(text: str) -> list[Finding]:
    """What is found in `text`, in order and without overlaps. Pseudonyms of our own are left alone."""
    if len(text) <= 2 * _CHUNK:
        return _find(text, 0)
    findings: list[Finding] = []
    start = 0
    while start < len(text):
        # Long texts are read in parts, most of which hold nothing; cut where nothing that is found could stand.
        cut = _SAFE_CUT.search(text, start + _CHUNK)
        end = cut.end() if cut else len(text)
        findings += _find(text[start:end], start)
        start = end
    return findings


def _find(text: str, offset: int) -> list[Finding]:
    plain, positions = _plain(text)
    if not MAY_HOLD_PERSONAL_DATA.search(plain):
        return []
    candidates = [candidate for recognize in _RECOGNIZERS for candidate in recognize(plain)]
    candidates.sort(key=lambda found: (-_STRENGTH[found.kind], found.start - found.end, found.start))
    taken = [match.span() for match in _PSEUDONYM.finditer(plain)] if "[" in plain else []
    chosen: list[Candidate] = []
    for candidate in candidates:
        if all(candidate.end <= start or end <= candidate.start for start, end in taken):
            chosen.append(candidate)
            taken.append((candidate.start, candidate.end))
    chosen.sort(key=lambda found: found.start)
    findings = []
    for found in chosen:
        start, end = found.start, found.end
        if positions is not None:
            start, end = positions[start], positions[end - 1] + 1
        findings.append(Finding(found.kind, start + offset, end + offset, text[start:end], found.canonical))
    return findings


def _plain(text: str) -> tuple[str, Sequence[int] | None]:
    """`text` with look-alike characters made plain and invisible ones removed, and where each one stood."""
    if text.isascii():
        return text, None
    unusual, table = _look_alikes()
    if unusual.search(text):
        text = text.translate(table)
    if not _INVISIBLE_RUN.search(text):
        return text, None
    positions = [position for position, character in enumerate(text) if character not in _INVISIBLE]
    return "".join(text[position] for position in positions), positions


@cache
def _look_alikes() -> tuple[re.Pattern[str], dict[int, str]]:
    """Each unusual digit, blank, dash and full-width character, and the plain one it stands for."""
    table = dict.fromkeys(map(ord, "\xa0\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))), " ")
    table |= dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-")
    for code in range(0xFF01, 0xFF5F):
        table[code] = chr(code - 0xFEE0)
    for code in range(128, sys.maxunicode + 1):
        character = chr(code)
        if character.isdecimal():
            table[code] = str(unicodedata.decimal(character))
    table |= {ord("＠"): "@", ord("﹫"): "@", ord("．"): ".", ord("。"): ".", ord("․"): "."}
    return re.compile(f"[{re.escape(''.join(map(chr, table)))}]"), table


class Anonymizer:
    """Replaces personal data by pseudonyms: the same value has the same one wherever it stands.

    A pseudonym is an HMAC-SHA-256 of the value, so that without the key nobody can compute it from a guess, and
    nobody at all can turn it back. Keep the key as secret as the data.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("the key of pseudonyms must have at least 16 bytes")
        self._key = key

    def pseudonym(self, kind: str, canonical: str) -> str:
        """The pseudonym of a value, like `[EMAIL-3f9a2c71]`."""
        digest = hmac.new(self._key, f"{kind}:{canonical}".encode(), hashlib.sha256).hexdigest()
        return f"[{kind}-{digest[:_PSEUDONYM_DIGITS]}]"

    def anonymize(self, text: str) -> tuple[str, list[Finding]]:
        """`text` with pseudonyms, and what they replaced."""
        findings = find_personal_data(text)
        parts, last = [], 0
        for found in findings:
            parts += [text[last : found.start], self.pseudonym(found.kind, found.canonical)]
            last = found.end
        return ("".join([*parts, text[last:]]) if findings else text), findings

    def anonymize_values(self, value: Any) -> tuple[Any, list[Finding]]:
        """A JSON value with every text, key and long number in it anonymized."""
        if isinstance(value, str):
            return self.anonymize(value)
        findings: list[Finding] = []
        if isinstance(value, Mapping):
            changed: dict[str, Any] = {}
            for name, inner in value.items():
                new_name, in_name = self.anonymize(str(name))
                changed[new_name], in_value = self.anonymize_values(inner)
                findings += in_name + in_value
            return changed, findings
        if isinstance(value, list):
            pairs = [self.anonymize_values(inner) for inner in value]
            return [new for new, _ in pairs], [found for _, more in pairs for found in more]
        if isinstance(value, int | float) and not isinstance(value, bool):
            text, findings = self.anonymize(str(value))
            return (text, findings) if findings else (value, [])
        return value, []


class Redaction:
    """Personal data of one request taken out, and put back into what comes of it.

    Placeholders are numbered in the request: `[EMAIL-1]`. A text that already looks like a placeholder is itself
    replaced (by `[MARK-1]`), so that what a user or a document writes can never be filled with another's data.
    One redaction serves all the texts of a request, and must not outlive it.
    """

    _PLACEHOLDER = re.compile(rf"\[(?:{_KINDS_PATTERN}|MARK)-\d{{1,6}}\]", re.IGNORECASE)

    def __init__(self, text: str = "") -> None:
        self._values: dict[str, str] = {}
        self._placeholders: dict[tuple[str, str], str] = {}
        self.findings: list[Finding] = []
        self.text = self.redact(text)

    def redact(self, text: str) -> str:
        """`text` with placeholders; values met before in this request keep theirs."""
        findings = find_personal_data(text)
        self.findings += findings
        spans = [(found.start, found.end, found.kind, found.canonical) for found in findings]
        for match in self._PLACEHOLDER.finditer(text):
            if all(match.end() <= start or end <= match.start() for start, end, _, _ in spans):
                spans.append((match.start(), match.end(), "MARK", match[0]))
        parts, last = [], 0
        for start, end, kind, canonical in sorted(spans):
            parts += [text[last:start], self._placeholder(kind, canonical, text[start:end])]
            last = end
        return "".join([*parts, text[last:]])

    def _placeholder(self, kind: str, canonical: str, value: str) -> str:
        placeholder = self._placeholders.get((kind, canonical))
        if placeholder is None:
            number = 1 + sum(known == kind for known, _ in self._placeholders)
            placeholder = f"[{kind}-{number}]"
            self._placeholders[kind, canonical] = placeholder
            self._values[placeholder] = value
        return placeholder

    def restore(self, text: str) -> str:
        """`text` with the values back in the place of this request's placeholders; others stay as they are."""
        return self._PLACEHOLDER.sub(lambda match: self._values.get(match[0].upper(), match[0]), text)
