"""A SQLite database as tools: reading what is listed, within limits; changing it only if that is switched on, and
then with a person's approval.

What the database does not let through is decided by SQLite's own authorizer, not by reading the SQL.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yunque.apps.agents.tools import AgentTool, CallContext, ToolError
from yunque.errors import UserError

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
_CHANGES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_NOT_CALLED = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "randomblob", "zeroblob"}
_OF_SQLITE = ("sqlite_", "pragma_", "dbstat", "bytecode", "tables_used")
_MOST_BYTES_OF_A_VALUE = 1_000_000
_STEPS_BETWEEN_LOOKS = 10_000
_LONGEST_SQL = 10_000
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "sql": {"type": "string", "minLength": 1, "maxLength": _LONGEST_SQL,
                "description": "One statement. Values stand as ? in it, never in quotes."},
        "parameters": {"type": "array", "items": {"type": ["string", "number", "null"]},
                       "description": "The values of the ?, in order."},
    },
    "required": ["sql"],
    "additionalProperties": False,
}  # fmt: skip


def sql_tools(
    path: Path,
    tables: Sequence[str] = (),
    write: bool = False,
    name: str = "sql",
    most_rows: int = 100,
    timeout: float = 10.0,
) -> list[AgentTool]:
    """`NAME_query`, which reads, and with `write` `NAME_change`, which needs a person's approval for each call.

    `tables` are those that may be seen (all, if none are named). Raises UserError where there is no such database or
    table.
    """
    known = _tables(path)
    wanted = tuple(tables) or tuple(known)
    if missing := [table for table in wanted if table not in known]:
        raise UserError(f"{path}: has no table {missing[0]!r} (it has: {', '.join(known) or 'none'})")
    allowed = frozenset(table.lower() for table in wanted)
    hidden = frozenset(table.lower() for table in known) - allowed
    schema = " ".join(known[table] for table in wanted)
    about = f"SQLite. Tables: {schema}"

    def query(arguments: dict[str, Any], call: CallContext) -> Any:
        with _Opened(path, "ro", min(timeout, call.seconds), _rule(allowed, hidden, _READS)) as opened:
            return opened.rows(arguments, most_rows)

    def change(arguments: dict[str, Any], call: CallContext) -> Any:
        with _Opened(
            path, "rw", min(timeout, call.seconds), _rule(allowed, hidden, _READS | _CHANGES)
        ) as opened:
            return opened.changed(arguments)

    reading = AgentTool(
        f"{name}_query",
        f"Read from a database with one SELECT, at most {most_rows} rows. {about}",
        _PARAMETERS,
        query,
        timeout=timeout + 1,
    )
    if not write:
        return [reading]
    changing = AgentTool(
        f"{name}_change",
        f"Change a database with one INSERT, UPDATE or DELETE. {about}",
        _PARAMETERS,
        change,
        approval=True,
        effect="once",
        timeout=timeout + 1,
    )
    return [reading, changing]


class _Opened:
    """A connection that does only what its rule lets through, for so many seconds."""

    def __init__(self, path: Path, mode: str, seconds: float, rule: Callable[..., int]) -> None:
        try:
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=seconds, isolation_level=None
            )
        except sqlite3.Error as error:
            raise ToolError(f"the database cannot be opened ({error})") from None
        end = time.monotonic() + seconds
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES_OF_A_VALUE)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS_BETWEEN_LOOKS)
        self._connection.set_authorizer(rule)

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def rows(self, arguments: dict[str, Any], most: int) -> dict[str, Any]:
        """What a query finds; raises ToolError."""
        cursor = self._executed(arguments)
        if cursor.description is None:
            raise ToolError("this tool only reads: write one SELECT")
        columns = [str(column[0]) for column in cursor.description]
        found = self._guarded(lambda: cursor.fetchmany(most + 1))
        rows = [[_shown(value) for value in row] for row in found[:most]]
        more = (
            {"note": f"there are more than {most} rows; only the first are shown"}
            if len(found) > most
            else {}
        )
        return {"columns": columns, "rows": rows, **more}

    def changed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """How many rows a statement changed, in one transaction; raises ToolError."""
        cursor = self._executed(arguments)
        return {"rows_changed": max(cursor.rowcount, 0)}

    def _executed(self, arguments: dict[str, Any]) -> sqlite3.Cursor:
        sql = arguments["sql"]
        if "'" in sql:
            raise ToolError("write ? in the place of each text, and the texts in `parameters`, in order")
        cursor: sqlite3.Cursor = self._guarded(
            lambda: self._connection.execute(sql, arguments.get("parameters") or [])
        )
        return cursor

    def _guarded(self, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except sqlite3.Error as error:
            if "interrupted" in str(error):
                raise ToolError("the query took too long: ask for less") from None
            raise ToolError(f"SQLite: {error}") from None


def _rule(tables: frozenset[str], hidden: frozenset[str], actions: set[int]) -> Callable[..., int]:
    """What the authorizer lets through: these actions, on these tables, with harmless functions."""

    def rule(action: int, first: str | None, second: str | None, *_: object) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if (second or "").lower() in _NOT_CALLED else sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            name = (first or "").lower()
            # Counting reads no column. Then a name may also be that of a WITH of the query itself.
            own = second == "" and name not in hidden and not name.startswith(_OF_SQLITE)
            return sqlite3.SQLITE_OK if name in tables or own else sqlite3.SQLITE_DENY
        if action in actions and action in _CHANGES:
            return sqlite3.SQLITE_OK if (first or "").lower() in tables else sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK if action in actions else sqlite3.SQLITE_DENY

    return rule


def _tables(path: Path) -> dict[str, str]:
    """Each table (and view) with its columns, as a model is told of them."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such database")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            names = [
                str(row[0])
                for row in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
                )
            ]
            return {name: _columns(connection, name) for name in sorted(names)}
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a SQLite database ({error})") from None


def _columns(connection: sqlite3.Connection, table: str) -> str:
    quoted = table.replace('"', '""')
    columns = connection.execute(f'PRAGMA table_info("{quoted}")').fetchall()
    told = ", ".join(f"{column[1]} {column[2]}".strip() for column in columns)
    name = table if re.fullmatch(r"\w+", table) else repr(table)
    return f"{name}({told});"


def _shown(value: Any) -> Any:
    return f"({len(value)} bytes)" if isinstance(value, bytes) else value
