"""The card of a dataset: what is in it, in numbers."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from yunque.data.row import Row


class WordsAndMarks:
    """How long a text is before there is a tokenizer: each word and each punctuation mark counts one."""

    unit = "words and marks"
    _PATTERN = re.compile(r"\w+|[^\w\s]")

    @classmethod
    def count(cls, text: str) -> int:
        """The words and marks of a text."""
        return len(cls._PATTERN.findall(text))


@dataclass
class Counts:
    """Rows, characters and tokens."""

    rows: int = 0
    characters: int = 0
    tokens: int = 0

    def add(self, text: str, tokens: int) -> None:
        """Count one row."""
        self.rows += 1
        self.characters += len(text)
        self.tokens += tokens

    def as_dict(self) -> dict[str, int]:
        """Plain JSON values."""
        return {"rows": self.rows, "characters": self.characters, "tokens": self.tokens}


@dataclass
class Card:
    """Collects the numbers of rows while they are written."""

    count_tokens: Callable[[str], int] = WordsAndMarks.count
    token_unit: str = WordsAndMarks.unit
    total: Counts = field(default_factory=Counts)
    languages: dict[str, Counts] = field(default_factory=dict)
    splits: dict[str, Counts] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)

    def counting(self, rows: Iterable[Row], split: str, card: dict[str, Any]) -> Iterator[Row]:
        """`rows`, counted as they pass; after the last one `card` is brought up to date."""
        for row in rows:
            tokens = self.count_tokens(row.text)
            self.total.add(row.text, tokens)
            self.languages.setdefault(row.language, Counts()).add(row.text, tokens)
            self.splits.setdefault(split, Counts()).add(row.text, tokens)
            self.groups.add(row.group)
            yield row
        card.update(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The numbers so far; "splits" is empty while the dataset is in one piece."""
        languages = sorted(self.languages.items(), key=lambda pair: (-pair[1].rows, pair[0]))
        return {
            **self.total.as_dict(),
            "token_unit": self.token_unit,
            "groups": len(self.groups),
            "languages": {name: counts.as_dict() for name, counts in languages},
            "splits": {name: counts.as_dict() for name, counts in self.splits.items() if name != "rows"},
        }
