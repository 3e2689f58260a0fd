"""Telephone numbers: international ones, and those of six countries as people there write them.

Digits alone say little: order numbers, prices and versions look the same. A number is taken when it is written as
telephone numbers are, or when the words before it say so; `phonenumbers` confirms that its country has such numbers.
"""

import re
from collections.abc import Iterator

from yunque.data.personal_kinds import Candidate

_EXTENSION = r"(?: ?(?:x|ext\.?|extensi[oó]n) ?\d{1,6})?(?!\w)"
_INTERNATIONAL = re.compile(
    rf"(?<![\w+])(?P<main>(?:\(?\+|(?<!\d[ .-])00) ?\(?\d(?:[ .\-/()]{{0,2}}\d){{5,16}}){_EXTENSION}",
    re.IGNORECASE,
)
_NATIONAL = re.compile(
    r"(?<![\w+])(?:(?<!\d[.,:/-])|(?<=\d{9}/))(?P<main>\(?\d(?:(?:[ .\-/]|\) ?| \(|-\(| - )?\d){6,12})"
    rf"{_EXTENSION}(?![.,:]\d|-\d|/\d{{1,8}}(?!\d))",
    re.IGNORECASE,
)
_GROUP = re.compile(r"\d+")

_CONTEXT = re.compile(
    r"(?P<phone>\b(?:tel|tels|tfno|tlf|tlfno|tf|m[oó]vil|celular|tel[eé]fonos?|phone|telephone|mobile|cell|call(?:ed|ing)?|"
    r"ll[aá]m\w*|whats\w*|contact\w*|fax|sms|ring|reach|answering|localizable|marca[rd]?\w*|dial)\b)"
    r"|(?P<number>\b(?:n[uú]mero|number)\b)"
    r"|(?P<other>\b(?:pedidos?|orders?|reservas?|bookings?|referencias?|references?|ref|localizador|vuelos?|flights?|"
    r"billetes?|tickets?|facturas?|invoices?|expedientes?|cas[eo]s?|tracking|seguimiento|serie|serial|isbn|issn|ean|"
    r"c[oó]digo|code|version|versi[oó]n|importe|total|price|precio|id|cuenta|account|tarjeta|card|pasaporte|passport|"
    r"dni|nif|nie|equipaje|etiqueta|tag|claim|pir|licen[sc]e|licencia|permiso|carn[eé]t?|social)\b|[€$£#=]\s*$)",
    re.IGNORECASE,
)
_DONE = re.compile(r"\d|[.!?;]\s")
_PHONE_AFTER = re.compile(
    r" ?[-(]? ?(?:office|fax|mobile|home|work|casa|m[oó]vil|oficina|trabajo)\b", re.IGNORECASE
)
_UNIT_AFTER = re.compile(
    r"\s*(?:[€$£%]|(?:euros?|eur|usd|d[oó]lares|dollars|pounds|kg|km|mb|gb|kb|bytes|puntos|points|millas|miles|avios|"
    r"habitantes|people|personas|pesetas|libras)\b)",
    re.IGNORECASE,
)

# How each country groups its numbers; a lone group ("612345678") is a bare number.
_LAYOUTS = {
    "ES": "9 3-3-3 3-2-2-2 2-3-2-2 3-6 2-7 2-3-4 1-2-3-3 5-4 3-3-1-2",
    "US": "10 3-3-4 3-7 1-3-3-4",
    "MX": "10 2-4-4 3-3-4 2-8 3-3-2-2 2-2-2-2-2 2-4-2-2",
    "GB": "10 11 5-6 3-4-4 4-3-4 5-3-3 4-7 3-8 5-5 4-4-3 4-3-3 6-5",
    "FR": "10 2-2-2-2-2 2-8 4-2-2-2 4-3-3",
    "DE": "3-8 3-7 4-7 4-6 4-8 5-6 5-5 5-7 3-4-4 3-3-4 4-3-4 4-4-3 3-2-2-2-2 4-2-2-2 5-4 11 12",
}
_TYPICAL = {("ES", "2-3-2-2"), ("ES", "3-2-2-2")}
_BARE = re.compile(r"[679]\d{8}|07\d{9}")
# With words that say telephone any country's number is taken, unless it is a date.
_ANY_LENGTH = range(7, 14)
_DATE = re.compile(r"\d{1,2}([-/. ])\d{1,2}\1\d{2,4}|\d{4}([-/. ])\d{1,2}\2\d{1,2}")
# How North Americans write, which says telephone by itself: (311)905-4466, 311-905-4466, 311.905.4466.
_AMERICAN = re.compile(r"\(\d{3}\) ?\d{3}[-. ]\d{4}|(?:1[-.])?\d{3}([-.])\d{3}\1\d{4}")
# A number with a decimal point, and maybe a sign: never a telephone number.
_DECIMAL = re.compile(r"\+?\d+\.\d+")


def find_phone(text: str) -> Iterator[Candidate]:
    """Telephone numbers of the world with their prefix, and of ES, US, MX, GB, FR and DE without it.

    Other countries' numbers without a prefix need a word that says telephone.
    """
    for pattern, recognize in ((_INTERNATIONAL, _international), (_NATIONAL, _national)):
        for match in pattern.finditer(text):
            if not _DECIMAL.fullmatch(match[0]) and (found := recognize(text, match)):
                yield found


def _international(text: str, match: re.Match[str]) -> Candidate | None:
    """The longest beginning, in whole groups, that is a number; other numbers may follow it."""
    del text
    import phonenumbers

    main = match["main"]
    groups = list(_GROUP.finditer(main))
    is_plus = "+" in main[:2]
    start = match.start() + (main[0] == "(" and ")" not in main)
    possible: Candidate | None = None
    for count in range(len(groups), 0, -1):
        inside = main[: groups[count - 1].end()]
        # "+44 (0)20 ...": the zero in brackets is not dialled from abroad.
        digits = re.sub(r"\D", "", inside.replace("(0)", ""))
        try:
            number = phonenumbers.parse(f"+{digits if is_plus else digits[2:]}", None)
        except phonenumbers.NumberParseException:
            continue
        canonical = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        end = match.end() if count == len(groups) else match.start() + len(inside)
        found = Candidate("PHONE", start, end, canonical)
        if phonenumbers.is_valid_number(number):
            return found
        # Invented and brand-new numbers are not in the tables; with a plus sign the length is enough.
        if (
            possible is None
            and phonenumbers.is_possible_number(number)
            and (is_plus or count == len(groups) > 1)
        ):
            possible = found
    return possible


def _national(text: str, match: re.Match[str]) -> Candidate | None:
    written = match["main"]
    said = _said(text, match)
    if said == "other" or (said is None and _UNIT_AFTER.match(text, match.end())) or _DATE.fullmatch(written):
        return None
    digits = re.sub(r"\D", "", written)
    layout = "-".join(str(len(group)) for group in _GROUP.findall(written))
    # "612.345.678" is how Spanish writes a large number, too.
    if layout == "3-3-3" and "." in written and said is None:
        return None
    canonical = _confirmed(digits, layout, said is not None)
    if canonical is None and (
        _AMERICAN.fullmatch(written) or (said == "phone" and len(digits) in _ANY_LENGTH)
    ):
        canonical = digits
    if canonical is None:
        return None
    start = match.start() + (1 if written[0] == "(" and ")" not in written else 0)
    return Candidate("PHONE", start, match.end(), canonical)


def _confirmed(digits: str, layout: str, is_said: bool) -> str | None:
    """The number in international form, if one of the countries has such numbers and groups them so."""
    import phonenumbers

    for country, layouts in _LAYOUTS.items():
        if layout not in layouts.split() or not _may_begin(country, digits):
            continue
        # Digits without a gap are other things too: only few are typical enough without a word.
        if "-" not in layout and not is_said and not _BARE.fullmatch(digits):
            continue
        try:
            number = phonenumbers.parse(digits, country)
        except phonenumbers.NumberParseException:
            continue
        # Numbers kept for films and tests are in no table, but in many texts: their look is enough where
        # nothing else looks like that (07700 900123, 91 012 34 56).
        is_likely = is_said or (country, layout) in _TYPICAL or (country == "GB" and digits.startswith("07"))
        if phonenumbers.is_valid_number(number) or (is_likely and phonenumbers.is_possible_number(number)):
            return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
    return None


def _may_begin(country: str, digits: str) -> bool:
    if country == "ES":
        return digits[0] in "6789"
    if country in ("GB", "FR", "DE"):
        return digits[0] == "0" and digits[1] != "0"
    return digits[0] != "0"


def _said(text: str, match: re.Match[str]) -> str | None:
    """What the nearest telling word calls the number: "phone", "number" or "other"."""
    said: str | None = None
    before = text[max(0, match.start() - 40) : match.start()]
    for word in _CONTEXT.finditer(before):
        # "flight YNQ6604, 610 20 30 40": the word has its number already. "Order? Call ...": another sentence.
        if word.lastgroup == "other" and _DONE.search(before, word.end() + 1):
            said = None
        elif word[0].startswith("=") and said == "phone":
            continue
        # "order number", "número de pedido": the noun decides, not "number".
        elif word.lastgroup != "number" or said is None:
            said = word.lastgroup
    if said is None and _PHONE_AFTER.match(text, match.end()):
        return "phone"
    return said
