"""What every request passes before any route: who may come in, how much it may bring, and the one line in the log."""

import asyncio
import ipaddress
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yunque.server.errors import ApiError, internal_error
from yunque.workspace import Workspace
from yunque.workspace.api_keys import find_api_key

log = logging.getLogger("yunque.server")


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessLog:
    """Logs method, route, status and milliseconds: no address, no query, no header, no body.

    The route is the pattern that matched (`/v1/models/{name}`), for a path may hold anything. An exception that
    reached this far is a bug of ours: the log says where, the client gets OpenAI's error shape with status 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            log.error("internal error: %s", _place(error))
            if not status:
                await internal_error().response()(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "(unknown path)")
            milliseconds = 1000 * (time.monotonic() - started)
            log.info("%s %s %s %.0f ms", scope["method"], route, status or "-", milliseconds)


def _place(error: BaseException) -> str:
    """The kind of an exception and the line it came from; its message may quote what a client sent."""
    trace = error.__traceback__
    frames: list[str] = []
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(frames[-4:])}"


class Gate:
    """Lets a request in or answers it with an error.

    With `keys_required` every path under /v1 needs a key of the workspace. Without keys, only requests are let in
    that were addressed to this machine by name (`Host`), and not sent by a page of another site (`Origin`): a
    browser on this machine would otherwise hand a stranger's page the models (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, workspace: Workspace, keys_required: bool) -> None:
        self._app = app
        self._workspace = workspace
        self._keys_required = keys_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            refused = await self._refused(scope, headers)
            if refused:
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refused(self, scope: Scope, headers: dict[bytes, str]) -> ApiError | None:
        if not self._keys_required:
            return _not_from_here(headers)
        if not scope["path"].startswith("/v1"):
            return None
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "an API key is required: send it as `Authorization: Bearer KEY`"
            return ApiError(401, message, code="missing_api_key")
        if not await asyncio.to_thread(self._is_known, key.strip()):
            return ApiError(401, "this API key is not valid, or was revoked", code="invalid_api_key")
        return None

    def _is_known(self, key: str) -> bool:
        return find_api_key(self._workspace.catalog.connection(), key) is not None


def _not_from_here(headers: dict[bytes, str]) -> ApiError | None:
    origin = headers.get(b"origin")
    addressed = _host_of(f"//{headers.get(b'host', '')}")
    if addressed is None or not is_loopback(addressed):
        return ApiError(
            403, "this server has no keys and answers to this machine's own names only", code="wrong_host"
        )
    if origin is not None and not is_loopback(_host_of(origin) or ""):
        return ApiError(
            403, "this server has no keys and answers no page of another site", code="wrong_origin"
        )
    return None


def _host_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        # A name before an `@` has no place in either header; who puts one there hopes to be misread.
        return None if "@" in parts.netloc else parts.hostname
    except ValueError:
        return None


async def read_body(receive: Receive, headers: Any, most_bytes: int) -> bytes:
    """The request's body; raises ApiError 413 as soon as it is, or says it is, longer than `most_bytes`."""
    too_long = ApiError(413, f"the body is longer than {most_bytes} bytes", code="body_too_large")
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > most_bytes:
        raise too_long
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client went away while it was sending", code="disconnected")
        content += message.get("body", b"")
        if len(content) > most_bytes:
            raise too_long
        if not message.get("more_body"):
            return bytes(content)
