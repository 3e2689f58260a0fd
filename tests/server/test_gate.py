"""Who may come in, and what is written down about it."""

import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

import yunque.server.served
from yunque.cli import key as key_commands
from yunque.errors import UserError
from yunque.llm import ScriptedModel
from yunque.server.gate import is_loopback
from yunque.server.run import bound_socket, keys_needed, url_of
from yunque.workspace import Workspace
from yunque.workspace.api_keys import create_api_key, revoke_api_key


def a_key(workspace: Workspace) -> tuple[str, str]:
    with workspace.catalog.transaction() as connection:
        made, key = create_api_key(connection, "test")
    return made.id, key


def test_where_keys_are_required_nothing_under_v1_is_open(
    workspace: Workspace, start: Callable[..., Any]
) -> None:
    running = start(workspace, keys_required=True)
    for path in ("/v1/models", "/v1/models/x", "/v1/chat/completions", "/v1/nothing"):
        response = httpx.get(running.root + path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["error"]["code"] == "missing_api_key"
    assert httpx.get(running.root + "/health").status_code == 200


@pytest.mark.parametrize("header", ["Bearer yq-wrong", "Bearer", "Basic abc", "yq-wrong", "Bearer \xff\xfe"])
def test_a_wrong_key_is_401(workspace: Workspace, start: Callable[..., Any], header: str) -> None:
    a_key(workspace)
    running = start(workspace, keys_required=True)
    headers = [(b"authorization", header.encode("latin-1"))]
    assert httpx.get(running.url + "/models", headers=headers).status_code == 401


def test_a_key_works_until_it_is_revoked(workspace: Workspace, start: Callable[..., Any]) -> None:
    number, key = a_key(workspace)
    client = start(workspace, keys_required=True).client(key)
    assert list(client.models.list()) == []
    with workspace.catalog.transaction() as connection:
        revoke_api_key(connection, number)
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client.models.list()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "127.0.0.1:9999"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "x@127.0.0.1"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    workspace: Workspace, start: Callable[..., Any], headers: dict[str, str], status: int
) -> None:
    assert httpx.get(start(workspace).url + "/models", headers=headers).status_code == status


def our_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "yunque.server"]


def test_the_log_has_one_line_for_a_request_and_nothing_personal(
    workspace: Workspace,
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    workspace.put("model", "mini", {"config.json": b"{}"})
    monkeypatch.setattr(yunque.server.served, "open_model", lambda *_: ScriptedModel(lambda _: "Hola Ana"))
    running = start(workspace)
    with caplog.at_level(logging.INFO):
        messages: Any = [{"role": "user", "content": "Soy Ana, 12345678Z"}]
        running.client("yq-secret").chat.completions.create(model="mini", messages=messages, user="Ana")
        httpx.get(running.url + "/models/ana@example.com", params={"name": "Ana"})
        httpx.get(running.root + "/Ana%0A200 GET")
        # A line is written after its answer was sent.
        deadline = time.monotonic() + 5
        while len(lines := our_lines(caplog)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [line.partition(" ms ")[0].rpartition(" ")[0] for line in lines] == [
        "POST /v1/chat/completions 200",
        "GET /v1/models/{name:path} 404",
        "GET (unknown path) 404",
    ]
    assert all(re.search(r" \d+ ms req_[0-9a-f]{24}( |$)", line) and "\n" not in line for line in lines)
    assert not any(secret in "".join(lines).lower() for secret in ("soy", "12345678z", "yq-secret", "ana"))


def test_bytes_that_are_no_http_harm_nobody(workspace: Workspace, start: Callable[..., Any]) -> None:
    running = start(workspace)
    assert b" 400 " in running.raw(b"\x00\x01\x02\r\n\r\n")
    running.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    assert httpx.get(running.root + "/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_keys_are_needed_for_every_address_but_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert keys_needed(host, None) is not loopback
    assert keys_needed(host, True)
    if loopback:
        assert not keys_needed(host, False)
    else:
        with pytest.raises(UserError, match="--no-keys"):
            keys_needed(host, False)


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use"):
            bound_socket("127.0.0.1", port)
    with bound_socket("127.0.0.1", port) as free:
        assert url_of(free) == f"http://127.0.0.1:{port}/v1"


@pytest.mark.parametrize("host", ["no such host", "203.0.113.1", "a" * 300])
def test_an_address_that_is_not_ours_is_one_clear_sentence(host: str) -> None:
    with pytest.raises(UserError, match="is not an address"):
        bound_socket(host, 0)


def test_keys_are_made_listed_and_revoked_from_the_command_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))
    runner = CliRunner()
    made = runner.invoke(key_commands.app, ["create", "laptop"])
    key = made.stdout.strip()
    assert key.startswith("yq-") and len(key.split()) == 1
    listed = runner.invoke(key_commands.app, ["list", "--json"]).stdout
    assert '"name": "laptop"' in listed and key not in listed
    number = listed.split('"id": "')[1][:8]
    assert runner.invoke(key_commands.app, ["revoke", number]).exit_code == 0
    again = runner.invoke(key_commands.app, ["revoke", number])
    assert isinstance(again.exception, UserError)
    actions = [entry["action"] for entry in workspace.audit.entries()]
    assert actions == ["key.create", "key.revoke"]
    assert key not in workspace.audit.path.read_text()
