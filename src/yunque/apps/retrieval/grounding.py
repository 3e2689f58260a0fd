"""A generated answer held against the passages that it cites, sentence by sentence.

What stands between quotation marks must stand in the source, word for word; a number that no source has was made up;
of the other words enough must be there; what a source denies is not affirmed. A sentence that fails is dropped,
whatever the model's manners.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import sentences
from yunque.apps.retrieval.wording import agrees, find_quotation, quotations_in, with_plain_numbers
from yunque.apps.retrieval.words import STOP, words_of

SUPPORT = 0.5
"""The share of a sentence's stems that its passages must have; a paraphrase keeps the nouns and the numbers."""
CONTRIBUTION = 0.2
"""The share that each cited passage must have itself: one that has less is no source of the sentence."""

Source = tuple[str, str]
"""A passage's text and its language."""
Reason = Literal[
    "", "no source", "quotation not found", "number not found", "not borne out", "denied otherwise"
]

_NUMBERS = r"\[\s*(\d{1,3}(?:\s*[,;–-]\s*\d{1,3})*)\s*\]"
_CITATION = re.compile(rf"\s*{_NUMBERS}")
_LEADING = re.compile(rf"(?:\s*{_NUMBERS})+[.,;:]?")
_LIST_MARK = re.compile(r"\s*(?:[-*•·–]\s+)?[*_]*\(?\d{1,2}[.)][*_]*\s+(?!\[)")
_CLOSE = re.compile(r"[\s.,;:!?…]*\Z")


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
    """The numbers in square brackets ("[1]", "[1, 2]", "[1-3]"), in order, each once."""
    return list(dict.fromkeys(number for match in _CITATION.finditer(text) for number in _listed(match[1])))


def _listed(inside: str) -> list[int]:
    """The numbers of "1", "1, 2" or "1-3"."""
    found: list[int] = []
    for part in re.split(r"\s*[,;]\s*", inside):
        ends = [int(number) for number in re.findall(r"\d+", part)]
        found.extend(range(ends[0], ends[-1] + 1) if len(ends) > 1 else ends)
    return found


def ground(text: str, passages: Sequence[Source]) -> Grounded:
    """Hold an answer against its passages, and leave out the sentences that they do not bear out.

    A sentence without a citation of its own leans on all the passages that the answer cites; an answer that cites
    none has no source. A citation that there is not, or that bears nothing of its sentence out, is taken out of it; a
    sentence that is left without one is given those of the passages that bear it out.
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
    """A sentence with just these citations; those that it has not got stand before its full stop."""

    def left(match: re.Match[str]) -> str:
        listed = _listed(match[1])
        kept = [number for number in listed if number in numbers]
        return match[0] if kept == listed else f" [{', '.join(map(str, kept))}]" if kept else ""

    written = _CITATION.sub(left, sentence)
    missing = [number for number in numbers if number not in cited_numbers(written)]
    if not missing:
        return written
    close = _CLOSE.search(written)
    at = close.start() if close else len(written)
    return written[:at] + " " + "".join(f"[{number}]" for number in missing) + written[at:].rstrip()


def _whole_sentences(text: str) -> list[tuple[int, int]]:
    """The sentences of an answer; a quotation is not divided, and the citations behind a full stop belong to what
    stands before it."""
    quoted = [(one.start, one.end) for one in quotations_in(text)]
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
    if not text[:start].rpartition("\n")[2].strip():
        said = _LIST_MARK.sub("", said, count=1) if _LIST_MARK.match(said) else said

    def failed(reason: Reason) -> SentenceVerdict:
        return SentenceVerdict(start, end, sentence, reason)

    if not numbers:
        return failed("no source")
    if not _says_something(said):
        return failed("not borne out")
    quoted = _quoted(said, passages, numbers)
    if quoted is None:
        return failed("quotation not found")
    reason, having = _borne_out(said, passages, numbers)
    if reason and not (reason == "not borne out" and quoted and _mostly_quoted(said)):
        return failed(reason)
    if not agrees(said, [passages[number - 1] for number in numbers]):
        return failed("denied otherwise")
    literal = list(dict.fromkeys(span.number for span in quoted))
    bearing = [number for number in own if having.get(number) or number in literal]
    bearing = bearing or list(dict.fromkeys([*literal, *_enough(having)]))
    sources = [_nearest_sentence(said, number, passages[number - 1]) for number in bearing]
    return SentenceVerdict(
        start, end, sentence, "", tuple(bearing), tuple(quoted), tuple(filter(None, sources))
    )


def _says_something(said: str) -> bool:
    """Whether a sentence has a word that is not an everyday one ("Yes, you can", "No lo sé" have none)."""
    return any(word not in STOP["es"] and word not in STOP["en"] for word in words_of(said))


def _quoted(said: str, passages: Sequence[Source], numbers: Sequence[int]) -> list[Span] | None:
    """Where the quotations of a sentence stand in its passages; None if one of them stands in none."""
    spans: list[Span] = []
    for quotation in quotations_in(said):
        for number in numbers:
            if quotation.words and (place := find_quotation(quotation.words, passages[number - 1][0])):
                spans.append(Span(number, *place))
                break
        else:
            return None
    return spans


def _borne_out(
    said: str, passages: Sequence[Source], numbers: Sequence[int]
) -> tuple[Reason, dict[int, set[str]]]:
    """Whether the passages together have what is said, and what each has that has a part of it worth naming."""
    worst: Reason = "not borne out"
    said = with_plain_numbers(said)
    for language in ("es", "en"):
        wanted = set(stems_of(said, language))
        having = {
            number: wanted & set(stems_of(with_plain_numbers(passages[number - 1][0]), language))
            for number in numbers
        }
        found = set().union(*having.values())
        if any(stem[0].isdigit() for stem in wanted - found):
            worst = "number not found"
        elif wanted and len(found) >= SUPPORT * len(wanted):
            least = CONTRIBUTION * len(wanted)
            return "", {number: stems for number, stems in having.items() if len(stems) >= least}
    return worst, {}


def _enough(having: Mapping[int, set[str]]) -> list[int]:
    """The fewest passages, the fullest first, that have all that all of them have."""
    chosen: list[int] = []
    left = set().union(*having.values())
    while left:
        best = max(having, key=lambda number: len(having[number] & left))
        chosen.append(best)
        left -= having[best]
    return sorted(chosen)


def _mostly_quoted(said: str) -> bool:
    """Whether more of a sentence stands in quotation marks than outside ("«...», says the policy")."""
    inside = sum(one.end - one.start for one in quotations_in(said))
    return inside > 0.5 * len(said.strip())


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
