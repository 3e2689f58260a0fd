"""One attempt at a request to a provider: what comes back, or a `ModelUnavailable` of one sentence. No retries."""

import contextlib
import json
import math
import re
import threading
import time
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple, cast

import httpcore
import httpx

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.llm.face import ModelUnavailable
from yunque.llm.network import BadProxy, BoundedTransport, OutOfTime, Stopped, bound, hasten, until
from yunque.llm.sse import MOST_BYTES_OF_AN_EVENT, EventParser, TooLong
from yunque.llm.under_way import under_way
from yunque.llm.wire import Reader, Unanswered

_MOST_BYTES = 16_000_000
_MOST_BYTES_OF_A_STREAM = 128_000_000
_MOST_BYTES_OF_AN_ERROR = 100_000
_AGAIN = frozenset((408, 409, 425, 429, *range(500, 600))) - {501, 505}
# A stream that has told its end is read on for a moment, so that its connection can serve the next call.
_MOMENT = 0.05
# Once an answer has told why it ended, what may follow is its usage and a mark.
_LAST_WORDS = 5.0
# A wait that was to end at a moment may end a little before it.
_JUST_ABOUT = 0.005

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# What a server hands to one call is no business of the next, which may be another person's.
_NO_COOKIES = DefaultCookiePolicy(allowed_domains=())

_Timeouts = (httpcore.TimeoutException, httpx.TimeoutException)
_Unreached = (httpcore.ConnectError, httpx.ConnectError, httpcore.ConnectTimeout, httpx.ConnectTimeout)
_Reading = (httpcore.ReadTimeout, httpcore.ReadError, httpcore.RemoteProtocolError)
_Broken = (httpcore.NetworkError, httpcore.ProtocolError, httpx.TransportError)


class Patience(Settings):
    """How long a server is waited for, in seconds: for a connection, for the next byte, for the whole answer.

    An answer that is not streamed is silent until it is written: its first byte may take as long as the whole.
    """

    connect: float = 5.0
    between_bytes: float = 60.0
    whole: float = 300.0


class Refused(Exception):
    """A reply that is no success: its status, its body (JSON, text or None), how long it asks to be left alone."""

    def __init__(self, status: int, body: object, after: float | None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.after = after
        self.again = status in _AGAIN


class WholeAnswer(NamedTuple):
    """What a server answers that does not stream, although it was asked to."""

    body: Any


class Alive:
    """An event that says nothing, but that somebody is there. A comment is none: a proxy makes them by itself."""


ALIVE = Alive()


class Transport:
    """Sends to one server, from any thread. `name` is the model's, for what is said to a user.

    Redirects are not followed: the key is for this server alone.
    """

    def __init__(
        self, base_url: str, name: str, on_this_machine: bool, patience: Patience | None = None
    ) -> None:
        self.base_url = base_url
        self.patience = patience or Patience()
        self._name = name
        self._on_this_machine = on_this_machine
        self._opening = threading.Lock()
        self._opened: httpx.Client | None = None

    @property
    def _client(self) -> httpx.Client:
        """Opened at the first call: reading the machine's certificates takes a while."""
        with self._opening:
            if self._opened is None:
                sender = BoundedTransport(self.base_url, self._on_this_machine)
                self._opened = httpx.Client(
                    transport=sender, follow_redirects=False, trust_env=False, cookies=CookieJar(_NO_COOKIES)
                )
            return self._opened

    def close(self) -> None:
        """Close the connections that are kept open."""
        with self._opening:
            opened, self._opened = self._opened, None
        if opened:
            opened.close()

    def whole(self, url: str, headers: dict[str, str], body: dict[str, Any] | None) -> Any:
        """The JSON that a request is answered with; `url` is a path after the base, or a whole address.

        Without a body it is a GET. Raises Refused and ModelUnavailable.
        """
        patience = self.patience.between_bytes if body is None else self.patience.whole
        with self._response(url, headers, body, patience) as (response, ends), until(ends):
            return self._json(response)

    def stream(
        self, path: str, headers: dict[str, str], body: dict[str, Any], reader: Reader
    ) -> Iterator[Any]:
        """The JSON of each event of the answer, until `reader` has its end; or one WholeAnswer. ALIVE in between.

        `[DONE]` is told as None. What comes later is passed over when the next is asked for, so that the connection
        can serve the next call; that takes a moment at most. Raises Refused at the first, and ModelUnavailable.
        """
        with self._response(path, headers, body, self.patience.between_bytes) as (response, ends):
            if _kind(response) == "application/json":
                with until(ends):
                    whole = WholeAnswer(self._json(response))
                yield whole
                return
            blocks = self._bytes(response, _MOST_BYTES_OF_A_STREAM)
            bound(response, ends)
            for event in self._events(blocks, reader):
                yield event
                if reader.finished:
                    ends = min(ends, time.monotonic() + _LAST_WORDS)
                    bound(response, ends)
            bound(response, min(ends, time.monotonic() + _MOMENT))
            with contextlib.suppress(ModelUnavailable, *_Timeouts, *_Broken):
                for _ in blocks:
                    pass

    def _events(self, blocks: Iterator[bytes], reader: Reader) -> Iterator[Any]:
        parser = EventParser()
        for block in blocks:
            try:
                found = parser.feed(block)
            except TooLong:
                most = MOST_BYTES_OF_AN_EVENT // 1_000_000
                raise self.unavailable(f"sent more than {most} MB in one event", sent=True) from None
            for data in found:
                event = self._event(data)
                yield event
                if event is None or reader.ended:
                    return

    def _event(self, data: bytes) -> Any:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise self.unavailable("streamed text that is not UTF-8", again=True, sent=True) from None
        if text == "[DONE]":
            return None
        if not text.strip():
            return ALIVE
        try:
            event = _loaded(text)
        except (ValueError, RecursionError):
            raise self.unavailable("streamed something that is not JSON", again=True, sent=True) from None
        # `null` is no end.
        return ALIVE if event is None else event

    def _json(self, response: httpx.Response) -> Any:
        blocks = self._bytes(response, _MOST_BYTES)
        content = next(blocks, b"")
        # It has begun: from now on a silence is one.
        hasten(response, self.patience.between_bytes)
        content += b"".join(blocks)
        try:
            return _loaded(content.decode())
        except (ValueError, RecursionError):
            what = "nothing" if not content.strip() else "something that is not JSON"
            raise self.unavailable(f"answered {what}", again=True, sent=True) from None

    @contextlib.contextmanager
    def _response(
        self, url: str, headers: dict[str, str], body: dict[str, Any] | None, first_byte: float
    ) -> Iterator[tuple[httpx.Response, float]]:
        """A successful response whose body was not read yet, and the moment at which to stop reading it.

        Its first byte may take `first_byte` seconds.

        The block may be left and entered again between two chunks, in another thread: `until` is for what it reads.
        """
        ends = time.monotonic() + self.patience.whole
        with self._clear_errors(ends):
            with until(ends):
                response = self._sent(url, headers, body, first_byte)
            with contextlib.closing(response):
                if not response.is_success:
                    hasten(response, self.patience.between_bytes)
                    with until(min(ends, time.monotonic() + self.patience.between_bytes)):
                        raise Refused(
                            response.status_code, self._body_of_error(response), _after(response.headers)
                        )
                if _kind(response) == "text/html":
                    raise self.unavailable(
                        "answered a web page: is its address right?", again=True, sent=True
                    )
                yield response, ends

    def _sent(
        self, url: str, headers: dict[str, str], body: dict[str, Any] | None, first_byte: float
    ) -> httpx.Response:
        patience = self.patience
        timeout = httpx.Timeout(patience.between_bytes, connect=patience.connect, read=first_byte)
        request = self._client.build_request(
            "GET" if body is None else "POST",
            url if "://" in url else self.base_url + url,
            content=None if body is None else _encoded(body),
            # Not packed: an answer is small, and what unpacks can be made to fill the memory.
            headers={"content-type": "application/json", "accept-encoding": "identity", **headers},
            timeout=timeout,
        )
        return self._client.send(request, stream=True)

    def _bytes(self, response: httpx.Response, most: int) -> Iterator[bytes]:
        """The body, unpacked if it is packed all the same; raises ModelUnavailable for more than `most`."""
        unpack = self._unpacking(response)
        count = 0
        # Not `iter_raw`: it counts and cuts what is whole already.
        for block in cast("httpx.SyncByteStream", response.stream):
            if unpack is not None:
                try:
                    block = unpack.decompress(block, most - count + 1)
                except zlib.error:
                    raise self.unavailable(
                        "answered something that cannot be unpacked", again=True, sent=True
                    ) from None
            count += len(block)
            if count > most:
                raise self.unavailable(f"sent more than {most // 1_000_000} MB", sent=True)
            yield block

    def _unpacking(self, response: httpx.Response) -> Any:
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed in ("", "identity"):
            return None
        if packed in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(wbits=47)
        raise self.unavailable(f"answered in a packing ({packed[:20]}) that it was not asked for")

    def _body_of_error(self, response: httpx.Response) -> object:
        """What stands in a refusal: JSON, or a short text, or None."""
        content = b""
        try:
            for block in self._bytes(response, _MOST_BYTES_OF_AN_ERROR):
                content += block
            return _loaded(content.decode())
        except (ValueError, RecursionError):
            html = _kind(response) == "text/html" or content.lstrip()[:1] == b"<"
            return None if html else content.decode("utf-8", errors="replace")
        except (ModelUnavailable, *_Timeouts, *_Broken):
            return None

    @contextlib.contextmanager
    def _clear_errors(self, ends: float) -> Iterator[None]:
        """Every error of the connection as one sentence."""
        try:
            yield
        except (*_Timeouts, *_Broken, *_Unreached) as error:
            raise self._disconnected(error, ends, _was_sent(error)) from None
        except BadProxy as error:
            raise self.unavailable(f"cannot be asked: {error}") from None
        except httpcore.ProxyError as error:
            # "407 Proxy Authentication Required", or what the proxy says of the way on.
            told = "".join(filter(str.isprintable, str(error)))[:60]
            raise self.unavailable(f"cannot be asked: the proxy answered {told}", told[:1] == "5") from None
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            httpcore.UnsupportedProtocol,
            UnicodeError,
            OSError,
        ) as error:
            # A host's name that is none, certificates that cannot be read.
            raise self.unavailable(f"cannot be asked ({type(error).__name__})") from None

    def _disconnected(self, error: Exception, ends: float, sent: bool) -> ModelUnavailable:
        kind = type(error).__name__
        if isinstance(error, Stopped) or self._stopped():
            return self.unavailable("was stopped", sent=sent)
        if isinstance(error, _Unreached):
            return self.unavailable(f"cannot be reached ({kind})", again=True)
        if isinstance(error, _Timeouts):
            return self.unavailable(self._too_slow(error, ends), again=True, sent=sent)
        return self.unavailable(f"broke the connection ({kind})", again=True, sent=sent)

    def _stopped(self) -> bool:
        call = under_way()
        return call is not None and call.stopped

    def _too_slow(self, error: Exception, ends: float) -> str:
        call = under_way()
        left = call.left() if call is not None else None
        if left is not None and left < _JUST_ABOUT:
            return "had not answered by the deadline"
        if isinstance(error, OutOfTime) or time.monotonic() >= ends - _JUST_ABOUT:
            return f"had not finished after {self.patience.whole:g} s"
        return f"was silent for {self.patience.between_bytes:g} s"

    def unavailable(
        self, what: str, again: bool = False, after: float | None = None, sent: bool = False
    ) -> ModelUnavailable:
        """That the model did something which is no answer; Unanswered where the request was `sent`."""
        return (Unanswered if sent else ModelUnavailable)(f"{self._name} {what}", again, after)


def _was_sent(error: Exception) -> bool:
    """Whether an error of the connection came when the request had been written."""
    return isinstance(error, _Reading) or getattr(error, "reading", False)


def _loaded(text: str) -> Any:
    """JSON, in which half of a surrogate pair is U+FFFD: it could not be written out again. Raises ValueError."""
    value = json.loads(text.removeprefix("\ufeff"))
    if "\\u" in text and _SURROGATE.search(text):
        told = json.dumps(value, ensure_ascii=False)
        value = json.loads(told.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise UserError("a request holds a number that JSON does not have (NaN or infinity)") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair is no text: U+FFFD stands for it.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _kind(response: httpx.Response) -> str:
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _after(headers: httpx.Headers) -> float | None:
    """Seconds to wait by `retry-after-ms` (OpenAI's) or `retry-after`: a number, or a date."""
    seconds = _number(headers.get("retry-after-ms"))
    if seconds is not None:
        return max(0.0, seconds / 1000)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is None and value is not None:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return None if seconds is None else max(0.0, seconds)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
