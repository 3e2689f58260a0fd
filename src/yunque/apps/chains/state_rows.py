"""The rows that a run of a chain is kept in."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from yunque.apps.keeping.database import Row
from yunque.llm.face import Cost, Usage

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, chain TEXT NOT NULL, outline TEXT NOT NULL, source TEXT NOT NULL, input TEXT NOT NULL,
    status TEXT NOT NULL, error TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL,
    parent TEXT, parent_step TEXT
);
CREATE INDEX IF NOT EXISTS runs_by_parent ON runs (parent);
CREATE TABLE IF NOT EXISTS subjects (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, subject TEXT NOT NULL, PRIMARY KEY (run, subject)
);
CREATE INDEX IF NOT EXISTS subjects_by_subject ON subjects (subject);
CREATE TABLE IF NOT EXISTS states (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, path TEXT NOT NULL, status TEXT NOT NULL, value TEXT,
    error TEXT NOT NULL, attempts BIGINT NOT NULL, key TEXT NOT NULL, started TEXT NOT NULL, finished TEXT,
    seconds DOUBLE PRECISION, prompt_tokens BIGINT, completion_tokens BIGINT, cached_tokens BIGINT,
    usd DOUBLE PRECISION, prices_of TEXT, models TEXT, number BIGINT NOT NULL, indexed BIGINT,
    PRIMARY KEY (run, path)
);
CREATE INDEX IF NOT EXISTS states_to_index ON states (indexed);
CREATE TABLE IF NOT EXISTS shared (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, path TEXT NOT NULL,
    owner TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, PRIMARY KEY (run, path)
);
CREATE TABLE IF NOT EXISTS gone (id TEXT PRIMARY KEY, time TEXT NOT NULL, pending BIGINT NOT NULL)
"""


@dataclass(frozen=True)
class RunRow:
    """A run: which chain, with what, and how it stands. `outline` are the names of the chain's steps as a tree;
    `source` tells where the chain can be read again."""

    id: str
    chain: str
    outline: list[Any]
    input: Any
    source: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    error: str = ""
    subjects: tuple[str, ...] = ()
    parent: str | None = None
    parent_step: str | None = None
    created: str = ""
    updated: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StateRow:
    """What is kept of a step of a run, at its path (`summaries[3]/shorten`); `run` is the one that did it."""

    run: str
    path: str
    status: str
    value: Any
    error: str
    attempts: int
    key: str
    started: str
    finished: str | None
    seconds: float | None
    usage: Usage
    cost: Cost | None
    models: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether its result is kept."""
        return self.status == "done"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def loaded_run(row: Row, subjects: tuple[str, ...]) -> RunRow:
    """A run out of its row."""
    values = dict(row)
    for name in ("outline", "source", "input"):
        values[name] = json.loads(values[name])
    return RunRow(**values, subjects=subjects)


def loaded_state(row: Row) -> StateRow:
    """A state out of its row."""
    usage = Usage(row["prompt_tokens"] or 0, row["completion_tokens"] or 0, row["cached_tokens"] or 0)
    return StateRow(
        *(row["run"], row["path"], row["status"], json.loads(row["value"]) if row["value"] else None),
        *(row["error"], row["attempts"], row["key"], row["started"], row["finished"], row["seconds"]),
        usage=usage,
        cost=None if row["usd"] is None else Cost(row["usd"], row["prices_of"] or ""),
        models=tuple(json.loads(row["models"] or "[]")),
    )
