"""What an answer says, held against the words of a source: its quotations, its numbers and what it denies."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import sentences
from yunque.apps.retrieval.words import fold

_CLOSED_BY = {
    "«": "»", "»": "«»", "“": "”", "”": "”", "„": "“”", "‟": "”", "‹": "›",
    "「": "」", "『": "』", "❝": "❞", "〝": "〞〟",
}  # fmt: skip
_DOUBLE, _SINGLE, _TICK = '"＂″', "'‘‚’", "`"
_MARKS = re.compile("[" + "".join(_CLOSED_BY) + _DOUBLE + _SINGLE + _TICK + "]")
_CLAUSE_END = re.compile(r"[.!?\n\[]")
_ELISION = re.compile(r"(?:\d|tis\b|twas\b|em\b|til\b|cause\b|round\b|n['’])", re.IGNORECASE)
_LEFT_OUT = re.compile(r"\s*(?:\[\s*(?:…|\.{3})\s*\]|\(\s*(?:…|\.{3})\s*\)|…|\.{3})\s*")
# What is written in several ways without being another word.
_SAME = str.maketrans(
    {
        **dict.fromkeys("’‘‚‹›`", "'"),
        **dict.fromkeys("“”„‟«»＂″「」『』❝❞〝〞〟", '"'),
        **dict.fromkeys("–—", "-"),
        "\xa0": " ",
    }
)
_EDGES = " \t\n.,;:!?¡¿\"'"


@dataclass(frozen=True)
class Quotation:
    """A stretch `start:end` of a text with its marks; `words` is what they hold, None where a mark has no partner."""

    start: int
    end: int
    words: str | None


def quotations_in(text: str) -> list[Quotation]:
    """The quotations of a text in order, over the ends of lines too.

    Feet, inches and apostrophes are no quotation marks.
    """
    found: list[Quotation] = []
    position = 0
    while mark := _MARKS.search(text, position):
        at, position = mark.start(), mark.end()
        if not _opens(text, at):
            continue
        end = _closing(text, at)
        if end < 0 and text[at] in "'’" and _ELISION.match(text, at + 1):
            continue
        if end < 0:
            found.append(Quotation(at, at + 1, None))
        else:
            position = end + 1
            found.append(Quotation(at, position, text[at + 1 : end].strip("`'")))
    return found


def _opens(text: str, at: int) -> bool:
    """Whether a mark outside a quotation begins one; a closing mark alone counts, for it has no partner."""
    mark, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if mark in _DOUBLE:
        return not before.isdigit()
    if mark in _SINGLE:
        return (
            not before.isalnum()
            and before not in tuple(_SINGLE)
            and bool(after)
            and not after.isspace()
            and (mark in "‘‚" or after.isalnum() or after in '¿¡([…"')
        )
    return True


def _closing(text: str, at: int) -> int:
    """Where the mark stands that closes the one at an offset; -1 if none does."""
    mark = text[at]
    if mark in _CLOSED_BY:
        ends = re.compile(f"[{_CLOSED_BY[mark]}{mark}]")
        found = ends.search(text, at + 1)
        return found.start() if found and found[0] in _CLOSED_BY[mark] else -1
    if mark == _TICK:
        inside = re.compile(r"`*").match(text, at)
        closing = re.compile(r"`|'(?!\w)").search(text, inside.end() if inside else at + 1)
        return closing.start() if closing else -1
    if mark in _DOUBLE:
        for other in re.compile(f"[{_DOUBLE}]").finditer(text, at + 1):
            return -1 if _looks_opening(text, other.start()) or _lone_closer(text, at) else other.start()
        return -1
    return _closing_single(text, at)


def _closing_single(text: str, at: int) -> int:
    """The last mark of its clause that may close a single one: "the passengers' bags" is no end."""
    last = -1
    for other in re.compile("['‘’]").finditer(text, at + 1):
        here = other.start()
        if last >= 0 and _CLAUSE_END.search(text, last, here):
            break
        if _looks_opening(text, here):
            break
        if not text[here + 1 : here + 2].isalnum() and not text[here - 1].isspace():
            last = here
    return last


def _looks_opening(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    return (not before or before.isspace() or before in "([{¿¡") and (
        after.isalnum() or (bool(after) and after in "¿¡([")
    )


def _lone_closer(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    return bool(before) and not before.isspace() and before not in "([{¿¡:=-–—*_" and not after.isalnum()


def find_quotation(quoted: str, text: str) -> tuple[int, int] | None:
    """Where a text has a quotation, word for word but for marks, white space and the case of its first letter.

    What an ellipsis leaves out has no negation, and what follows it stands in the same sentence or begins the next.
    """
    parts = [part for part in (_plain(one)[0].strip(_EDGES) for one in _LEFT_OUT.split(quoted)) if part]
    if not parts:
        return None
    plain, offsets = _plain(text)
    units = sentences(plain, 0, len(plain))
    first = _whole_words(parts[0], plain, 0)
    while first >= 0:
        end = _end_of(parts, first, plain, units)
        if end >= 0:
            return offsets[first], offsets[end - 1] + 1
        first = _whole_words(parts[0], plain, first + 1)
    return None


def _end_of(parts: list[str], first: int, plain: str, units: list[tuple[int, int]]) -> int:
    """Where parts end whose first stands at an offset; -1 if the others do not follow as they may."""
    end = first + len(parts[0])
    for part in parts[1:]:
        at = _whole_words(part, plain, end)
        if at < 0 or negates(plain[end:at]):
            return -1
        left, right = _unit_at(units, end - 1), _unit_at(units, at)
        begins = not plain[units[right][0] : at].strip(_EDGES)
        if right != left and not (right == left + 1 and begins):
            return -1
        end = at + len(part)
    return end


def _unit_at(units: list[tuple[int, int]], offset: int) -> int:
    return max((index for index, (start, _) in enumerate(units) if start <= offset), default=0)


def _whole_words(part: str, plain: str, position: int) -> int:
    """Where a text stands between the edges of words, from a position on, whatever its first letter's case; or -1."""
    other = part[0].swapcase() if len(part[0].swapcase()) == 1 else part[0]
    found = [_as_written(one, plain, position) for one in (part, other + part[1:])]
    return min((at for at in found if at >= 0), default=-1)


def _as_written(part: str, plain: str, position: int) -> int:
    while (at := plain.find(part, position)) >= 0:
        before, after = plain[at - 1 : at] if at else "", plain[at + len(part) : at + len(part) + 1]
        if not (before.isalnum() and part[0].isalnum()) and not (after.isalnum() and part[-1].isalnum()):
            return at
        position = at + 1
    return -1


def _plain(text: str) -> tuple[str, list[int]]:
    """A text with its white space made single blanks and its marks plain, and where each character stood."""
    letters: list[str] = []
    offsets: list[int] = []
    for offset, letter in enumerate(text.translate(_SAME)):
        if letter.isspace():
            if letters and letters[-1] == " ":
                continue
            letter = " "
        letters.append(letter)
        offsets.append(offset)
    return "".join(letters), offsets


_NUMBER = re.compile(r"(?<![^\W_])\d+(?:[.,:]\d+)*")
_GROUPED = re.compile(r"([1-9]\d{0,2}(?:\.\d{3})+)(?:,(\d+))?|([1-9]\d{0,2}(?:,\d{3})+)(?:\.(\d+))?")


def with_plain_numbers(text: str) -> str:
    """A text with each number written in one way: 1.250,50 and 1,250.5 as 1250.5, and "23kg" as "23 kg"."""
    return _NUMBER.sub(lambda match: _plain_number(match[0]) + " ", text)


def _plain_number(number: str) -> str:
    if grouped := _GROUPED.fullmatch(number):
        whole, rest = grouped[1] or grouped[3], grouped[2] or grouped[4] or ""
        whole = whole.replace(".", "").replace(",", "")
    elif decimal := re.fullmatch(r"(\d+)[.,](\d+)", number):
        whole, rest = decimal[1], decimal[2]
    else:
        return number
    rest = rest.rstrip("0")
    return f"{whole}.{rest}" if rest else whole


_NEGATION = re.compile(
    r"n't\b|\b(?:no(?!\.\s*\d)|not|non|cannot|never|none|nobody|nothing|nowhere|nor|neither|without|"
    r"nunca|jamas|ningun|ninguna|ninguno|ningunos|ningunas|nadie|nada|sin|ni|tampoco|"
    r"forbidden|prohibited|banned|impossible|unable|prohibid[oa]s?|imposible)\b"
)
# "No more than 8 kg" says what "at most 8 kg" says, "sin coste" what "gratis" says.
_LIMIT = re.compile(
    r"(?:n't|\b(?:no|not|cannot|never|nunca))\b(?:\s+\w+){0,3}?\s+"
    r"(?:mas|more|menos|less|fewer|longer|later|only|solo|exceed|exceder|superar|sobrepasar)\b|"
    r"\b(?:sin|without)\s+(?:\w+\s+)?(?:coste|costo|cargo|recargo|pagar|charge|cost|fee|paying)\b"
)
_NOR = re.compile(r"\b(?:ni|nor)\b")
_PARTICLE = re.compile(r"\s*no\s*[,:;—–-]\s*")
_JOINT = re.compile(
    r"[;:,()]|\b(?:but|and|although|though|whereas|while|unless|y|e|pero|sino|aunque|mientras)\b"
)
_MATCH = 0.75
"""The share of the best clause's common stems that makes another one speak of the same thing."""


def negates(text: str) -> bool:
    """Whether a text has a word that denies, in Spanish or English."""
    return bool(_NEGATION.search(fold(text).replace("’", "'")))


def agrees(said: str, sources: Sequence[tuple[str, str]]) -> bool:
    """Whether what is said denies where its sources deny, clause by clause.

    A clause is at odds with them if each of their clauses that have most of its words denies and it does not, or
    the other way round.
    """
    folded = _PARTICLE.sub("", fold(said).replace("’", "'"), count=1)
    clauses = [
        (clause, language)
        for text, language in sources
        for start, end in sentences(text, 0, len(text))
        for clause in _clauses(fold(text[start:end]).replace("’", "'"), language)
    ]
    return all(_borne(one, clauses) for one in _clauses(folded, sources[0][1] if sources else "en"))


def _borne(said: str, clauses: Sequence[tuple[str, str]]) -> bool:
    mine = _polarity(said)
    if mine is None:
        return True
    shared = []
    for clause, language in clauses:
        wanted = set(stems_of(said, language))
        common = len(wanted & set(stems_of(clause, language)))
        if common and common >= 0.5 * len(wanted):
            shared.append((common, clause))
    best = max((common for common, _ in shared), default=0)
    found = [_polarity(clause) for common, clause in shared if common >= _MATCH * best]
    return not found or mine in found or None in found


def _polarity(clause: str) -> bool | None:
    """True for a clause that denies, None for one that sets a limit with a word that denies."""
    without = _LIMIT.sub(" ", clause)
    limited = without != clause
    # "No puede superar los 10 kg ni los 55 cm": the second limit goes with the first.
    if _NEGATION.search(_NOR.sub(" ", without) if limited else without):
        return True
    return None if limited else False


def _clauses(sentence: str, language: str) -> list[str]:
    """The clauses of a folded sentence; a part with less than two telling words is none of its own."""
    found: list[str] = []
    last, edges = 0, [match.start() for match in _JOINT.finditer(sentence)] + [len(sentence)]
    for edge in edges:
        if len(stems_of(sentence[edge:], language)) < 2:
            edge = len(sentence)
        if len(stems_of(sentence[last:edge], language)) >= 2 or edge == len(sentence):
            found.append(sentence[last:edge])
            last = edge
        if edge == len(sentence):
            break
    return found
