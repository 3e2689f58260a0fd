"""Pages of the web, fetched because a person named them: http and https alone, up to a size, told by their type.

A redirect may not lead to an address inside a network (this machine, a router, a cloud's metadata) unless it stays on
the host that was asked for: otherwise a page could have this machine read what its sender cannot.
"""

import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from yunque.apps.retrieval.index_config import IndexConfig, digest
from yunque.apps.retrieval.ledger import Ledger, Unit
from yunque.apps.retrieval.sources import Offer, Offered, file_reader, groups_of
from yunque.data.readers import Found, Skipped
from yunque.errors import UserError
from yunque.progress import Progress
from yunque.workspace import Workspace

if TYPE_CHECKING:
    import httpx

_REDIRECTS = 5
_SECONDS = 60.0
_SUFFIXES = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "text/x-markdown": ".md",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/json": ".json",
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
}
_UNTOLD = ("", "application/octet-stream", "binary/octet-stream")


class NotFetched(Exception):
    """A page could not be had; the message is the reason, for a person."""


@dataclass(frozen=True)
class Fetched:
    """A page: its bytes (texts as UTF-8), the suffix of its format, and what the server knows it by again."""

    content: bytes
    suffix: str
    etag: str
    modified: str


def check_url(url: str) -> None:
    """Raises UserError for what is not the address of a page."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"{url!r} is not an address ({error})") from None
    del port
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url!r} cannot be fetched: only http:// and https:// addresses can")
    if parts.username or parts.password:
        raise UserError(
            "an address to fetch must not hold a user name or password: it would be kept with its text"
        )


def fetch(url: str, most_bytes: int, etag: str = "", modified: str = "") -> Fetched | None:
    """Fetch a page; None when it is still what `etag` and `modified` were told with. Raises NotFetched."""
    import httpx

    headers = {"User-Agent": "yunque-index", "Accept": "text/html, text/*, application/*;q=0.9"}
    headers |= {"If-None-Match": etag} if etag else {}
    headers |= {"If-Modified-Since": modified} if modified else {}
    asked, until = urlsplit(url).hostname, time.monotonic() + _SECONDS
    try:
        with httpx.Client(timeout=20.0, follow_redirects=False) as client:
            for _ in range(_REDIRECTS + 1):
                request = _request(client, url, headers, urlsplit(url).hostname == asked)
                response = client.send(request, stream=True)
                try:
                    if response.status_code == 304:
                        return None
                    if not response.has_redirect_location:
                        return _read(response, url, most_bytes, until)
                    url = urljoin(url, response.headers["location"])
                finally:
                    response.close()
                if urlsplit(url).scheme not in ("http", "https"):
                    raise NotFetched(f"leads to {url[:80]!r}, which is neither http nor https")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        raise NotFetched(
            f"cannot be fetched ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from None
    raise NotFetched(f"leads from one address to another more than {_REDIRECTS} times")


def _request(client: "httpx.Client", url: str, headers: dict[str, str], trusted: bool) -> "httpx.Request":
    """The request; to a host that nobody asked for it goes to an address that was looked at before."""
    if trusted:
        return client.build_request("GET", url, headers=headers)
    parts = urlsplit(url)
    host = parts.hostname or ""
    address = _public_address(host, parts.port or (443 if parts.scheme == "https" else 80))
    shown = f"[{address}]" if ":" in address else address
    # The name was looked up once; a second look could give another address.
    pinned = parts._replace(netloc=f"{shown}:{parts.port}" if parts.port else shown, fragment="").geturl()
    return client.build_request(
        "GET", pinned, headers={**headers, "Host": parts.netloc}, extensions={"sni_hostname": host}
    )


def _public_address(host: str, port: int) -> str:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, where in found:
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_global or inner.is_multicast:
            raise NotFetched(
                f"leads to {host}, an address inside a network: name that address itself to read it"
            )
    return str(found[0][4][0])


def _read(response: "httpx.Response", url: str, most_bytes: int, until: float) -> Fetched:
    if response.status_code != 200:
        raise NotFetched(f"the server answered {response.status_code} {response.reason_phrase}".rstrip())
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    suffix = _SUFFIXES.get(kind)
    named = PurePosixPath(urlsplit(url).path).suffix.lower()
    if (suffix is None and kind in _UNTOLD and named in _SUFFIXES.values()) or (
        suffix == ".txt" and named in (".md", ".csv", ".tsv", ".jsonl", ".json")
    ):
        suffix = named
    if suffix is None:
        raise NotFetched(f"is of the type {kind or 'that its server does not tell'!r}, which is not read")
    content = bytearray()
    for block in response.iter_bytes():
        content += block
        if len(content) > most_bytes:
            raise NotFetched(f"is larger than {most_bytes / 1e6:,.0f} MB")
        if time.monotonic() > until:
            raise NotFetched(f"was not there whole after {_SECONDS:.0f} s")
    data = bytes(content)
    charset = response.charset_encoding
    if charset and suffix not in (".pdf", ".docx"):
        with suppress(LookupError, UnicodeError):  # the reader finds out itself then
            data = data.decode(charset).encode()
    etag, modified = (response.headers.get(name, "") for name in ("etag", "last-modified"))
    return Fetched(data, suffix, etag, modified)


def offer_urls(
    workspace: Workspace,
    urls: Sequence[str],
    config: IndexConfig,
    offer: Offer,
    skipped: list[Skipped],
    ledger: Ledger,
    known: Mapping[str, Unit],
    folder: Path,
    progress: Progress,
) -> None:
    """Fetch pages into a folder and add them; one that cannot be had stays as it was among those `known`."""
    for url in urls:
        check_url(url)
    with progress("Fetching pages", len(urls)) as task:
        for number, url in enumerate(urls):
            key = f"url:{url}"
            offer.prefixes.append(key)
            groups = groups_of(url, config.permissions)
            before = _before(ledger, url)
            unit = Unit(key, url, digest(before[2], url, groups))
            if known.get(key) != unit:
                before = ("", "", "")
            try:
                page = fetch(url, config.document_bytes, before[0], before[1])
            except NotFetched as error:
                skipped.append(Skipped(url, str(error)))
                offer.kept.add(key)
                page = None
            else:
                if page is None:
                    offer.kept.add(key)
            if page is not None:
                path = folder / f"{number}{page.suffix}"
                path.write_bytes(page.content)
                content = digest(page.content.hex())
                unit = Unit(key, url, digest(content, url, groups))
                reader = file_reader(workspace, Found(path, url), config)
                offer.units.append(Offered(unit, groups, reader))
                with ledger.transaction() as connection:
                    connection.execute(
                        "INSERT OR REPLACE INTO pages VALUES (?, ?, ?, ?)",
                        (url, page.etag, page.modified, content),
                    )
            task.advance(1, note=url)


def _before(ledger: Ledger, url: str) -> tuple[str, str, str]:
    """What the server told of a page when it was fetched last, and the digest of its content."""
    found = ledger.connection.execute("SELECT etag, modified, digest FROM pages WHERE url = ?", (url,))
    etag, modified, content = found.fetchone() or ("", "", "")
    return etag, modified, content
