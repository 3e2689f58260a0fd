"""The soak's checks find what they are there to find; the soak itself is run by hand."""

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def failing(load: Load, change: Callable[[list[Any], list[Any], Any], object] = lambda *_: None) -> list[str]:
    """The checks that fail after a storm of three good requests with this change."""
    soak, clients = load("soak"), load("soak_clients")
    exchanges = [clients.Exchange("whole", status=200, id=f"req_{n}", tokens=3) for n in range(3)]
    lines = [("POST", "/v1/completions", 200, f"req_{n}", "") for n in range(3)]
    seen = soak.Watched(list(range(90)), [100_000_000] * 90, [10] * 90)
    change(exchanges, lines, seen)
    return [what for what, holds, _ in soak.checked(exchanges, lines, seen) if not holds]


def test_each_check_of_the_soak_can_fail(load: Load) -> None:
    line = ("POST", "/v1/completions", 200, "req_0", "")

    def crossed(exchanges: list[Any], *_: Any) -> None:
        exchanges[0].problem = "'a' was answered with 'b'"

    def grows(_: Any, __: Any, seen: Any) -> None:
        seen.bytes = [100_000_000 + 1_000_000 * second for second in range(90)]

    assert failing(load) == []
    assert failing(load, crossed) == ["answers right, none crossed or lost"]
    assert failing(load, lambda _, lines, __: lines.pop()) == [
        "every request is in the log",
        "every id is there once",
    ]
    assert failing(load, lambda _, lines, __: lines.append(line)) == [
        "every request is in the log",
        "every id is there once",
    ]
    assert failing(load, lambda _, lines, __: lines.__setitem__(0, (*line[:2], 500, *line[3:]))) == ["no 5xx"]
    assert failing(load, grows) == ["memory is flat"]


def test_the_log_of_the_server_is_read(load: Load, tmp_path: Path) -> None:
    soak = load("soak")
    log = tmp_path / "log"
    log.write_text(
        "10:00:00 POST /v1/completions 200 12 ms req_a key 1a2b3c4d 4+2 tokens disconnected\n"
        "10:00:00 GET (unknown path) 404 0 ms req_b\n"
        "10:00:01 - (no request) 400 0 ms -\n"
        "10:00:01 req_c internal error: KeyError at x:1\n"
    )
    assert soak.Serving(None, "http://127.0.0.1:80/v1", log, "").log_lines() == [
        ("POST", "/v1/completions", 200, "req_a", "key 1a2b3c4d 4+2 tokens disconnected"),
        ("GET", "(unknown path)", 404, "req_b", ""),
        ("-", "(no request)", 400, "-", ""),
    ]


@pytest.mark.parametrize("text", ["good", "another"])
def test_a_client_knows_a_wrong_answer(load: Load, text: str) -> None:
    clients = load("soak_clients")
    body = json.dumps({"choices": [{"text": text}], "usage": {"completion_tokens": 2}}).encode()
    head = f"HTTP/1.1 200 OK\r\nX-Request-Id: req_1\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def run() -> Any:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head + body)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = clients.Client(0, port, "key", "m", [clients.Prompt("p", 5, "good", 2)])
        exchange = clients.Exchange("whole")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await client._ask(exchange, reader, writer, stream=False)
        writer.close()
        server.close()
        return exchange

    exchange = asyncio.run(run())
    assert (exchange.status, exchange.id) == (200, "req_1")
    assert bool(exchange.problem) is (text != "good")
