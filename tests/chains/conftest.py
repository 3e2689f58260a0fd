"""Where chains keep their states in tests: SQLite always, Postgres where one can be started."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from reopened import Reopen


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Postgres of our own, from the wheel `pgserver`."""
    pytest.importorskip("psycopg", reason="needs the extra yunque[postgres]")
    pgserver = pytest.importorskip("pgserver", reason="needs pgserver, which starts a Postgres")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """The states of one test."""
    postgres = request.param == "postgres"
    opener = Reopen(request.getfixturevalue("postgres_url") if postgres else tmp_path)
    if postgres:
        for table in ("shared", "states", "subjects", "runs", "gone"):
            opener().database.write(f"DELETE FROM {table}")
    yield opener
    opener.close()
