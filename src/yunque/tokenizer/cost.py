"""What a language costs: how many tokens the same kind of text takes with each tokenizer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yunque.tokenizer.tokenizer import Tokenizer

_WORD = re.compile(r"\w+")
_PACKAGE = Path(__file__).parent.parent
# The same policies of the sample airline in both languages, and a file of our own as code.
_SAMPLES: Mapping[str, Sequence[str]] = {
    "Spanish": ("samples/airline/es/asientos_pagos.md", "samples/airline/es/incidencias_equipaje.md"),
    "English": ("samples/airline/en/seats_payments.md", "samples/airline/en/baggage_problems.md"),
    "code": ("tokenizer/sentencepiece.py", "tokenizer/alphabet.py"),
}


@dataclass(frozen=True)
class Cost:
    """What a text takes with a tokenizer. A word is a run of letters, digits and `_`."""

    tokenizer: str
    text: str
    words: int
    bytes: int
    tokens: int
    round_trip: bool

    @property
    def tokens_per_word(self) -> float | None:
        """Fewer is cheaper; None for a text without words."""
        return self.tokens / self.words if self.words else None

    @property
    def bytes_per_token(self) -> float | None:
        """More is cheaper; None for a text without tokens."""
        return self.bytes / self.tokens if self.tokens else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "tokens_per_word": self.tokens_per_word,
            "bytes_per_token": self.bytes_per_token,
        }


def sample_texts() -> dict[str, str]:
    """A text in Spanish, in English and in Python, all written for this project."""
    return {
        language: "\n".join((_PACKAGE / file).read_text(encoding="utf-8") for file in files)
        for language, files in _SAMPLES.items()
    }


def costs(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, str]) -> list[Cost]:
    """What each text takes with each tokenizer, both by name; text by text, so that neighbours compare."""
    found: list[Cost] = []
    for title, text in texts.items():
        for name, tokenizer in tokenizers.items():
            ids = tokenizer.encode(text)
            same = tokenizer.decode(ids) == text
            words = len(_WORD.findall(text))
            found.append(Cost(name, title, words, len(text.encode("utf-8", "replace")), len(ids), same))
    return found
