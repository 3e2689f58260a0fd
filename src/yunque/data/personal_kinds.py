"""The recognizers of personal data: for each kind a pattern, and the check digits or rules that confirm it.

They read plain digits and letters only: `personal.py` has replaced look-alike characters before.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

# What a text must hold for any recognizer to find something: seven digits with little between them, an e-mail's
# sign or a way to write around it, or the beginning of an IP address.
MAY_HOLD_PERSONAL_DATA = re.compile(
    r"@|\d(?:[ .\-/()]{0,3}\d){6}|\d\.\d{1,3}\.\d|[0-9a-fA-F]:[0-9a-fA-F]{0,4}:"
    r"|[(\[{] ?(?:at|arroba) ?[)\]}]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidate:
    """Something found: `canonical` is one form for all the ways to write the same value."""

    kind: str
    start: int
    end: int
    canonical: str


class Recognizer(Protocol):
    """Finds one kind of personal data in a text of plain characters."""

    def __call__(self, text: str) -> Iterator[Candidate]: ...


_NIF_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_DOCUMENT_NEAR = re.compile(
    r"\b(?:dni|nif|nie|cif|n\.i\.f|d\.n\.i|n\.i\.e|documento|identidad|identificaci[oó]n|fiscal|id|tax)\b",
    re.IGNORECASE,
)
_NIF = re.compile(
    r"(?<!\w)(?<!\d[.,-])(?:(?-i:ES)-?)?(\d{1,2}[. ]?\d{3}[. ]?\d{3}|\d(?:[ .-]?\d){6,7})([ .\-/]{0,3})([A-Z])(?!\w)",
    re.IGNORECASE,
)
_NIE = re.compile(
    r"(?<!\w)(?:(?-i:ES)-?)?([XYZ])([ .-]{0,2})(\d(?:[ .-]?\d){6})([ .-]{0,2})([A-Z])(?!\w)", re.IGNORECASE
)
_CIF = re.compile(
    r"(?<!\w)(?:(?-i:ES)-?)?([A-HJ-NP-SU-W])([ .-]{0,2})(\d(?:[ .-]?\d){6})([ .-]{0,2})([0-9A-Z])(?!\w)(?!-\d)",
    re.IGNORECASE,
)
_NSS = re.compile(
    r"(?<!\w)(?<!\d[.,/-])(\d{2})[ /.-]?(\d{8}|\d{4} \d{4}|\d{7})[ /.-]?(\d{2})(?!\w)(?![.,/-]\d)"
)


def _context(text: str, start: int, characters: int = 40) -> str:
    return text[max(0, start - characters) : start]


def find_nif(text: str) -> Iterator[Candidate]:
    """Spanish identity numbers: eight digits (seven when a zero is left out) and their letter."""
    for match in _NIF.finditer(text):
        digits = re.sub(r"\D", "", match[1])
        letter = match[3].upper()
        if _NIF_LETTERS[int(digits) % 23] != letter:
            continue
        # One letter in 23 fits by chance: a loose form ("1234567 a") needs a word that says what it is.
        if len(digits) < 8 and text[max(0, match.start() - 2) : match.start()].strip(" .-").upper() in tuple(
            "XYZ"
        ):
            continue  # a foreigner's number with another letter than its check demands
        is_loose = len(digits) < 8 or (match[3].islower() and " " in match[2])
        if is_loose and not _DOCUMENT_NEAR.search(_context(text, match.start())):
            continue
        yield Candidate("NIF", match.start(), match.end(), digits.zfill(8) + letter)


def find_nie(text: str) -> Iterator[Candidate]:
    """Identity numbers of foreigners in Spain: X, Y or Z, seven digits and a letter."""
    for match in _NIE.finditer(text):
        digits = re.sub(r"\D", "", match[3])
        letter = match[5].upper()
        if _NIF_LETTERS[int("XYZ".index(match[1].upper()) * 10_000_000 + int(digits)) % 23] != letter:
            continue
        is_loose = " " in match[2] + match[4] and match[0] != match[0].upper()
        if is_loose and not _DOCUMENT_NEAR.search(_context(text, match.start())):
            continue
        yield Candidate("NIE", match.start(), match.end(), match[1].upper() + digits + letter)


def find_cif(text: str) -> Iterator[Candidate]:
    """Spanish tax numbers that begin with a letter: of companies, and of persons (K, L, M)."""
    from stdnum.es import cif, nif

    for match in _CIF.finditer(text):
        number = (match[1] + re.sub(r"\D", "", match[3]) + match[5]).upper()
        is_person = number[0] in "KLM"
        if not (nif.is_valid(number) if is_person else cif.is_valid(number)):
            continue
        if (" " in match[0] or match[1].islower()) and not _DOCUMENT_NEAR.search(
            _context(text, match.start())
        ):
            continue
        yield Candidate("NIF" if is_person else "CIF", match.start(), match.end(), number)


def find_nss(text: str) -> Iterator[Candidate]:
    """Spanish social security numbers: province, number, and their remainder modulo 97."""
    for match in _NSS.finditer(text):
        province, number, check = match[1], match[2].replace(" ", ""), match[3]
        if not (1 <= int(province) <= 53 or province == "66"):
            continue
        # The number's leading zeros do not count, as the administration computes it.
        whole = (
            int(number) + int(province) * 10_000_000 if int(number) < 10_000_000 else int(province + number)
        )
        if whole % 97 == int(check):
            yield Candidate("NSS", match.start(), match.end(), province + number.zfill(8) + check)


# Length of an IBAN by country (ISO 13616 registry).
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})[ .-]?(\d{2})(?=[ .-]?[A-Z0-9])", re.IGNORECASE)
_IBAN_REST = re.compile(r"[ .-]{0,2}([A-Z0-9])", re.IGNORECASE)


def find_iban(text: str) -> Iterator[Candidate]:
    """Account numbers of ISO 13616: as long as the country's are, and 1 modulo 97."""
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match[1].upper())
        if length is None:
            continue
        number, end = (match[1] + match[2]).upper(), match.end()
        while len(number) < length and (more := _IBAN_REST.match(text, end)):
            number, end = number + more[1].upper(), more.end()
        ends_here = not text[end : end + 1].isalnum()
        if len(number) == length and ends_here and int(_as_digits(number[4:] + number[:4])) % 97 == 1:
            yield Candidate("IBAN", match.start(), end, number)


def _as_digits(number: str) -> str:
    return "".join(str(int(character, 36)) for character in number)


_CARD = re.compile(r"(?<![\w])(?<!\d[.,-])\d(?:[ .-]?\d){11,24}(?!\w)")
_CARD_PREFIX = re.compile(
    r"(?:4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d{2}|4[4-9]\d)\d{12,15}|3(?:0[0-59]|[689]\d)\d{11,16}|35(?:2[89]|[3-8]\d)\d{12}|(?:2131|1800)\d{11}|62\d{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15})"
)
_CARD_LAYOUT = re.compile(r"\d+|4-4-4-4(?:-[1-3])?|4-6-[45]|4-4-4-[123]|6-13|4-5-6")
_CARD_WORDS = re.compile(
    r"\b(?:cards?|tarjetas?|visa|mastercard|amex|maestro|cr[eé]dito|credit|d[eé]bito|debit)\b", re.IGNORECASE
)
_GROUP = re.compile(r"\d+")


def find_card(text: str) -> Iterator[Candidate]:
    """Payment card numbers: an issuer's prefix and length (or a word that says so before), and the Luhn check."""
    for match in _CARD.finditer(text):
        is_said = bool(_CARD_WORDS.search(_context(text, match.start())))
        groups = [(group.start(), group.end(), group[0]) for group in _GROUP.finditer(match[0])]
        # Other numbers may stand beside it ("... 1111 12/27"), so runs of whole groups are tried, longest first.
        runs = [
            (first, last)
            for count in range(len(groups), 0, -1)
            for first in range(len(groups) - count + 1)
            for last in [first + count - 1]
        ]
        for first, last in runs:
            number = "".join(digits for _, _, digits in groups[first : last + 1])
            layout = "-".join(str(len(digits)) for _, _, digits in groups[first : last + 1])
            is_issued = _CARD_PREFIX.fullmatch(number) or (is_said and 12 <= len(number) <= 19)
            if is_issued and _layout_fits(layout) and _luhn(number):
                start = match.start() + groups[first][0]
                yield Candidate("CARD", start, match.start() + groups[last][1], number)
                break


def _layout_fits(layout: str) -> bool:
    return "-" not in layout or bool(_CARD_LAYOUT.fullmatch(layout)) or set(layout) <= {"1", "-"}


def _luhn(number: str) -> bool:
    total = 0
    for position, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + position % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and len(set(number)) > 1


_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?:[^\W\d_]{2,24}|xn--\w{2,20})(?![\w])"
)
_AT = r" {0,2}[(\[{] ?(?:at|arroba) ?[)\]}] {0,2}"
_DOT = r"(?:\.| {0,2}[(\[{] ?(?:dot|punto) ?[)\]}] {0,2})"
_HIDDEN_EMAIL = re.compile(
    rf"(?<![\w.+%-])([\w.+%-]{{1,64}}){_AT}((?:[\w-]{{1,63}}{_DOT})+[^\W\d_]{{2,24}})(?!\w)", re.IGNORECASE
)


def find_email(text: str) -> Iterator[Candidate]:
    """E-mail addresses, also with "(at)", "[arroba]" and "(dot)"."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            start = match.start() + len(match[0]) - len(match[0].lstrip(".'-"))
            if text[start] != "@":
                yield Candidate("EMAIL", start, match.end(), text[start : match.end()].casefold())
    for match in _HIDDEN_EMAIL.finditer(text):
        domain = re.sub(_DOT, ".", match[2], flags=re.IGNORECASE)
        yield Candidate("EMAIL", match.start(), match.end(), f"{match[1]}@{domain}".casefold())


_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bversi[oó]n|\brelease|\bver|\bsecci[oó]n|\bsection|\bchapter|\bcap[ií]tulo|§)\.?\s*$",
    re.IGNORECASE,
)
_ADDRESS_BEFORE = re.compile(
    r"\b(?:ip|ipv4|direcci[oó]n|address|host|servidor|server|from|desde)\W*$", re.IGNORECASE
)


def find_ip(text: str) -> Iterator[Candidate]:
    """Public IP addresses; those of private networks and of documentation name nobody."""
    for match in _IPV4.finditer(text):
        before = _context(text, match.start(), 20)
        # Four small numbers are more often a section or a version than an address.
        is_small = all(int(part) < 32 for part in match[0].split("."))
        if not _VERSION_BEFORE.search(before) and (not is_small or _ADDRESS_BEFORE.search(before)):
            yield from _public_ip(match)
    for match in _IPV6.finditer(text):
        if sum(bool(part) for part in match[0].split(":")) > 2:
            yield from _public_ip(match)


def _public_ip(match: re.Match[str]) -> Iterator[Candidate]:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return
    if address.is_global and not address.is_multicast:
        yield Candidate("IP", match.start(), match.end(), str(address))
