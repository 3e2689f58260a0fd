"""How quickly each model answered: seconds to its first token, and tokens a second after that."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from yunque.workspace.sqlite_file import SqliteFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, at REAL NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, first_token REAL, seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_of_a_model ON answers (model, id);
"""
_KEPT = 500
_LOOKED_AT = 100
_FEWEST_TOKENS = 4
_PATIENCE = 1.0
"""Seconds that an answer waits for the file: it is worth more than its measurement."""
_MOST_TOKENS = 10**15


@dataclass(frozen=True)
class Speed:
    """Medians of a model's last answers; None where none of them tells. `at` is the last one (seconds since 1970)."""

    answers: int
    first_token: float | None
    tokens_a_second: float | None
    at: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Measurements:
    """The last answers of each model, in a file of their own. Safe for many threads and processes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(path, _SCHEMA, _PATIENCE)
        self._clock = clock

    @classmethod
    def of(cls, root: Path) -> "Measurements":
        """Those of the workspace whose folder this is."""
        return cls(root / "measurements.db")

    def add(
        self,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        first_token: float | None,
        seconds: float,
    ) -> None:
        """Keep one answer; times are in seconds, `first_token` is None where the answer came in one piece."""
        with self._file.transaction() as connection:
            cursor = connection.execute(
                "INSERT INTO answers (model, at, prompt_tokens, completion_tokens, first_token, seconds)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    model,
                    self._clock(),
                    *map(_counted, (prompt_tokens, completion_tokens)),
                    first_token,
                    seconds,
                ),
            )
            if (cursor.lastrowid or 0) % 50 == 0:
                connection.execute(
                    "DELETE FROM answers WHERE model = ? AND id NOT IN"
                    " (SELECT id FROM answers WHERE model = ? ORDER BY id DESC LIMIT ?)",
                    (model, model, _KEPT),
                )

    def speed(self, model: str) -> Speed | None:
        """What the last answers of a model say; None where there is none."""
        rows = (
            self._file.connection()
            .execute("SELECT * FROM answers WHERE model = ? ORDER BY id DESC LIMIT ?", (model, _LOOKED_AT))
            .fetchall()
        )
        if not rows:
            return None
        firsts = [row["first_token"] for row in rows if row["first_token"] is not None]
        # The first token is there when the clock starts, so that one less was written while it ran.
        rates = [
            (row["completion_tokens"] - 1) / (row["seconds"] - row["first_token"])
            for row in rows
            if row["first_token"] is not None
            and row["completion_tokens"] >= _FEWEST_TOKENS
            and row["seconds"] > row["first_token"]
        ]
        return Speed(
            len(rows),
            statistics.median(firsts) if firsts else None,
            statistics.median(rates) if rates else None,
            rows[0]["at"],
        )

    def models(self) -> list[str]:
        """The models that were measured."""
        rows = self._file.connection().execute("SELECT DISTINCT model FROM answers ORDER BY model")
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close this thread's connection."""
        self._file.close()


def _counted(tokens: int) -> int:
    """A number that SQLite can hold."""
    return max(0, min(int(tokens), _MOST_TOKENS))
