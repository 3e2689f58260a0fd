"""What a run of a chain has done so far: kept after each step, shared with branches of the run, deleted for good.

Kept in the clear, in the private folder of the workspace (or in the Postgres that is named instead).
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from yunque.apps.chains.state_rows import SCHEMA, RunRow, StateRow, loaded_run, loaded_state
from yunque.apps.keeping.database import Database, SqliteDatabase, Vanished
from yunque.apps.keeping.holding import Held
from yunque.apps.keeping.json_values import to_text
from yunque.errors import UserError
from yunque.llm.face import Cost, Usage

FILE = "chains.db"
RunStatus = Literal["running", "done", "failed", "stopped"]
_INDEX = "index"
_WAIT_FOR_INDEX = 60.0
NO_TOKENS = Usage(0, 0)


class RunDeleted(UserError):
    """A run that was deleted while it was under way, or before it was to go on."""

    def __init__(self, run: str) -> None:
        super().__init__(f"the run {run} was deleted")


@dataclass(frozen=True)
class Deletion:
    """What was deleted. `wiped` is False where the bytes could not be overwritten yet: somebody was reading them."""

    runs: tuple[str, ...]
    states: int
    wiped: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Spent:
    """What a step took of models, and which."""

    usage: Usage = NO_TOKENS
    cost: Cost | None = None
    models: tuple[str, ...] = ()


class States:
    """Runs and their states; safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(self, run: RunRow) -> RunRow:
        """Keep a new run; raises RunDeleted for an id that was deleted."""
        kept = replace(run, created=_now(), updated=_now())
        with self.database.transaction():
            if self.database.read("SELECT id FROM gone WHERE id = ?", (run.id,)):
                raise RunDeleted(run.id)
            if self.database.read("SELECT id FROM runs WHERE id = ?", (run.id,)):
                raise UserError(f"there is a run {run.id!r} already: resume it, or take another id")
            self.database.write(
                "INSERT INTO runs (id, chain, outline, source, input, status, error, created, updated, parent,"
                " parent_step) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(kept.id, kept.chain, to_text(kept.outline), to_text(kept.source), to_text(kept.input)),
                    *(kept.status, "", kept.created, kept.updated, kept.parent, kept.parent_step),
                ),
            )
            for subject in dict.fromkeys(run.subjects):
                self.database.write("INSERT INTO subjects (run, subject) VALUES (?, ?)", (run.id, subject))
        return kept

    def branch(self, run: RunRow, owner: str, paths: Iterable[str]) -> RunRow:
        """Keep a new run that has the finished states `paths` of `owner` without having done them."""
        with self.database.transaction():
            kept = self.begin(run)
            for path in paths:
                state = self.state(owner, path)
                if state is None:
                    raise RunDeleted(owner)
                self._written(
                    run.id,
                    "INSERT INTO shared (run, path, owner) VALUES (?, ?, ?)",
                    (run.id, path, state.run),
                )
        return kept

    def run(self, id: str) -> RunRow:
        """The run whose id is, or begins with, `id`; raises UserError when there is none, or several."""
        rows = self.database.read(
            "SELECT * FROM runs WHERE id = ? OR substr(id, 1, ?) = ? ORDER BY id LIMIT 5", (id, len(id), id)
        )
        exact = [row for row in rows if row["id"] == id] or (rows if id else [])
        if len(exact) == 1:
            return loaded_run(exact[0], self._subjects(str(exact[0]["id"])))
        if exact:
            raise UserError(f"several runs begin with {id!r}: {', '.join(str(row['id']) for row in exact)}")
        if self.database.read("SELECT id FROM gone WHERE id = ?", (id,)):
            raise RunDeleted(id)
        raise UserError(f"there is no run {id!r}: see `yunque chain runs`")

    def runs(self, chain: str | None = None, limit: int = 50) -> list[RunRow]:
        """The newest runs, newest first."""
        rows = self.database.read(
            "SELECT * FROM runs WHERE (CAST(? AS TEXT) IS NULL OR chain = ?) ORDER BY created DESC, id LIMIT ?",
            (chain, chain, limit),
        )
        return [loaded_run(row, self._subjects(str(row["id"]))) for row in rows]

    def state(self, run: str, path: str) -> StateRow | None:
        """What is kept of a step: its own, or one shared with the run that this one is a branch of."""
        rows = self.database.read(
            "SELECT * FROM states WHERE path = ? AND (run = ? OR run = (SELECT owner FROM shared WHERE run = ? AND"
            " path = ?)) ORDER BY CASE WHEN run = ? THEN 0 ELSE 1 END LIMIT 1",
            (path, run, run, path, run),
        )
        return loaded_state(rows[0]) if rows else None

    def states(self, run: str) -> list[StateRow]:
        """All that is kept of a run's steps, in the order they began; shared ones first."""
        rows = self.database.read(
            "SELECT s.*, 0 AS own FROM shared h JOIN states s ON s.run = h.owner AND s.path = h.path WHERE h.run = ?"
            " UNION ALL SELECT s.*, 1 AS own FROM states s WHERE s.run = ? ORDER BY own, number",
            (run, run),
        )
        return [loaded_state(row) for row in rows]

    def start(self, run: str, path: str, key: str) -> int:
        """Note that a step is about to run, before it does anything; returns which attempt this is."""
        with self.database.transaction():
            found = self.database.read("SELECT attempts FROM states WHERE run = ? AND path = ?", (run, path))
            attempt = int(found[0]["attempts"]) + 1 if found else 1
            if found:
                self._written(
                    run,
                    "UPDATE states SET status = 'started', attempts = ?, started = ?, error = '' WHERE run = ?"
                    " AND path = ?",
                    (attempt, _now(), run, path),
                )
            else:
                self._written(
                    run,
                    "INSERT INTO states (run, path, status, attempts, key, started, error, number) SELECT ?, ?,"
                    " 'started', 1, ?, ?, '', count(*) FROM states WHERE run = ?",
                    (run, path, key, _now(), run),
                )
            self._touch(run)
        return attempt

    def keep(self, run: str, path: str, value: Any, seconds: float, spent: Spent) -> None:
        """Keep the result of a step: from now on it is not run again in this run."""
        with self.database.transaction():
            self._written(
                run,
                "UPDATE states SET status = 'done', value = ?, finished = ?, seconds = ?, indexed = 0"
                " WHERE run = ? AND path = ?",
                (to_text(value), _now(), seconds, run, path),
            )
            self._count(run, path, spent)
            self._touch(run)

    def fail(self, run: str, path: str, error: str, spent: Spent) -> None:
        """Keep why an attempt at a step failed, and what it took."""
        self._count(run, path, spent)
        self._written(
            run,
            "UPDATE states SET status = 'failed', error = ? WHERE run = ? AND path = ?",
            (error, run, path),
        )

    def end(self, run: str, status: RunStatus, error: str = "") -> None:
        """Say how the run stands now."""
        self._written(
            run,
            "UPDATE runs SET status = ?, error = ?, updated = ? WHERE id = ?",
            (status, error, _now(), run),
        )

    def hold(self, run: str) -> AbstractContextManager[None]:
        """Be the only one that works on a run; raises Held."""
        return self.database.hold(run)

    def branches(self, run: str) -> list[str]:
        """The runs that were made from this one, and from those."""
        found: list[str] = []
        for row in self.database.read("SELECT id FROM runs WHERE parent = ? ORDER BY id", (run,)):
            found += [str(row["id"]), *self.branches(str(row["id"]))]
        return found

    def delete(self, runs: Sequence[str], with_branches: bool = False) -> Deletion:
        """Delete runs for good; none of them can be written to again. Call it through `index.delete_runs`, which
        deletes them from the index too. Raises UserError where a run has branches, unless those go with it."""
        ids: list[str] = []
        for name in runs:
            run = self.run(name)
            branches = self.branches(run.id)
            if branches and not with_branches and not set(branches) <= {*runs, *ids}:
                raise UserError(
                    f"the run {run.id} has branches that share its states ({', '.join(branches)}): delete them with"
                    " it (--with-branches)"
                )
            ids += [run.id, *branches]
        ids = list(dict.fromkeys(ids))
        states = 0
        with self.database.transaction():
            for id in ids:
                self.database.write(
                    "INSERT INTO gone (id, time, pending) VALUES (?, ?, 1) ON CONFLICT (id) DO NOTHING",
                    (id, _now()),
                )
                states += self.database.write("DELETE FROM states WHERE run = ?", (id,))
            for id in reversed(ids):
                self.database.write("DELETE FROM runs WHERE id = ?", (id,))
        return Deletion(tuple(ids), states, self.database.wipe())

    def of_subject(self, subject: str) -> list[str]:
        """The runs about a person."""
        rows = self.database.read("SELECT run FROM subjects WHERE subject = ? ORDER BY run", (subject,))
        return [str(row["run"]) for row in rows]

    def older(self, than: timedelta) -> list[str]:
        """Runs that nobody works on and that ended before then, with all of their branches."""
        cutoff = (datetime.now(UTC) - than).isoformat(timespec="milliseconds")
        rows = self.database.read("SELECT id FROM runs WHERE updated < ?", (cutoff,))
        old = {str(row["id"]) for row in rows if not self.under_way(str(row["id"]))}
        return sorted(id for id in old if set(self.branches(id)) <= old)

    def to_index(self, limit: int = 1000) -> list[StateRow]:
        """Finished states that are not in the index yet."""
        rows = self.database.read(
            "SELECT * FROM states WHERE status = 'done' AND indexed = 0 ORDER BY run, number LIMIT ?",
            (limit,),
        )
        return [loaded_state(row) for row in rows]

    def mark_indexed(self, states: Iterable[StateRow]) -> None:
        """These are in the index now."""
        with self.database.transaction():
            for state in states:
                self.database.write(
                    "UPDATE states SET indexed = 1 WHERE run = ? AND path = ?", (state.run, state.path)
                )

    def to_unindex(self) -> list[str]:
        """Deleted runs that may still be in the index."""
        return [str(row["id"]) for row in self.database.read("SELECT id FROM gone WHERE pending = 1")]

    def mark_unindexed(self, runs: Iterable[str]) -> None:
        """These are out of the index."""
        for run in runs:
            self.database.write("UPDATE gone SET pending = 0 WHERE id = ?", (run,))

    def hold_index(self) -> AbstractContextManager[None]:
        """Be the only one that changes the index: what is deleted must not be put in at the same moment."""
        return self.database.hold(_INDEX, _WAIT_FOR_INDEX)

    def under_way(self, run: str) -> bool:
        """Whether somebody works on a run."""
        try:
            with self.hold(run):
                return False
        except Held:
            return True

    def _count(self, run: str, path: str, spent: Spent) -> None:
        """Add what models took for a step to what earlier attempts at it took."""
        usage, cost = spent.usage, spent.cost
        if not spent.models:
            return
        self._written(
            run,
            "UPDATE states SET prompt_tokens = coalesce(prompt_tokens, 0) + ?, completion_tokens ="
            " coalesce(completion_tokens, 0) + ?, cached_tokens = coalesce(cached_tokens, 0) + ?, models = ?"
            " WHERE run = ? AND path = ?",
            (
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.cached_tokens,
                to_text(list(spent.models)),
                run,
                path,
            ),
        )
        if cost is not None:
            self._written(
                run,
                "UPDATE states SET usd = coalesce(usd, 0) + ?, prices_of = ? WHERE run = ? AND path = ?",
                (cost.usd, cost.prices_of, run, path),
            )

    def _written(self, run: str, sql: str, values: Sequence[Any]) -> None:
        """Write to a run that must still be there."""
        try:
            if self.database.write(sql, values):
                return
        except Vanished:
            pass
        raise RunDeleted(run)

    def _touch(self, run: str) -> None:
        self._written(run, "UPDATE runs SET updated = ? WHERE id = ?", (_now(), run))

    def _subjects(self, run: str) -> tuple[str, ...]:
        rows = self.database.read("SELECT subject FROM subjects WHERE run = ? ORDER BY subject", (run,))
        return tuple(str(row["subject"]) for row in rows)


def place_of_states(root: Path) -> Path | str:
    """Where the runs of a workspace are kept: its folder `root`, or the Postgres at the address YUNQUE_STATES."""
    return os.environ.get("YUNQUE_STATES") or root


def open_states(where: Path | str) -> States:
    """The states of the workspace folder `where`, or those in the Postgres at the URL `where`."""
    if isinstance(where, str) and where.startswith(("postgres://", "postgresql://")):
        from yunque.apps.keeping.postgres import PostgresDatabase

        return States(PostgresDatabase(where, SCHEMA, "yunque_chains"))
    return States(SqliteDatabase(Path(where) / FILE, SCHEMA))


def new_run_id() -> str:
    """An id that no other run has: the day it began, and 40 random bits."""
    return f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(5)}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
