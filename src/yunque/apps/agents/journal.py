"""What runs of agents did: every step kept, sealed with the run's own key, and every call with an effect noted before
it is made.

A run goes on, or is replayed, by being done again from its beginning with the answers and results that are kept.
"""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from yunque.apps.keeping.database import SqliteDatabase, Vanished
from yunque.apps.keeping.holding import Held
from yunque.apps.keeping.sealing import Seals, Unreadable
from yunque.errors import UserError
from yunque.workspace import Workspace

FILE = "agents.db"
_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, agent TEXT NOT NULL, status TEXT NOT NULL, subject TEXT NOT NULL, parent TEXT,
    created TEXT NOT NULL, updated TEXT NOT NULL, sealed BLOB NOT NULL, pending BLOB, answer BLOB
);
CREATE TABLE steps (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, number INTEGER NOT NULL, kind TEXT NOT NULL,
    time TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (run, number)
);
CREATE TABLE calls (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, call TEXT NOT NULL, key TEXT NOT NULL,
    time TEXT NOT NULL, PRIMARY KEY (run, call)
);
CREATE TABLE decisions (
    run TEXT NOT NULL REFERENCES runs ON DELETE CASCADE, call TEXT NOT NULL, yes INTEGER NOT NULL,
    time TEXT NOT NULL, PRIMARY KEY (run, call)
);
CREATE TABLE gone (id TEXT PRIMARY KEY, time TEXT NOT NULL)
"""
StepKind = Literal["model", "tool"]


@dataclass(frozen=True)
class RunRecord:
    """A run of an agent. `begun` is what it was given: the question, its language, the marks of its data, and where
    its agent comes from."""

    id: str
    agent: str
    status: str
    parent: str | None
    created: str
    updated: str
    begun: dict[str, Any]
    pending: dict[str, Any] | None
    answer: str | None

    @property
    def origin(self) -> str:
        """Where its agent can be found again (an app with its version); empty where nobody said."""
        return str(self.begun.get("origin", ""))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without what was said."""
        names = ("id", "agent", "origin", "status", "parent", "created", "updated")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class StepRecord:
    """A step: what a model was asked and answered, or what a tool was given and returned."""

    number: int
    kind: StepKind
    time: str
    content: dict[str, Any]


class Journal:
    """Runs, steps, calls and decisions in `agents.db`; safe for several threads and processes."""

    def __init__(self, workspace: Workspace) -> None:
        self.database = SqliteDatabase(workspace.root / FILE, _SCHEMA)
        self.seals = Seals(workspace.keys, "agent")

    def begin(self, agent: str, begun: dict[str, Any], subject: str = "", id: str | None = None,
              parent: str | None = None) -> RunRecord:  # fmt: skip
        """Keep a new run, or give the one that has this id already (another agent's call, made again)."""
        run = id or f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(5)}"
        with self.database.transaction():
            if self.database.read("SELECT id FROM gone WHERE id = ?", (run,)):
                raise UserError(f"the run {run} was deleted")
            if not self.database.read("SELECT id FROM runs WHERE id = ?", (run,)):
                self.seals.make(run)
                self.database.write(
                    "INSERT INTO runs (id, agent, status, subject, parent, created, updated, sealed)"
                    " VALUES (?, ?, 'running', ?, ?, ?, ?, ?)",
                    (run, agent, self.seals.pseudonym(subject), parent, _now(), _now(),
                     self.seals.seal(run, "begun", begun)),
                )  # fmt: skip
        return self.run(run)

    def run(self, id: str) -> RunRecord:
        """The run with this id; raises UserError."""
        rows = self.database.read("SELECT * FROM runs WHERE id = ?", (id,))
        if not rows:
            raise UserError(f"there is no run {id!r} of an agent")
        return self._loaded(rows[0])

    def runs(self, agent: str | None = None, limit: int = 50) -> list[RunRecord]:
        """The newest runs, newest first."""
        rows = self.database.read(
            "SELECT * FROM runs WHERE ? IS NULL OR agent = ? ORDER BY created DESC, id LIMIT ?",
            (agent, agent, limit),
        )
        found: list[RunRecord] = []
        for row in rows:
            # One whose key is gone tells nothing any more; it can still be deleted.
            with suppress(UserError):
                found.append(self._loaded(row))
        return found

    def steps(self, run: str) -> list[StepRecord]:
        """All steps of a run, in order."""
        rows = self.database.read("SELECT * FROM steps WHERE run = ? ORDER BY number", (run,))
        return [
            StepRecord(row["number"], row["kind"], row["time"],
                       self.seals.open(run, f"step {row['number']}", row["sealed"]))
            for row in rows
        ]  # fmt: skip

    def add(self, run: str, number: int, kind: StepKind, content: dict[str, Any]) -> None:
        """Keep a step; raises UserError where the run was deleted."""
        with self._still_there(run):
            self.database.write(
                "INSERT INTO steps (run, number, kind, time, sealed) VALUES (?, ?, ?, ?, ?)",
                (run, number, kind, _now(), self.seals.seal(run, f"step {number}", content)),
            )

    def begin_call(self, run: str, call: str, key: str) -> bool:
        """Note that a call is about to be made, before it is; False where it was begun before."""
        with self._still_there(run), self.database.transaction():
            if self.database.read("SELECT key FROM calls WHERE run = ? AND call = ?", (run, call)):
                return False
            self.database.write(
                "INSERT INTO calls (run, call, key, time) VALUES (?, ?, ?, ?)", (run, call, key, _now())
            )
            return True

    def decide(self, run: str, call: str, yes: bool) -> None:
        """Keep what a person decided about a call. Said twice it counts once; raises UserError where it was decided
        otherwise before."""
        with self._still_there(run), self.database.transaction():
            known = self.decision(run, call)
            if known is not None and known != yes:
                raise UserError(
                    f"run {run}: call {call} was {'approved' if known else 'refused'} before; that cannot be changed"
                )
            if known is None:
                self.database.write(
                    "INSERT INTO decisions (run, call, yes, time) VALUES (?, ?, ?, ?)",
                    (run, call, int(yes), _now()),
                )

    def decision(self, run: str, call: str) -> bool | None:
        """What a person decided about a call; None: nothing yet."""
        rows = self.database.read("SELECT yes FROM decisions WHERE run = ? AND call = ?", (run, call))
        return bool(rows[0]["yes"]) if rows else None

    def mark(self, run: str, status: str, pending: dict[str, Any] | None, answer: str) -> None:
        """Say how a run stands, which call it waits with, and what was answered."""
        with self._still_there(run):
            waits = self.seals.seal(run, "pending", pending) if pending else None
            said = self.seals.seal(run, "answer", answer)
            changed = self.database.write(
                "UPDATE runs SET status = ?, pending = ?, answer = ?, updated = ? WHERE id = ?",
                (status, waits, said, _now(), run),
            )
            if not changed:
                raise Vanished(run)

    def hold(self, run: str) -> AbstractContextManager[None]:
        """Be the only one that works on a run; raises `keeping.holding.Held`."""
        return self.database.hold(run)

    def under_way(self, run: str) -> bool:
        """Whether somebody works on a run."""
        try:
            with self.hold(run):
                return False
        except Held:
            return True

    def delete(self, runs: list[str]) -> bool:
        """Delete runs, with those that other agents did for them: rows, keys and bytes. False if somebody reading
        kept the bytes from being overwritten (they cannot be read without the key)."""
        for run in runs:
            if not self.database.read("SELECT id FROM runs WHERE id = ?", (run,)):
                raise UserError(f"there is no run {run!r} of an agent")
        ids = list(dict.fromkeys(id for run in runs for id in (run, *self._below(run))))
        with self.database.transaction():
            for id in ids:
                self.database.write(
                    "INSERT INTO gone VALUES (?, ?) ON CONFLICT (id) DO NOTHING", (id, _now())
                )
                self.database.write("DELETE FROM runs WHERE id = ?", (id,))
        for id in ids:
            self.seals.destroy(id)
        return self.database.wipe()

    def of_subject(self, subject: str) -> list[str]:
        """The runs about a person."""
        rows = self.database.read("SELECT id FROM runs WHERE subject = ?", (self.seals.pseudonym(subject),))
        return [row["id"] for row in rows] if subject else []

    def _below(self, run: str) -> list[str]:
        rows = self.database.read("SELECT id FROM runs WHERE parent = ?", (run,))
        return [id for row in rows for id in (row["id"], *self._below(row["id"]))]

    @contextmanager
    def _still_there(self, run: str) -> Iterator[None]:
        try:
            yield
        except (Vanished, Unreadable):
            raise UserError(f"the run {run} was deleted; what it still had to do is not done") from None

    def _loaded(self, row: Any) -> RunRecord:
        try:
            begun = self.seals.open(row["id"], "begun", row["sealed"])
            pending, answer = (
                self.seals.open(row["id"], name, row[name]) if row[name] else None
                for name in ("pending", "answer")
            )
        except Unreadable:
            raise UserError(f"the run {row['id']} cannot be read: its key is gone") from None
        names = ("id", "agent", "status", "parent", "created", "updated")
        return RunRecord(**{name: row[name] for name in names}, begun=begun, pending=pending, answer=answer)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
