"""SQL and HTTP as tools, and tools read from a file: what they let through, and what they do not."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from yunque.apps.agents import AgentTool, CallContext, Limits, ToolError, read_tool, read_tools, tool_mistakes
from yunque.apps.agents.http_tools import openapi_tools
from yunque.apps.agents.sql_tools import sql_tools
from yunque.errors import UserError

CALL = CallContext("run", "c1", "the-key", 5.0, Limits())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total REAL);"
        "CREATE TABLE secrets (word TEXT);"
        "CREATE VIEW leak AS SELECT word FROM secrets;"
        "INSERT INTO orders VALUES (7, 'Ana', 120.5), (8, 'Luis', 30), (9, 'Ana', 5);"
        "INSERT INTO secrets VALUES ('sesame');"
    )
    connection.close()
    return path


def query(tool: AgentTool, sql: str, *parameters: object) -> Any:
    arguments: dict[str, Any] = {"sql": sql, "parameters": list(parameters)}
    assert tool.fault(arguments) is None
    return tool.run(arguments, CALL)


def test_sql_is_read_with_parameters_and_its_tables_are_told(shop: Path) -> None:
    (tool,) = sql_tools(shop, ["orders"], most_rows=2)
    assert "orders(id INTEGER, customer TEXT, total REAL);" in tool.description
    assert "secrets" not in tool.description
    found = query(tool, "SELECT id, total FROM orders WHERE customer = ? ORDER BY id", "Ana")
    assert found == {"columns": ["id", "total"], "rows": [[7, 120.5], [9, 5.0]]}
    assert "more than 2 rows" in query(tool, "SELECT * FROM orders")["note"]
    assert query(tool, "SELECT count(*), upper(customer) FROM orders WHERE id = 8")["rows"] == [[1, "LUIS"]]
    assert not tool.needs_approval({}) and tool.effect == "none"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM secrets",
        "SELECT word FROM leak",
        "SELECT id FROM orders UNION SELECT word FROM secrets",
        "SELECT (SELECT word FROM secrets)",
        "SELECT count(*) FROM secrets",
        "SELECT count(*) FROM SECRETS AS x",
        "SELECT count(*) FROM leak",
        "SELECT count(*) FROM sqlite_master",
        "SELECT count(*) FROM pragma_table_info(?)",
        "WITH x AS (SELECT 1 AS secrets) SELECT count(*) FROM x, secrets",
        "SELECT * FROM sqlite_master",
        "SELECT * FROM pragma_table_info(?)",
        "PRAGMA table_info(secrets)",
        "ATTACH DATABASE ? AS other",
        "DELETE FROM orders",
        "UPDATE orders SET total = 0",
        "INSERT INTO orders VALUES (1, ?, 2)",
        "DROP TABLE orders",
        "CREATE TABLE x (y)",
        "VACUUM INTO ?",
        "SELECT load_extension(?)",
        "SELECT 1; DELETE FROM orders",
        "SELECT * FROM orders WHERE customer = 'Ana'",
        "BEGIN",
        "WITH x AS (SELECT word FROM secrets) SELECT * FROM x",
        "nonsense",
    ],
)
def test_sql_that_is_more_than_reading_what_is_listed_is_an_error_for_the_model(shop: Path, sql: str) -> None:
    before = shop.read_bytes()
    (tool,) = sql_tools(shop, ["orders"])
    with pytest.raises(ToolError):
        query(tool, sql, *["x"] * sql.count("?"))
    assert shop.read_bytes() == before
    assert list(shop.parent.iterdir()) == [shop]


def test_sql_that_takes_too_long_is_stopped(shop: Path) -> None:
    (tool,) = sql_tools(shop, timeout=0.2)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(ToolError, match="took too long"):
        query(tool, endless)
    with pytest.raises(ToolError, match=r"too big|took too long|out of memory"):
        query(tool, "SELECT replace(hex(printf(?, 0)), ?, printf(?, 1))", "%.900000d", "0", "%.9000000d")


def test_sql_changes_only_if_switched_on_and_then_with_approval(shop: Path) -> None:
    reading, changing = sql_tools(shop, ["orders"], write=True)
    assert changing.needs_approval({}) and changing.effect == "once"
    assert query(changing, "UPDATE orders SET total = ? WHERE id = ?", 1.5, 7) == {"rows_changed": 1}
    assert query(reading, "SELECT total FROM orders WHERE id = 7")["rows"] == [[1.5]]
    for sql in ("DELETE FROM secrets", "DROP TABLE orders", "CREATE TABLE x (y)", "PRAGMA user_version = 3"):
        with pytest.raises(ToolError):
            query(changing, sql)


def test_a_database_that_is_none_is_told(tmp_path: Path, shop: Path) -> None:
    with pytest.raises(UserError, match="there is no such database"):
        sql_tools(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("hello, this is no database at all" * 10)
    with pytest.raises(UserError, match="cannot be read as a SQLite database"):
        sql_tools(tmp_path / "text.db")
    with pytest.raises(UserError, match="has no table 'sale'"):
        sql_tools(shop, ["sale"])


class Service(BaseHTTPRequestHandler):
    """Answers, and keeps what it was asked."""

    asked: list[tuple[str, str, dict[str, str], bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.command, self.path, dict(self.headers), body))
        if self.path.startswith("/v1/away"):
            self.send_response(302)
            self.send_header("Location", "/v1/orders/1")
            self.end_headers()
            return
        known = self.path.startswith("/v1/orders")
        content = (
            b"x" * 500_000
            if self.path.endswith("/big")
            else b'{"state": "sent"}'
            if known
            else b"no such thing"
        )
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, list[tuple[str, str, dict[str, str], bytes]]]]:
    handler = type("Own", (Service,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


API: dict[str, Any] = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://elsewhere.example/v1"}],
    "paths": {
        "/orders/{id}": {
            "parameters": [{"$ref": "#/components/parameters/id"}],
            "get": {
                "operationId": "getOrder",
                "summary": "One order.",
                "parameters": [
                    {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}}
                ],
            },
        },
        "/orders": {
            "post": {
                "operationId": "createOrder",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
                },
            }
        },
        "/away": {"get": {"operationId": "away"}},
        "/missing": {"get": {"operationId": "missing"}},
        "/loop": {"get": {"operationId": "loop", "parameters": [{"$ref": "#/components/parameters/loop"}]}},
        "/far": {"get": {"operationId": "far", "parameters": [{"$ref": "https://x.example/y.json#/z"}]}},
    },
    "components": {
        "parameters": {
            "id": {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
            "loop": {"$ref": "#/components/parameters/loop"},
        },
        "schemas": {"Order": {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}},
    },
}  # fmt: skip


def test_an_operation_of_an_openapi_document_is_called_on_the_one_host(
    service: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = service
    monkeypatch.setenv("SHOP_KEY", "the-secret")
    (tool,) = openapi_tools(API, ["getOrder"], url, key_env="SHOP_KEY")
    assert (tool.name, tool.description, tool.local) == ("getOrder", "One order.", False)
    assert tool.parameters["required"] == ["id"] and not tool.needs_approval({})
    assert tool.run({"id": "a/../../b?x", "fields": ["one", "two"]}, CALL) == {"state": "sent"}
    method, path, headers, _ = asked[0]
    assert (method, path) == ("GET", "/v1/orders/a%2F..%2F..%2Fb%3Fx?fields=one&fields=two")
    assert headers["Authorization"] == "Bearer the-secret" and "Idempotency-Key" not in headers
    for bad in ("..", ".", ""):
        with pytest.raises(ToolError, match="cannot be part of an address"):
            tool.run({"id": bad}, CALL)
    with pytest.raises(ToolError, match="longer than 200000 bytes"):
        tool.run({"id": "big"}, CALL)
    assert len(asked) == 2


def test_what_is_not_a_get_needs_approval_and_carries_its_key(service: tuple[str, list[Any]]) -> None:
    url, asked = service
    (tool,) = openapi_tools(API, ["POST /orders"], url)
    assert tool.needs_approval({}) and tool.effect == "once"
    assert tool.fault({"body": {}}) is not None and tool.fault({"body": {"item": "x"}}) is None
    tool.run({"body": {"item": "bag"}}, CALL)
    method, _, headers, body = asked[0]
    assert (method, headers["Idempotency-Key"], json.loads(body)) == ("POST", "the-key", {"item": "bag"})


def test_redirects_are_not_followed_and_errors_are_told_to_the_model(service: tuple[str, list[Any]]) -> None:
    url, asked = service
    away, missing = openapi_tools(API, ["away", "missing"], url)
    with pytest.raises(ToolError, match="the service answered 302"):
        away.run({}, CALL)
    with pytest.raises(ToolError, match="the service answered 404: no such thing"):
        missing.run({}, CALL)
    assert len(asked) == 2
    (gone,) = openapi_tools(API, ["getOrder"], "http://127.0.0.1:9")
    with pytest.raises(ToolError, match=r"could not be asked .ConnectError."):
        gone.run({"id": "1"}, CALL)


@pytest.mark.parametrize(
    ("operations", "base", "said"),
    [
        ([], None, "list the operations that may be called .getOrder, createOrder"),
        (["deleteOrder"], None, "has no operation 'deleteOrder'"),
        (["loop"], None, "refers to itself without end"),
        (["far"], None, "only parts of the same document are read"),
        (["getOrder"], "ftp://x", "names no server"),
        (["getOrder"], "https://user:word@x.example", "holds no password"),
    ],
)
def test_mistakes_in_an_openapi_document_are_told(operations: list[str], base: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        openapi_tools(API, operations, base)


def test_tools_are_read_from_a_file(tmp_path: Path, shop: Path) -> None:
    assert shop.parent == tmp_path
    (tmp_path / "api.json").write_text(json.dumps(API))
    (tmp_path / "tools.py").write_text(
        'def hello(name: str) -> str:\n    """Greets."""\n    return f"hi {name}"\n'
    )
    tools = read_tools(
        [
            {"function": "tools.py:hello", "approval": True},
            {"openapi": "api.json", "operations": ["getOrder"], "base_url": "https://shop.example/v1"},
            {"sql": "shop.db", "tables": ["orders"], "write": True},
            {"search": True, "k": 3},
        ],
        "app.yaml: tools",
        tmp_path,
        search=lambda query, k: [f"{query} {k}"],
    )
    assert [tool.name for tool in tools] == ["hello", "getOrder", "sql_query", "sql_change", "search"]
    assert tools[0].run({"name": "Ana"}, CALL) == "hi Ana"
    assert [tool.needs_approval({}) for tool in tools] == [True, False, False, True, False]
    assert tools[4].run({"query": "bags"}, CALL) == ["bags 3"]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ({}, r"tools\.0: a tool has one of function, openapi"),
        ("x", r"tools\.0: a tool has one of"),
        ({"function": "tools.py:hello", "sql": "x"}, r"tools\.0: a tool has one of"),
        ({"function": "tools.py:hello"}, r"tools\.0\.function: there is no file"),
        ({"function": "hello"}, r"tools\.0\.function: 'hello' is no function"),
        ({"sql": "../shop.db"}, r"tools\.0\.sql: '../shop.db' lies outside"),
        ({"sql": "none.db"}, r"tools\.0\.sql: there is no file 'none.db'"),
        ({"sql": "shop.db", "tables": ["x"]}, r"tools\.0: .*has no table 'x'"),
        (
            {"sql": "shop.db", "tabels": ["x"]},
            r"tools\.0\.tabels: there is no such field .did you mean tables",
        ),
        ({"search": True}, r"tools\.0\.search: the app has no knowledge"),
        ({"agent": "x", "description": "y"}, r"tools\.0\.agent: there is no agent 'x'"),
        ({"openapi": "shop.db", "operations": []}, r"tools\.0\.operations"),
    ],
)
def test_mistakes_in_a_list_of_tools_are_told_with_their_place(
    tmp_path: Path, shop: Path, tool: Any, said: str
) -> None:
    assert shop.exists()
    with pytest.raises(UserError, match=said):
        read_tools([tool], "app.yaml: tools", tmp_path)


def test_two_tools_of_one_name_are_told(tmp_path: Path, shop: Path) -> None:
    with pytest.raises(UserError, match=r"tools.1: a tool before it is called 'sql_query' too"):
        read_tools([{"sql": shop.name}, {"sql": shop.name}], "app.yaml: tools", tmp_path)


def test_all_mistakes_in_a_list_of_tools_are_told_each_with_its_place(tmp_path: Path, shop: Path) -> None:
    tools = [
        {"sql": shop.name},
        {"function": "nowhere.py:f", "aproval": True},
        {"function": "nowhere.py:f"},
        {"sql": shop.name},
        {"agent": "x", "description": "y"},
    ]
    found = tool_mistakes(tools, "app.yaml: tools", tmp_path)
    assert [place for place, _ in found] == [(1, "aproval"), (2, "function"), (3,), (4, "agent")]
    assert found[0][1] == "there is no such field (did you mean approval?)"
    assert found[3][1].startswith("there is no agent 'x' (other agents are for programs")
    assert not any("tools." in message for _, message in found), "a message does not repeat the place"
    with pytest.raises(UserError) as told:
        read_tools(tools, "app.yaml: tools", tmp_path)
    assert len(str(told.value).splitlines()) == 4
    assert tool_mistakes(tools[:1], "x", tmp_path) == []
    assert tool_mistakes([{"sql": str(shop.resolve())}], "x", tmp_path) == []
    with pytest.raises(UserError, match=r"\Aapp/x: tools\.3\.function: there is no file"):
        read_tool(tools[2], "app/x: tools.3", tmp_path)


def test_the_files_that_tools_name_are_reported_without_databases(tmp_path: Path, shop: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "tools.py").write_text(
        'def hello(name: str) -> str:\n    """Greets."""\n    return name\n'
    )
    (tmp_path / "api.json").write_text(json.dumps(API))
    opened: list[Path] = []
    read_tools(
        [
            {"function": "below/tools.py:hello"},
            {"openapi": "api.json", "operations": ["getOrder"], "base_url": "https://shop.example/v1"},
            {"sql": shop.name},
        ],
        "app.yaml: tools",
        tmp_path,
        opened=opened,
    )
    assert [str(path.relative_to(tmp_path)) for path in opened] == ["below/tools.py", "api.json"]
