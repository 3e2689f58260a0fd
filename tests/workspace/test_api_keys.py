"""API keys are shown once, kept as hashes, and stop working when revoked."""

from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.workspace import Workspace
from yunque.workspace.api_keys import create_api_key, find_api_key, list_api_keys, revoke_api_key


def test_a_key_works_until_it_is_revoked(tmp_path: Path) -> None:
    connection = Workspace.open(tmp_path / "ws").catalog.connection()
    made, key = create_api_key(connection, "laptop")
    assert find_api_key(connection, key) == made
    assert find_api_key(connection, key + "x") is None
    revoke_api_key(connection, made.id)
    assert find_api_key(connection, key) is None
    assert list_api_keys(connection)[0].revoked
    with pytest.raises(UserError, match="no working API key"):
        revoke_api_key(connection, made.id)


def test_the_key_itself_is_nowhere_on_disk(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    with workspace.catalog.transaction() as connection:
        _, key = create_api_key(connection, "laptop")
    content = b"".join(file.read_bytes() for file in workspace.root.rglob("*") if file.is_file())
    assert b"laptop" in content
    assert key.encode() not in content
