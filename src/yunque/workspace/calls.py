"""The call log: every question and answer, personal data already taken out by the caller."""

import json
import sqlite3
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Call:
    """One answered request.

    `target` is what was asked (`app/equipaje@1`, `model/mini@2`), `model` what answered; `question` and `answer`
    hold no personal data in the clear; `details` carries citations, verdicts and the client's options.
    """

    target: str
    model: str
    question: str
    answer: str
    prompt_hash: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    time: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def write_call(connection: sqlite3.Connection, call: Call) -> int:
    """Keep a call and return its number."""
    cursor = connection.execute(
        "INSERT INTO calls (time, target, model, question, answer, prompt_hash, details, prompt_tokens,"
        " completion_tokens, seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            call.target,
            call.model,
            call.question,
            call.answer,
            call.prompt_hash,
            json.dumps(call.details, ensure_ascii=False),
            call.prompt_tokens,
            call.completion_tokens,
            call.seconds,
        ),
    )
    return int(cursor.lastrowid or 0)


def read_calls(connection: sqlite3.Connection, limit: int = 20, number: int | None = None) -> list[Call]:
    """The newest `limit` calls, newest first; or the one with this `number`."""
    where, values = ("WHERE id = ?", (number,)) if number is not None else ("", ())
    rows = connection.execute(f"SELECT * FROM calls {where} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [Call(**{**dict(row), "details": json.loads(row["details"])}) for row in rows]
