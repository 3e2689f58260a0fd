"""Sentences and pieces of a text: where one ends, and where a text may be cut."""

import re
from collections.abc import Sequence

from yunque.data.personal import Finding, find_personal_data

_MOST_PLACES = 50

_ABBREVIATIONS = frozenset(
    [
        "sr",
        "sra",
        "srta",
        "d",
        "dña",
        "dr",
        "dra",
        "prof",
        "ud",
        "uds",
        "vd",
        "av",
        "avda",
        "c",
        "cía",
        "núm",
        "n",
        "pág",
        "págs",
        "p",
        "pp",
        "vol",
        "cap",
        "art",
        "arts",
        "etc",
        "ej",
        "p.ej",
        "aprox",
        "mr",
        "mrs",
        "ms",
        "st",
        "no",
        "fig",
        "figs",
        "vs",
        "e.g",
        "i.e",
        "cf",
        "al",
        "inc",
        "ltd",
        "co",
        "jr",
        "dept",
        "est",
        "min",
        "máx",
        "max",
        "tel",
    ]
)
_END = re.compile(r"([.!?…]+[\"»”’')\]]*)(\s+)(?=[\"«“‘'(\[¿¡—-]*[A-ZÁÉÍÓÚÑÜ0-9¿¡])")
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?…;:])\s+"), re.compile(r"\s+"))


def sentences_of(text: str) -> list[str]:
    """The sentences of a text. Each line ends one; an abbreviation, an initial or the point in a number does not."""
    found: list[str] = []
    for line in text.splitlines():
        start = 0
        for end in _END.finditer(line):
            before = line[start : end.start()].split()
            word = before[-1].lower().lstrip("¿¡(«\"'") if before else ""
            if (
                end[1].startswith(".")
                and end[1] == "."
                and (word in _ABBREVIATIONS or re.fullmatch(r"[a-zñ]", word))
            ):
                continue
            found.append(line[start : end.end(1)].strip())
            start = end.end()
        if rest := line[start:].strip():
            found.append(rest)
    return found


def words_of(text: str) -> list[str]:
    """The words and numbers of a text."""
    return re.findall(r"\w+(?:[’'.,-]\w+)*", text)


def halves(text: str) -> tuple[str, str] | None:
    """A text in two parts that are the text again when put together, cut near the middle: between paragraphs if there
    is such a place, else lines, sentences, words; never inside personal data, whose parts nobody would find any more.
    None for a text that has no place to cut."""
    middle, slack = len(text) // 2, len(text) // 4
    findings = find_personal_data(text)
    for number, pattern in enumerate(_BREAKS):
        last = number == len(_BREAKS) - 1
        low, high = (1, len(text) - 1) if last else (middle - slack, middle + slack)
        places = [found.end() for found in pattern.finditer(text) if low <= found.end() <= high]
        for cut in sorted(places, key=lambda place: abs(place - middle))[:_MOST_PLACES]:
            if text[:cut].strip() and text[cut:].strip() and _keeps(text, cut, findings):
                return text[:cut], text[cut:]
    borders = {middle, *(found.start for found in findings), *(found.end for found in findings)}
    for cut in sorted(borders - {0, len(text)}, key=lambda place: abs(place - middle)):
        if _keeps(text, cut, findings):
            return text[:cut], text[cut:]
    return None


def _keeps(text: str, cut: int, findings: Sequence[Finding]) -> bool:
    """Whether the personal data of a text is found in its two parts too."""
    if not findings:
        return True
    if any(found.start < cut < found.end for found in findings):
        return False
    parts = [(one.start, one.end) for one in find_personal_data(text[:cut])]
    parts += [(one.start + cut, one.end + cut) for one in find_personal_data(text[cut:])]
    return all(any(start <= one.start and one.end <= end for start, end in parts) for one in findings)
