"""A generated answer held against the passages that it cites."""

import re
from collections.abc import Sequence

from yunque.apps.retrieval.keywords import stems_of
from yunque.apps.retrieval.passages import sentences

SUPPORT = 0.5
"""The share of a sentence's stems that its passages must have; a paraphrase keeps the nouns and the numbers."""

_CITATION = re.compile(r"\s*\[(\d{1,3})\]")


def cited_numbers(text: str) -> list[int]:
    """The numbers in square brackets, in order, each once."""
    return list(dict.fromkeys(int(number) for number in _CITATION.findall(text)))


def without_invented(text: str, passages: int) -> str:
    """The text without citations of passages that there are not."""
    return _CITATION.sub(lambda match: match[0] if 1 <= int(match[1]) <= passages else "", text)


def is_supported(text: str, passages: Sequence[tuple[str, str]]) -> bool:
    """Whether every sentence of an answer is borne out by what it cites; `passages` are (text, language).

    A sentence without a citation of its own leans on all the passages that the answer cites. A number that no
    cited passage has is never borne out.
    """
    everywhere = [number for number in cited_numbers(text) if 1 <= number <= len(passages)]
    if not everywhere:
        return False
    for start, end in sentences(text, 0, len(text)):
        sentence = text[start:end]
        numbers = [number for number in cited_numbers(sentence) if number in everywhere] or everywhere
        said = _CITATION.sub("", sentence)
        for language in ("es", "en"):
            wanted = set(stems_of(said, language))
            found = {stem for number in numbers for stem in stems_of(passages[number - 1][0], language)}
            invented = {stem for stem in wanted - found if stem[0].isdigit()}
            if not wanted or (not invented and len(wanted & found) >= SUPPORT * len(wanted)):
                break
        else:
            return False
    return True
