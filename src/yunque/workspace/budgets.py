"""Budgets: how much money and how many tokens a key, an app or everything together may use, and what they did use.

A call is charged in two steps. Before it the most that it can use is held; afterwards that gives way to what it did
use. What is held counts as used, so that callers in many threads and processes cannot pass a budget together.
"""

import math
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from yunque.errors import UserError
from yunque.workspace.sqlite_file import SqliteFile

Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)
ALL = "all"
"""What every call is charged to."""

_NANO = 10**9
_MOST_USD = 10**9
_MOST_TOKENS = 10**15
_MOST_NANO_OF_A_CALL = 10**15
_MOST_TOKENS_OF_A_CALL = 10**12
"""What one call can be charged at the most: sums of it stay numbers that SQLite can hold."""
_WHO = re.compile(r"all|(?:key|app)/[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LIMITS = "(SELECT *, 'set' AS source FROM limits UNION ALL SELECT *, 'file' AS source FROM own_limits)"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS limits (
    who TEXT NOT NULL, period TEXT NOT NULL, nano INTEGER, tokens INTEGER, PRIMARY KEY (who, period)
);
CREATE TABLE IF NOT EXISTS spent (
    who TEXT NOT NULL, day TEXT NOT NULL, nano INTEGER NOT NULL, tokens INTEGER NOT NULL, calls INTEGER NOT NULL,
    PRIMARY KEY (who, day)
);
CREATE TABLE IF NOT EXISTS own_limits (
    who TEXT NOT NULL, period TEXT NOT NULL, nano INTEGER, tokens INTEGER, PRIMARY KEY (who, period)
);
CREATE TABLE IF NOT EXISTS held (
    id INTEGER NOT NULL, who TEXT NOT NULL, day TEXT NOT NULL, nano INTEGER NOT NULL, tokens INTEGER NOT NULL,
    until REAL NOT NULL, PRIMARY KEY (id, who)
);
"""


class OverBudget(UserError):
    """A call could pass a budget, and is refused before it is made."""


@dataclass(frozen=True)
class Budget:
    """What `who` (`key/ID`, `app/NAME` or `all`) may use in a period (UTC) and did; None where there is no limit.

    `held_*` is the most that calls under way can use. `source` is `set` where an administrator set it, `file` where
    an app's own file did, "" where there is no limit.
    """

    who: str
    period: str
    usd: float | None
    tokens: int | None
    used_usd: float
    used_tokens: int
    held_usd: float
    held_tokens: int
    calls: int
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Held:
    """The most that a call under way can use; `until` is when it is given up for dead (seconds since 1970)."""

    who: tuple[str, ...]
    day: str
    id: int | None
    until: float


class Budgets:
    """The budgets of a workspace, in a file of their own. Safe for many threads and processes.

    A call of a process that was killed is given up `hold` seconds after it last gave a sign. `clock` tells seconds
    since 1970.
    """

    def __init__(self, path: Path, hold: float = 900.0, clock: Callable[[], float] = time.time) -> None:
        self._file = SqliteFile(path, _SCHEMA)
        self._hold, self._clock = hold, clock

    @classmethod
    def of(cls, root: Path) -> "Budgets":
        """Those of the workspace whose folder this is."""
        return cls(root / "budgets.db")

    def set(
        self,
        who: str,
        usd: float | None = None,
        tokens: int | None = None,
        period: Period = "day",
        own: bool = False,
    ) -> None:
        """Set the limits of `who`; raises UserError for what is none. Both None takes the budget away.

        With `own` it is what an app's file says of the app itself: it stands beside the administrator's, and both
        hold.
        """
        table = "own_limits" if own else "limits"
        checked_who(who)
        checked_period(period)
        if usd is not None and not (math.isfinite(usd) and 0 <= usd <= _MOST_USD):
            raise UserError(f"{usd} US dollars cannot be a budget: it must be from 0 to {_MOST_USD}")
        if tokens is not None and not 0 <= tokens <= _MOST_TOKENS:
            raise UserError(f"{tokens} tokens cannot be a budget: it must be from 0 to {_MOST_TOKENS}")
        with self._file.transaction() as connection:
            if usd is None and tokens is None:
                connection.execute(f"DELETE FROM {table} WHERE who = ? AND period = ?", (who, period))
                return
            nano = None if usd is None else round(usd * _NANO)
            connection.execute(
                f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", (who, period, nano, tokens)
            )

    def list(self) -> list[Budget]:
        """Every budget, and what is used of it now."""
        connection, now = self._file.connection(), self._clock()
        rows = connection.execute(f"SELECT * FROM {_LIMITS} ORDER BY who, period, source DESC").fetchall()
        return [_budget(connection, row, now) for row in rows]

    def used(self, who: str, period: Period = "day") -> Budget:
        """What `who` used in this period, whether there is a limit or not; of two limits the lower one."""
        connection = self._file.connection()
        rows = connection.execute(
            f"SELECT * FROM {_LIMITS} WHERE who = ? AND period = ? ORDER BY source DESC",
            (checked_who(who), period),
        ).fetchall()
        lowest = {
            name: min((row[name] for row in rows if row[name] is not None), default=None)
            for name in ("nano", "tokens")
        }
        source = rows[0]["source"] if rows else ""
        return _budget(connection, {"who": who, "period": period, "source": source, **lowest}, self._clock())

    def hold(self, who: Sequence[str], usd: float | None, tokens: int) -> Held:
        """Hold the most that a call can use, for each of `who` and for `all`; `usd` is None where no price is known.

        Raises OverBudget where that would pass a budget.
        """
        charged = tuple(dict.fromkeys((*map(checked_who, who), ALL)))
        now = self._clock()
        day, nano, tokens = _day(now), _nano(usd or 0.0), _tokens(tokens)
        marks = ", ".join("?" * len(charged))
        with self._file.transaction() as connection:
            limits = connection.execute(f"SELECT * FROM {_LIMITS} WHERE who IN ({marks})", charged).fetchall()
            if not limits:
                return Held(charged, day, None, now)
            connection.execute("DELETE FROM held WHERE until <= ?", (now,))
            _refuse_if_any(connection, limits, now, None if usd is None else nano, tokens)
            id = secrets.randbits(62)
            until = now + self._hold
            connection.executemany(
                "INSERT INTO held VALUES (?, ?, ?, ?, ?, ?)",
                [(id, each, day, nano, tokens, until) for each in charged],
            )
        return Held(charged, day, id, until)

    def extend(self, held: Held) -> Held:
        """A sign of life of a long call; cheap to ask for often."""
        now = self._clock()
        if held.id is None or held.until - now > self._hold / 2:
            return held
        with self._file.transaction() as connection:
            connection.execute("UPDATE held SET until = ? WHERE id = ?", (now + self._hold, held.id))
        return Held(held.who, held.day, held.id, now + self._hold)

    def enlarge(self, held: Held, usd: float | None, tokens: int) -> None:
        """Hold so much more for a call that uses more than it said; raises OverBudget, and holds what it held."""
        if held.id is None:
            return
        now, nano, tokens = self._clock(), _nano(usd or 0.0), _tokens(tokens)
        marks = ", ".join("?" * len(held.who))
        with self._file.transaction() as connection:
            limits = connection.execute(
                f"SELECT * FROM {_LIMITS} WHERE who IN ({marks})", held.who
            ).fetchall()
            _refuse_if_any(connection, limits, now, None if usd is None else nano, tokens)
            connection.execute(
                "UPDATE held SET nano = nano + ?, tokens = tokens + ? WHERE id = ?", (nano, tokens, held.id)
            )

    def settle(self, held: Held, usd: float, tokens: int) -> None:
        """What the call did use takes the place of what was held, on the day on which it began.

        No call is charged more than a million dollars or 10^12 tokens: whoever says so is mistaken.
        """
        nano, tokens = _nano(usd), _tokens(tokens)
        with self._file.transaction() as connection:
            _let_go(connection, held)
            connection.executemany(
                "INSERT INTO spent VALUES (?, ?, ?, ?, 1) ON CONFLICT (who, day) DO UPDATE SET"
                " nano = nano + excluded.nano, tokens = tokens + excluded.tokens, calls = calls + 1",
                [(who, held.day, nano, tokens) for who in held.who],
            )

    def release(self, held: Held) -> None:
        """The call used nothing."""
        if held.id is not None:
            with self._file.transaction() as connection:
                _let_go(connection, held)

    def close(self) -> None:
        """Close this thread's connection."""
        self._file.close()


def checked_period(text: str) -> Period:
    """A period of a budget; raises UserError for what is none."""
    for period in PERIODS:
        if text == period:
            return period
    raise UserError(f"{text!r} is not a period of a budget: use {', '.join(PERIODS)}")


def checked_who(who: str) -> str:
    """`who` if it can have a budget; raises UserError otherwise."""
    if not _WHO.fullmatch(who):
        raise UserError(f"{who!r} cannot have a budget: write key/ID, app/NAME or all")
    return who


def _nano(usd: float) -> int:
    """Billionths of a dollar, of what one call can cost."""
    if not usd > 0:  # nor NaN
        return 0
    return _MOST_NANO_OF_A_CALL if usd * _NANO >= _MOST_NANO_OF_A_CALL else math.ceil(round(usd * _NANO, 3))


def _tokens(tokens: int) -> int:
    return max(0, min(tokens, _MOST_TOKENS_OF_A_CALL))


def _refuse_if_any(
    connection: sqlite3.Connection, limits: Sequence[Any], now: float, nano: int | None, tokens: int
) -> None:
    """Raises OverBudget where a call that can use so much would pass one of the limits."""
    for row in limits:
        if row["nano"] is not None and nano is None:
            raise OverBudget(
                f"{row['who']} has a budget in US dollars, and no price is known of the model: "
                "give it a budget in tokens only, or use another model"
            )
        _refuse_if_over(_budget(connection, row, now), (nano or 0) / _NANO, tokens)


def _let_go(connection: sqlite3.Connection, held: Held) -> None:
    if held.id is not None:
        connection.execute("DELETE FROM held WHERE id = ?", (held.id,))


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def _budget(connection: sqlite3.Connection, row: Any, now: float) -> Budget:
    today = _day(now)
    since = {"day": today, "month": today[:8] + "01", "total": ""}[row["period"]]
    used = connection.execute(
        # total() is a float, which no sum is too large for; it is exact up to nine million dollars.
        "SELECT total(nano), total(tokens), coalesce(sum(calls), 0) FROM spent WHERE who = ? AND day >= ?",
        (row["who"], since),
    ).fetchone()
    held = connection.execute(
        "SELECT total(nano), total(tokens) FROM held WHERE who = ? AND day >= ? AND until > ?",
        (row["who"], since, now),
    ).fetchone()
    return Budget(
        row["who"],
        row["period"],
        None if row["nano"] is None else row["nano"] / _NANO,
        row["tokens"],
        used[0] / _NANO,
        int(used[1]),
        held[0] / _NANO,
        int(held[1]),
        used[2],
        row["source"],
    )


def _refuse_if_over(budget: Budget, usd: float, tokens: int) -> None:
    period = "in all" if budget.period == "total" else f"a {budget.period}"
    taken_usd, taken_tokens = budget.used_usd + budget.held_usd, budget.used_tokens + budget.held_tokens
    # Sums of billionths of a dollar are exact; as floats they are so far below a billionth that it cannot matter.
    if budget.usd is not None and round((taken_usd + usd) * _NANO) > round(budget.usd * _NANO):
        raise OverBudget(
            f"the budget of {budget.who} is {budget.usd:g} US dollars {period}: {taken_usd:.6g} are used or held by "
            f"calls under way, and this call could cost {usd:.6g}"
        )
    if budget.tokens is not None and taken_tokens + tokens > budget.tokens:
        raise OverBudget(
            f"the budget of {budget.who} is {budget.tokens} tokens {period}: {taken_tokens} are used or held by "
            f"calls under way, and this call could use {tokens}"
        )
