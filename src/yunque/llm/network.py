"""Connections that know until when a call may take, and that another thread can break off.

`httpx` knows the longest silence, not the longest answer: a server that sends a byte a second would be listened to
for ever. Here every wait on a socket is as long as the silence allowed or what is left of the call, if that is less.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from yunque.llm.under_way import UnderWay, under_way

_ENDS: ContextVar[float | None] = ContextVar("yunque_attempt_ends", default=None)


_KEEP_ALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]


class OutOfTime(httpcore.TimeoutException):
    """The whole attempt took too long, or the call's deadline passed. `reading`: an answer was waited for."""

    reading = False


class Stopped(httpcore.NetworkError):
    """The call was stopped by another thread. `reading`: an answer was waited for."""

    reading = False


class BadProxy(Exception):
    """The proxy that the environment names cannot be used; the message says why, without its password."""


@contextlib.contextmanager
def until(ends: float) -> Iterator[None]:
    """The waits in the block end at this `time.monotonic()` at the latest."""
    token = _ENDS.set(ends)
    try:
        yield
    finally:
        _ENDS.reset(token)


def bound(response: httpx.Response, ends: float) -> None:
    """Let what is still read of a response end at this moment, however many steps it is read in."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Stream):
        stream.ends = ends


def hasten(response: httpx.Response, silence: float) -> None:
    """Let no wait for more of this response take longer than `silence` seconds, whatever its first byte was given."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Stream):
        stream.silence = silence


def _wait(timeout: float | None, ends: float | None = None) -> tuple[float | None, UnderWay | None]:
    """How long a wait may take now, and the call that it is for; raises OutOfTime or Stopped."""
    call = under_way()
    said = _ENDS.get()
    ends = ends if said is None else said
    if call is not None:
        if call.stopped:
            raise Stopped("stopped")
        left = call.left()
        if left is not None and (timeout is None or left < timeout):
            timeout = left
    if ends is not None:
        left = ends - time.monotonic()
        if timeout is None or left < timeout:
            timeout = left
    if timeout is not None and timeout <= 0:
        raise OutOfTime("out of time")
    return timeout, call


class _Stream(httpcore.NetworkStream):
    """A connection whose waits are bounded by the call that uses it.

    `ends` bounds those in which no `until` is said: the steps of a stream, which others take at their leisure.
    `silence` bounds each wait for what is read, until something is written: the next request.
    """

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self.ends: float | None = None
        self.silence: float | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.silence is not None:
            timeout = self.silence if timeout is None else min(timeout, self.silence)
        try:
            timeout, call = _wait(timeout, self.ends)
        except (OutOfTime, Stopped) as error:
            error.reading = True
            raise
        if call is None:
            return self._inner.read(max_bytes, timeout)
        with call.stopping(self._break):
            return self._inner.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.silence = None
        timeout, call = _wait(timeout)
        if call is None:
            return self._inner.write(buffer, timeout)
        with call.stopping(self._break):
            return self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout, call = _wait(timeout)
        with call.stopping(self._break) if call else contextlib.nullcontext():
            return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)

    def _break(self) -> None:
        """Wake whoever waits on the socket, from another thread."""
        opened = self._inner.get_extra_info("socket")
        if isinstance(opened, socket.socket):
            # Not the method of an SSLSocket, which takes the session from under the thread that reads.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(opened, socket.SHUT_RDWR)


class _Network(httpcore.NetworkBackend):
    """Opens such connections."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        timeout, _ = _wait(timeout)
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)

    def close(self) -> None:
        self._inner.close()


class BoundedTransport(httpx.BaseTransport):
    """`httpx`'s way of sending, over such connections, which are kept open between calls.

    A proxy of the environment is used for hosts that are not this machine. Raises httpcore's errors.
    """

    def __init__(self, base_url: str, on_this_machine: bool) -> None:
        settings: dict[str, Any] = {
            "max_connections": None,
            "max_keepalive_connections": 64,
            "keepalive_expiry": 30.0,
            "network_backend": _Network(),
            # The first byte may take minutes: who went away meanwhile without a word is noticed so.
            "socket_options": _KEEP_ALIVE,
        }
        parts = urlsplit(base_url)
        if parts.scheme == "https":
            settings["ssl_context"] = httpx.create_ssl_context()
        proxy = None if on_this_machine else _proxy(parts.scheme, parts.hostname or "")
        if proxy:
            self._pool: httpcore.ConnectionPool = httpcore.HTTPProxy(**proxy, **settings)
        else:
            self._pool = httpcore.ConnectionPool(**settings)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it; the body of the response is read later."""
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response.stream),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()


def _proxy(scheme: str, host: str) -> dict[str, Any] | None:
    """The proxy that the environment names for a host, if any, with its password apart; raises BadProxy.

    One that cannot be used is never passed by: the call would go out where nobody wanted it to.
    """
    address = getproxies().get(scheme) or getproxies().get("all")
    if not address or proxy_bypass(host):
        return None
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        port, name = parts.port, parts.hostname
    except ValueError:
        port, name = None, None
    if not name:
        raise BadProxy(f"{scheme}_proxy is not an address: write http://HOST:PORT")
    if parts.scheme not in ("http", "https"):
        raise BadProxy(
            f"the environment names a {parts.scheme} proxy, and only http and https ones are known: "
            "name one of these, or put the host into no_proxy"
        )
    url = f"{parts.scheme}://{f'[{name}]' if ':' in name else name}"
    url += f":{port or (443 if parts.scheme == 'https' else 80)}"
    if parts.username is None:
        return {"proxy_url": url, "proxy_auth": None}
    # What an address cannot hold is written as %40 in it.
    return {
        "proxy_url": url,
        "proxy_auth": (unquote(parts.username).encode(), unquote(parts.password or "").encode()),
    }
