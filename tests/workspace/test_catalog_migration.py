"""A workspace that an earlier Yunque made goes on with all that is in it."""

import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.workspace import Workspace, read_calls
from yunque.workspace.api_keys import USUAL_SCOPES, find_api_key, list_api_keys

# The catalog as it was made before it had a version.
OLD = """
CREATE TABLE artifacts (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    hash TEXT NOT NULL, config TEXT NOT NULL, figures TEXT NOT NULL,
    environment TEXT NOT NULL, created TEXT NOT NULL,
    PRIMARY KEY (kind, name, version)
);
CREATE TABLE calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, target TEXT NOT NULL, model TEXT NOT NULL,
    question TEXT NOT NULL, answer TEXT NOT NULL, prompt_hash TEXT NOT NULL, details TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL
);
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, created TEXT NOT NULL, revoked TEXT
);
INSERT INTO api_keys VALUES ('0000000a', 'laptop', '{hash}', '2026-01-01T00:00:00+00:00', NULL);
INSERT INTO api_keys VALUES ('0000000b', 'lost', 'x', '2026-01-02T00:00:00+00:00', '2026-02-01T00:00:00+00:00');
INSERT INTO calls VALUES (7, '2026-01-01', 'app/a@1', 'm', '¿Qué?', 'Nada.', 'h', '{{}}', 3, 2, 0.5);
"""


def old_workspace(folder: Path) -> Path:
    folder.mkdir()
    connection = sqlite3.connect(folder / "catalog.db")
    connection.executescript(OLD.format(hash=hashlib.sha256(b"yq-old").hexdigest()))
    connection.close()
    return folder


def test_keys_and_calls_of_an_old_workspace_are_all_there(tmp_path: Path) -> None:
    workspace = Workspace.open(old_workspace(tmp_path / "ws"))
    connection = workspace.catalog.connection()
    key = find_api_key(connection, "yq-old")
    assert key and (key.name, key.terms.scopes, key.terms.tokens_a_day) == ("laptop", USUAL_SCOPES, None)
    assert [(each.id, each.state) for each in list_api_keys(connection)] == [
        ("0000000a", "working"),
        ("0000000b", "revoked"),
    ]
    assert read_calls(connection)[0].question == "¿Qué?"
    workspace.put("dataset", "d", {"x": b"1"})
    again = Workspace.open(tmp_path / "ws")
    assert again.get("d").version == 1 and len(list_api_keys(again.catalog.connection())) == 2


def test_many_who_open_an_old_workspace_at_once_bring_it_up_to_date_once(tmp_path: Path) -> None:
    folder, found = old_workspace(tmp_path / "ws"), list[int]()

    def open_it() -> None:
        found.append(len(list_api_keys(Workspace.open(folder).catalog.connection())))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2] * 8


def test_a_change_that_fails_half_way_leaves_the_old_catalog(tmp_path: Path) -> None:
    folder = old_workspace(tmp_path / "ws")
    with sqlite3.connect(folder / "catalog.db") as connection:
        connection.execute("CREATE TABLE key_usage (in_the_way TEXT)")
    with pytest.raises(UserError, match="is not a Yunque catalog"):
        Workspace.open(folder)
    with sqlite3.connect(folder / "catalog.db") as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(api_keys)")]
        assert columns == ["id", "name", "hash", "created", "revoked"]
        connection.execute("DROP TABLE key_usage")
    assert len(list_api_keys(Workspace.open(folder).catalog.connection())) == 2


def test_a_workspace_of_a_later_yunque_is_not_touched(tmp_path: Path) -> None:
    Workspace.open(tmp_path / "ws")
    with sqlite3.connect(tmp_path / "ws" / "catalog.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer Yunque"):
        Workspace.open(tmp_path / "ws")
