"""`yunque key create|list|revoke`, as typed by a person."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from yunque.cli import key as key_commands
from yunque.errors import UserError
from yunque.workspace import Workspace
from yunque.workspace.api_keys import (
    USUAL_SCOPES,
    KeyUsage,
    Terms,
    add_key_usage,
    create_api_key,
    find_api_key,
    list_api_keys,
    parse_expiry,
)


@pytest.fixture(autouse=True)
def in_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(key_commands.app, list(arguments))


def complaint(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_what_a_key_is_good_for_is_kept_and_shown(workspace: Workspace) -> None:
    workspace.put("model", "mini", {"config.json": b"{}"})
    workspace.put("app", "equipaje", {"app.yaml": b"x"})
    made = run(
        *("create", "facturación", "--scope", "generate", "--scope", "embeddings", "--model", "mini"),
        *("--model", "equipaje", "--rate", "60", "--tokens", "1000", "--budget", "5000", "--expires", "30d"),
    )
    assert made.exit_code == 0
    key = find_api_key(workspace.catalog.connection(), made.stdout.strip())
    assert key and key.name == "facturación"
    assert key.terms.scopes == ("generate", "embeddings")
    assert key.terms.models == ("model/mini", "app/equipaje")
    limits = (key.terms.requests_a_minute, key.terms.tokens_a_minute, key.terms.tokens_a_day)
    assert limits == (60, 1000, 5000)
    with workspace.catalog.transaction() as connection:
        add_key_usage(connection, key.id, KeyUsage(1, 30, 12))
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["state"], listed["requests_today"], listed["tokens_today"]) == ("working", 1, 42)
    assert listed["last_used"] and listed["models"] == ["model/mini", "app/equipaje"] and "hash" not in listed
    shown = run("list").stdout
    for word in ("facturación", "working", "generate", "60 requests/min", "5000 tokens/day", " 42 "):
        assert word in shown.replace("\n", " "), shown


def test_without_options_a_key_is_good_for_all_models_and_the_usual_things() -> None:
    made = json.loads(run("create", "laptop", "--json").stdout)
    assert made["scopes"] == list(USUAL_SCOPES) and made["models"] == [] and made["expires"] is None
    assert made["key"].startswith("yq-")
    assert run("revoke", made["id"]).exit_code == 0
    assert json.loads(run("list", "--json").stdout)[0]["state"] == "revoked"
    assert "no working API key" in complaint("revoke", made["id"])


def test_mistakes_are_told_in_one_sentence(workspace: Workspace) -> None:
    workspace.put("model", "mini", {"config.json": b"{}"})
    for arguments, told in (
        (("x", "--scope", "everything"), "'everything' is not a scope: use models, generate,"),
        (("x", "--model", "nothing"), "no model, adapter or app of this name"),
        (("x", "--model", "mini@1"), "leave out the @1"),
        (("x", "--model", "no such/x"), "is not a kind"),
        (("x", "--rate", "0"), "0 cannot be the limit"),
        (("x", "--budget", "-5"), "-5 cannot be the limit"),
        (("x", "--expires", "soon"), "30d, 12h or 2027-01-31"),
        (("x", "--expires", ""), "30d, 12h or 2027-01-31"),
        (("x", "--expires", "2001-01-01"), "has passed already"),
        (("x", "--expires", "0d"), "has passed already"),
        (("x", "--expires", "999999w"), "is not a time"),
        (("  ",), "a key needs a name"),
        (("a\nb",), "a key needs a name"),
        (("a" * 101,), "a key needs a name"),
    ):
        said = complaint("create", *arguments)
        assert told in said and "\n" not in said
    assert list_api_keys(workspace.catalog.connection()) == []


def test_moments_are_read_as_people_write_them() -> None:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(parse_expiry(text))

    now = datetime.now(UTC)
    for text, span in (("45m", timedelta(minutes=45)), ("12h", timedelta(hours=12)), ("2w", timedelta(14))):
        assert abs(moment(text) - now - span) < timedelta(seconds=5)
    # A key that expires on a day works on that day.
    assert moment("2999-12-31").isoformat() == "3000-01-01T00:00:00+00:00"
    assert moment("2999-12-31T10:00+02:00").isoformat() == "2999-12-31T08:00:00+00:00"
    assert moment("2999-12-31 10:00").isoformat() == "2999-12-31T10:00:00+00:00"


def test_a_key_stops_at_its_moment(workspace: Workspace) -> None:
    with workspace.catalog.transaction() as connection:
        _, over = create_api_key(connection, "k", Terms(expires="2026-01-01T00:00:00+00:00"))
        _, working = create_api_key(connection, "k", Terms(expires="2999-01-01T00:00:00+00:00"))
    assert find_api_key(connection, over) is None and find_api_key(connection, working)
    assert [key.state for key in list_api_keys(connection)].count("expired") == 1
