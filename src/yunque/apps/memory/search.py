"""Searching messages that lie sealed on the disk: they are put into an index in memory for one search."""

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from yunque.apps.retrieval.words import STOP
from yunque.llm.face import Message

_SHORTEST_STEM = 4
_STOP = STOP["es"] | STOP["en"]


@dataclass(frozen=True)
class Found:
    """A message found; `snippet` is the part of it where the words stand, `score` is the better the higher."""

    conversation: str
    number: int
    time: str
    role: str
    snippet: str
    score: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def search_in(texts: Iterable[tuple[str, int, str, Message]], query: str, k: int) -> list[Found]:
    """The `k` messages nearest to some words (BM25 of SQLite's FTS5, accents folded, ends of words left open)."""
    words = re.findall(r"\w+", query)
    words = [word for word in words if word.lower() not in _STOP] or words
    if not words:
        return []
    index = sqlite3.connect(":memory:")
    try:
        # Nothing of it may be spilled to a file.
        index.execute("PRAGMA temp_store = MEMORY")
        index.execute(
            "CREATE VIRTUAL TABLE messages USING fts5 (text, conversation UNINDEXED, number UNINDEXED, time"
            " UNINDEXED, role UNINDEXED, tokenize = 'unicode61 remove_diacritics 2')"
        )
        index.executemany(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?)",
            ((message.content, id, number, time, message.role) for id, number, time, message in texts
             if message.content),
        )  # fmt: skip
        rows = index.execute(
            "SELECT conversation, number, time, role, snippet(messages, 0, '', '', '…', 24), bm25(messages)"
            " FROM messages WHERE messages MATCH ? ORDER BY bm25(messages), conversation, number LIMIT ?",
            (" OR ".join(map(_term, words)), k),
        ).fetchall()
    finally:
        index.close()
    return [Found(id, number, time, role, snippet, -score) for id, number, time, role, snippet, score in rows]


def _term(word: str) -> str:
    """A word as FTS5 is asked for it: without its last letters, where Spanish and English put their endings."""
    if len(word) > _SHORTEST_STEM:
        return f'"{word[: max(_SHORTEST_STEM, len(word) - 2)]}"*'
    return f'"{word}"'
