"""What must not come out: the text of the prompt, and long stretches that the user ordered to be repeated."""

import re
from collections.abc import Sequence

from yunque.guard.views import plain, views

WINDOW = 6
"""This many words of a template in a row are a leak; a shorter template leaks when all of it comes out."""
SHORTEST = 3

_PLACEHOLDER = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_RUN = re.compile(r"(?=(\S{1,6}?)\1{3,})(\S{8,})")
_ORDERED = re.compile(
    r"\b(?:repeat|same text|exact(?:ly)?|verbatim|print|output|provide|say|echo|copy|repite|"
    r"mismo texto|exactamente|literal|"
    r"imprime|escribe|devuelve|proporciona|copia|di)\b"
)
_QUOTED = re.compile(r"[\"'“”«»‘’`]([^\"“”«»`\n]{8,})[\"'“”«»‘’`]")
_TELLS = re.compile(
    r"\b(?:my (?:system )?(?:prompt|instructions) (?:is|are|say|reads?)|"
    r"the (?:system )?prompt (?:is|says|reads)|"
    r"mis instrucciones (?:son|dicen)|mi prompt (?:es|dice)|el prompt (?:es|dice)|"
    r"la plantilla (?:es|dice)|the template (?:is|says))\b"
)


def _words(text: str) -> list[str]:
    return _WORD.findall(plain(text))


def _windows(words: Sequence[str], width: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + width]) for start in range(len(words) - width + 1)}


class PromptLeak:
    """Finds the fixed text of templates in an answer, also spelled out, encoded or reversed."""

    def __init__(self, protected: Sequence[str], public: Sequence[str] = ()) -> None:
        known = [_words(text) for text in public]
        self._secret: dict[int, set[tuple[str, ...]]] = {}
        for template in protected:
            for piece in re.split(r"\n", _PLACEHOLDER.sub("\n", template)):
                words = _words(piece)
                width = min(WINDOW, len(words))
                if width < SHORTEST:
                    continue
                allowed = {window for text in known for window in _windows(text, width)}
                self._secret.setdefault(width, set()).update(_windows(words, width) - allowed)

    def find(self, answer: str, question: str = "") -> str:
        """The words that leaked, or "". What the user wrote themselves is no leak."""
        own = _words(question)
        for reading, text in views(answer):
            words = _words(text)
            for width, secret in self._secret.items():
                leaked = (_windows(words, width) & secret) - _windows(own, width)
                if leaked:
                    how = f" (read as {reading})" if reading else ""
                    return f"{width} words of the prompt in a row{how}"
        if _TELLS.search(plain(answer)):
            return "speaks of its own prompt"
        return ""


def find_echo(answer: str, question: str) -> str:
    """Whether an answer gives back what the question ordered it to say, or ""; what it gave back is named.

    A run such as "hahahaha" counts whenever it stands in both; a quoted text when the question orders it said.
    """
    asked, said = plain(question), plain(answer)
    for match in _RUN.finditer(asked):
        run = match[1] * 3
        if len(run) >= 3 and run in said and match[1].strip("._-=* ") and not match[1].isdigit():
            return f"repeats “{match[1] * 2}...”"
    if _ORDERED.search(asked):
        for quoted in _QUOTED.findall(asked):
            kept = quoted.strip()
            if len(kept) >= 8 and kept in said and len(kept) >= 0.5 * len(said.strip()):
                return "gives back a quoted text as ordered"
    return ""
