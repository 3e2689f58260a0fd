"""Pages of the web in an index: what is fetched, what is not, and what is not fetched again."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from yunque.apps.retrieval import ingest, web
from yunque.apps.retrieval.index import Index
from yunque.apps.retrieval.index_config import IndexConfig
from yunque.apps.retrieval.ingest import Report
from yunque.apps.retrieval.sources import Sources
from yunque.workspace import Workspace

_PAGE = "<html><title>Perros</title><body><h1>Perros</h1><p>El perro viaja en cabina por 50 €.</p></body>"


class _Pages(BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str]]] = []
    page = _PAGE

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("If-None-Match", "")))
        kind, status, body, more = "text/html; charset=iso-8859-15", 200, b"", {}
        port = self.server.server_address[1]
        match self.path:
            case "/page":
                body, more = self.page.encode("iso-8859-15"), {"ETag": f'"{hash(self.page)}"'}
                if self.headers.get("If-None-Match") == more["ETag"]:
                    status, body = 304, b""
            case "/moved":
                status, more = 302, {"Location": "/page"}
            case "/inside":
                status, more = 302, {"Location": f"http://localhost:{port}/page"}
            case "/metadata":
                status, more = 302, {"Location": "http://169.254.169.254/latest"}
            case "/file":
                status, more = 302, {"Location": "file:///etc/passwd"}
            case "/round":
                status, more = 302, {"Location": "/round"}
            case "/image":
                kind, body = "image/png", b"\x89PNG"
            case "/large":
                body = b"x" * 5000
            case "/data.csv":
                kind, body = "text/plain", b"name,text\nAna,El gato duerme\n"
            case _:
                status = 404
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Pages, "asked", [])
    monkeypatch.setattr(_Pages, "page", _PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _build(workspace: Workspace, *urls: str, **config: int) -> Report:
    return ingest.build(workspace, "web", Sources(urls=urls), IndexConfig(**config))[1]


def test_a_page_is_read_by_its_type_in_its_letters(tmp_path: Path, host: str) -> None:
    workspace = Workspace.open(tmp_path)
    report = _build(workspace, f"{host}/page", f"{host}/data.csv")
    assert not report.skipped
    found = Index.open(workspace, "web").search("perro en cabina")[0].passage
    assert (found.file, found.heading) == (f"{host}/page", "Perros") and "50 €" in found.text


def test_a_page_that_did_not_change_is_not_sent_again(tmp_path: Path, host: str) -> None:
    workspace = Workspace.open(tmp_path)
    _build(workspace, f"{host}/page")
    _build(workspace, f"{host}/page")
    assert _Pages.asked[-1][1] and workspace.get("web", "index").version == 1
    _Pages.page = _PAGE.replace("50", "60")
    assert _build(workspace, f"{host}/page").read == 1
    assert "60 €" in Index.open(workspace, "web").search("perro")[0].passage.text


def test_redirects_on_the_same_host_are_followed(tmp_path: Path, host: str) -> None:
    workspace = Workspace.open(tmp_path)
    assert not _build(workspace, f"{host}/moved").skipped


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("inside", "inside a network"),
        ("metadata", "inside a network"),
        ("file", "neither http nor https"),
        ("round", "more than 5 times"),
        ("image", "image/png"),
        ("large", "larger than"),
        ("nothing", "404"),
    ],
)
def test_what_must_not_or_cannot_be_read_is_told_and_the_rest_goes_on(
    tmp_path: Path, host: str, path: str, reason: str
) -> None:
    workspace = Workspace.open(tmp_path)
    report = _build(workspace, f"{host}/{path}", f"{host}/page", document_bytes=4000)
    assert [reason in one.reason for one in report.skipped] == [True]
    assert {passage.file for passage in Index.open(workspace, "web").passages} == {f"{host}/page"}


def test_a_page_that_is_away_today_stays_in_the_index(tmp_path: Path, host: str) -> None:
    workspace = Workspace.open(tmp_path)
    _build(workspace, f"{host}/page", f"{host}/data.csv")
    broken = f"{host}/page"
    original = web.fetch

    def away(url: str, *values: object) -> object:
        if url == broken:
            raise web.NotFetched("cannot be fetched (no route)")
        return original(url, *values)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "fetch", away)
        report = _build(workspace, f"{host}/page", f"{host}/data.csv")
    assert len(report.skipped) == 1
    assert broken in {passage.file for passage in Index.open(workspace, "web").passages}
