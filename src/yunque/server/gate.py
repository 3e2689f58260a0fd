"""What every request passes before any route: who may come in, for what, how often and for how long."""

import asyncio
import ipaddress
import math
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yunque.server.account import Account, account
from yunque.server.errors import ApiError
from yunque.server.limits import Limits
from yunque.workspace import Workspace
from yunque.workspace.api_keys import ApiKey, find_api_key

PROBES = frozenset({"/health", "/healthz", "/readyz"})
"""Open to everybody, and answered while the server ends: they tell nothing but that it is there."""

_DOCUMENTS = ("/docs", "/openapi.json")
# What a path begins with, and the scope that a key needs for it.
_SCOPES = (
    ("/v1/models", "models"),
    ("/v1/completions", "generate"),
    ("/v1/chat/completions", "generate"),
    ("/v1/responses", "generate"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/tokenize", "tokenize"),
    ("/v1/detokenize", "tokenize"),
    ("/v1/tokenizer_info", "tokenize"),
    ("/tokenize", "tokenize"),
    ("/detokenize", "tokenize"),
    ("/tokenizer_info", "tokenize"),
    ("/metrics", "metrics"),
)


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def needs_key(path: str) -> bool:
    """Whether a path is closed to those without a key, where keys are required."""
    return path not in PROBES and not _is_under(path, _DOCUMENTS)


def scope_of(path: str) -> str | None:
    """The scope that a key needs for a path; None where any key will do (there is nothing of ours)."""
    return next((scope for start, scope in _SCOPES if _is_under(path, (start,))), None)


def route_of(path: str) -> str:
    """What a path of ours begins with, for the log; "" where it is none of ours (such a path may hold anything)."""
    known = (*(start for start, _ in _SCOPES), *PROBES, *_DOCUMENTS)
    return next((start for start in known if _is_under(path, (start,))), "")


class Gate:
    """Lets a request in or answers it with an error.

    With `keys_required` every path but the probes needs a key of the workspace that has the path's scope, and
    something left of its limits. Without keys, only requests are let in that were addressed to this machine by name
    (`Host`), and not sent by a page of another site (`Origin`): a browser on this machine would otherwise hand a
    stranger's page the models (DNS rebinding). While the server is `stopping`, new requests are refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        workspace: Workspace,
        keys_required: bool,
        limits: Limits,
        most_seconds: float,
        stopping: Callable[[], bool],
    ) -> None:
        self._app = app
        self._workspace = workspace
        self._keys_required = keys_required
        self._limits = limits
        self._most_seconds = most_seconds
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        current = account()

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start" and current.key:
                MutableHeaders(scope=message).update(self._limits.headers(current.key))
            await send(message)

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await self._check(scope, headers, current)
        except ApiError as refused:
            current.route = route_of(scope["path"])
            await refused.response()(scope, receive, telling)
        else:
            await self._app(scope, receive, telling)

    async def _check(self, scope: Scope, headers: dict[bytes, str], current: Account) -> None:
        path = scope["path"]
        if not self._keys_required:
            _check_from_here(headers)
        if path in PROBES:
            return
        if self._stopping():
            retry = {"Retry-After": "5", "Connection": "close"}
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers=retry)
        current.deadline = current.started + _seconds_asked(headers, self._most_seconds)
        if not self._keys_required or not needs_key(path):
            return
        scheme, _, handed = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not handed.strip():
            message = "an API key is required: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="missing_api_key")
        key = await asyncio.to_thread(self._admitted, handed.strip(), scope_of(path), current)
        if key is None:
            message = "this API key is not valid: it is unknown, was revoked or has expired"
            raise ApiError(401, message, code="invalid_api_key")

    def _admitted(self, handed: str, scope: str | None, current: Account) -> ApiKey | None:
        """The working key that was handed in, if what it asks for is within its scopes and limits."""
        key = find_api_key(self._workspace.catalog.connection(), handed)
        if key is None:
            return None
        if scope and scope not in key.terms.scopes:
            message = f"this API key lacks the scope {scope!r} (it has: {', '.join(key.terms.scopes)})"
            raise ApiError(403, message, code="missing_scope")
        current.admit(key, self._limits)
        return key


def _is_under(path: str, starts: tuple[str, ...]) -> bool:
    return any(path == start or path.startswith(start + "/") for start in starts)


def _seconds_asked(headers: dict[bytes, str], most: float) -> float:
    """How long a request may take: by its header X-Request-Timeout (seconds), and at most what the server allows."""
    asked = headers.get(b"x-request-timeout")
    if asked is None:
        return most
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        message = "X-Request-Timeout: must be a number of seconds above 0"
        raise ApiError(400, message, "X-Request-Timeout", "invalid_value")
    return min(seconds, most)


def _check_from_here(headers: dict[bytes, str]) -> None:
    origin = headers.get(b"origin")
    addressed = _host_of(f"//{headers.get(b'host', '')}")
    if addressed is None or not is_loopback(addressed):
        raise ApiError(
            403, "this server has no keys and answers to this machine's own names only", code="wrong_host"
        )
    if origin is not None and not is_loopback(_host_of(origin) or ""):
        raise ApiError(
            403, "this server has no keys and answers no page of another site", code="wrong_origin"
        )


def _host_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        # A name before an `@` has no place in either header; who puts one there hopes to be misread.
        return None if "@" in parts.netloc else parts.hostname
    except ValueError:
        return None
