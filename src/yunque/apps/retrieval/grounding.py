"""A generated answer held against the passages that it cites, sentence by sentence.

What stands between quotation marks must stand in the source, word for word; a number that no source has was made up;
of the other words enough must be there. A sentence that fails is dropped, whatever the model's manners.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import sentences

SUPPORT = 0.5
"""The share of a sentence's stems that its passages must have; a paraphrase keeps the nouns and the numbers."""
CONTRIBUTION = 0.2
"""The share that each cited passage must have itself: one that has less is no source of the sentence."""

Source = tuple[str, str]
"""A passage's text and its language."""
Reason = Literal["", "no source", "quotation not found", "number not found", "not borne out"]

_CITATION = re.compile(r"\s*\[(\d{1,3})\]")
_LEADING = re.compile(r"(?:\s*\[\d{1,3}\])+[.,;:]?")
_QUOTATION = re.compile(r'"([^"\n]{1,2000})"|«([^»]{1,2000})»|“([^”]{1,2000})”|„([^“”]{1,2000})[“”]')
_LEFT_OUT = re.compile(r"\s*(?:\[\s*(?:…|\.{3})\s*\]|\(\s*(?:…|\.{3})\s*\)|…|\.{3})\s*")
# What is written in several ways without being another word.
_SAME = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": "-", "—": "-", "\xa0": " "}
)
_EDGES = " \t\n.,;:!?¡¿\"'"


@dataclass(frozen=True)
class Span:
    """A place in a source: `number` is the [n] of the passage, `start` and `end` are offsets into its text."""

    number: int
    start: int
    end: int


@dataclass(frozen=True)
class SentenceVerdict:
    """What became of a sentence of an answer, which stood at `start:end` of it.

    `citations` are the numbers that bear it out, `quotations` where its quoted words stand, `sources` the sentence of
    each cited passage that it is most like. `reason` is "" if it is kept.
    """

    start: int
    end: int
    text: str
    reason: Reason
    citations: tuple[int, ...] = ()
    quotations: tuple[Span, ...] = ()
    sources: tuple[Span, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the sentence stays in the answer."""
        return not self.reason


@dataclass(frozen=True)
class Grounded:
    """An answer without what its sources do not bear out; "" if nothing of it is left."""

    text: str
    verdicts: tuple[SentenceVerdict, ...]

    @property
    def whole(self) -> bool:
        """Whether every sentence was kept."""
        return bool(self.verdicts) and all(verdict.kept for verdict in self.verdicts)

    @property
    def citations(self) -> tuple[int, ...]:
        """The numbers that the kept sentences cite, each once."""
        return tuple(dict.fromkeys(n for one in self.verdicts if one.kept for n in one.citations))


def cited_numbers(text: str) -> list[int]:
    """The numbers in square brackets, in order, each once."""
    return list(dict.fromkeys(int(number) for number in _CITATION.findall(text)))


def ground(text: str, passages: Sequence[Source]) -> Grounded:
    """Hold an answer against its passages, and leave out the sentences that they do not bear out.

    A sentence without a citation of its own leans on all the passages that the answer cites; an answer that cites
    none has no source. A citation that there is not, or that bears nothing of its sentence out, is taken out of it.
    """
    everywhere = [number for number in cited_numbers(text) if 1 <= number <= len(passages)]
    verdicts, parts = list[SentenceVerdict](), list[str]()
    last = 0
    for start, end in _whole_sentences(text):
        verdict = _verdict(text, start, end, passages, everywhere)
        verdicts.append(verdict)
        if verdict.kept:
            between = text[last:start] if parts else ""
            parts.append(("\n" if "\n" in between else " ") if parts else "")
            parts.append(_only_citing(text[start:end], verdict.citations))
        last = end
    return Grounded("".join(parts), tuple(verdicts))


def _only_citing(sentence: str, numbers: Sequence[int]) -> str:
    return _CITATION.sub(lambda match: match[0] if int(match[1]) in numbers else "", sentence)


def _whole_sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of an answer; a quotation is not divided, and the citations behind a full stop belong to what
    stands before it."""
    quoted = [match.span() for match in _QUOTATION.finditer(text)]
    found: list[tuple[int, int]] = []
    lines = [(match.start(), match.end()) for match in re.finditer(r"[^\n]+", text)]
    for line_start, line_end in lines:
        first_of_line = True
        for start, end in sentences(text, line_start, line_end):
            if found and not first_of_line and (leading := _LEADING.match(text, start, end)):
                found[-1] = (found[-1][0], leading.end())
                start = (
                    leading.end() + len(text[leading.end() : end]) - len(text[leading.end() : end].lstrip())
                )
                if start >= end:
                    continue
            if found and any(left < found[-1][1] and start < right for left, right in quoted if left < start):
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
            first_of_line = False
    return found


def _verdict(
    text: str, start: int, end: int, passages: Sequence[Source], everywhere: Sequence[int]
) -> SentenceVerdict:
    sentence = text[start:end]
    own = [number for number in cited_numbers(sentence) if number in everywhere]
    numbers = own or list(everywhere)
    said = _CITATION.sub("", sentence)
    if not numbers:
        return SentenceVerdict(start, end, sentence, "no source")
    quotations: list[Span] = []
    for match in _QUOTATION.finditer(said):
        span = _find_quotation(next(filter(None, match.groups())), passages, numbers)
        if span is None:
            return SentenceVerdict(start, end, sentence, "quotation not found")
        quotations.append(span)
    reason, contributing = _borne_out(said, passages, numbers)
    kept = [
        number for number in own if number in contributing or number in {one.number for one in quotations}
    ]
    if reason == "not borne out" and quotations and _mostly_quoted(said):
        reason = ""
    sources = [_nearest_sentence(said, number, passages[number - 1]) for number in kept or contributing]
    return SentenceVerdict(
        start, end, sentence, reason, tuple(kept), tuple(quotations), tuple(filter(None, sources))
    )


def _borne_out(said: str, passages: Sequence[Source], numbers: Sequence[int]) -> tuple[Reason, list[int]]:
    """Whether the passages together have what is said, and which of them have a part of it."""
    worst: Reason = "not borne out"
    for language in ("es", "en"):
        wanted = set(stems_of(said, language))
        if not wanted:
            return "", list(numbers)
        having = {number: wanted & set(stems_of(passages[number - 1][0], language)) for number in numbers}
        found = set().union(*having.values())
        if any(stem[0].isdigit() for stem in wanted - found):
            worst = "number not found"
        elif len(found) >= SUPPORT * len(wanted):
            least = CONTRIBUTION * len(wanted)
            return "", [number for number in numbers if len(having[number]) >= least]
    return worst, []


def _mostly_quoted(said: str) -> bool:
    """Whether more of a sentence stands in quotation marks than outside ("«...», says the policy")."""
    inside = sum(len(match[0]) for match in _QUOTATION.finditer(said))
    return inside > 0.5 * len(said.strip())


def _find_quotation(quoted: str, passages: Sequence[Source], numbers: Sequence[int]) -> Span | None:
    """Where a quotation stands in one of the passages; its parts between ellipses in their order."""
    parts = [part for part in (_plain(one).strip(_EDGES) for one in _LEFT_OUT.split(quoted)) if part]
    for number in numbers:
        plain, offsets = _plain_with_offsets(passages[number - 1][0])
        position, first = 0, -1
        for part in parts:
            at = _whole_words(part, plain, position)
            if at < 0:
                break
            first = at if first < 0 else first
            position = at + len(part)
        else:
            if parts:
                return Span(number, offsets[first], offsets[position - 1] + 1)
    return None


def _whole_words(part: str, plain: str, position: int) -> int:
    """Where a text stands between the edges of words, from a position on; -1 if it does not."""
    while (at := plain.find(part, position)) >= 0:
        before, after = plain[at - 1 : at] if at else "", plain[at + len(part) : at + len(part) + 1]
        if not (before.isalnum() and part[0].isalnum()) and not (after.isalnum() and part[-1].isalnum()):
            return at
        position = at + 1
    return -1


def _plain(text: str) -> str:
    return _plain_with_offsets(text)[0]


def _plain_with_offsets(text: str) -> tuple[str, list[int]]:
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


def _nearest_sentence(said: str, number: int, source: Source) -> Span | None:
    """The sentence of a passage that shares most stems with what is said."""
    text, language = source
    wanted = set(stems_of(said, language))
    best: tuple[int, int, int] | None = None
    for start, end in sentences(text, 0, len(text)):
        shared = len(wanted & set(stems_of(text[start:end], language)))
        if shared and (best is None or shared > best[0]):
            best = (shared, start, end)
    return Span(number, best[1], best[2]) if best else None
