"""Models behind any server that speaks OpenAI's API (OpenAI, vLLM, Ollama, llama-server, another Yunque)."""

import contextlib
import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import (
    Chunk,
    Completion,
    FinishReason,
    Message,
    ModelUnavailable,
    Prompt,
    ToolCallPart,
    Usage,
    joined_calls,
)
from yunque.llm.openai_form import asked_messages, asked_settings, told_calls
from yunque.llm.sse import events

_RETRIED_STATUS = (408, 409, 425, 429, 500, 502, 503, 504)
_RETRIED_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError)
_MOST_BYTES = 16_000_000
_MOST_BYTES_OF_AN_ERROR = 100_000


class Patience(Settings):
    """How long a server is waited for (seconds) and how often it is asked again.

    `between_bytes` is the longest silence, `whole` the longest answer. Before attempt n + 1 it waits a random part
    of `first_wait` * 2^n, or what the server's Retry-After says; more than `longest_wait` is not waited for.
    """

    connect: float = 5.0
    between_bytes: float = 60.0
    whole: float = 300.0
    attempts: int = 3
    first_wait: float = 0.5
    longest_wait: float = 20.0


class OpenAICompatibleModel:
    """The model `model` of the server at `base_url` (which ends in /v1).

    The key is read from the environment for each request: YUNQUE_API_KEY, else OPENAI_API_KEY, the latter only
    over https or to this machine. It goes to this server alone (redirects are not followed) and is in no message.

    `local` is False for an address of this machine too: where a server sends the text on to cannot be known.
    Every failure is a ModelUnavailable of one sentence. A server that does not tell its usage has it estimated, at
    one token for four bytes of UTF-8.
    """

    local = False

    def __init__(self, base_url: str, model: str, patience: Patience | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.name = f"{self.base_url}#{model}"
        self._patience = patience or Patience()
        host = urlsplit(base_url).hostname or ""
        self._on_this_machine = _is_loopback(host)
        # OpenAI's own newer models refuse the name that everyone else knows.
        self._length_field = "max_completion_tokens" if host == "api.openai.com" else "max_tokens"
        self._client = httpx.Client(
            timeout=httpx.Timeout(self._patience.between_bytes, connect=self._patience.connect),
            follow_redirects=False,
            # A proxy of the environment has no business with a call to this machine.
            trust_env=not self._on_this_machine,
        )

    @classmethod
    def from_url(cls, url: str, patience: Patience | None = None) -> "OpenAICompatibleModel":
        """Read `http://HOST[:PORT]/v1#MODEL`."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise UserError(f"{url!r} is not an address: write http://HOST:PORT/v1#MODEL") from None
        if parts.username is not None or parts.query:
            raise UserError("a model's address holds no password and no '?': put the key in YUNQUE_API_KEY")
        if not parts.hostname or not parts.fragment:
            raise UserError(f"{url!r} names no model: write http://HOST:PORT/v1#MODEL")
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path}", parts.fragment, patience)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        body = self._asked("/chat/completions", {"messages": asked_messages(messages)}, config)
        text, finish_reason, parts = self._understood(body, lambda choice: choice["message"]["content"] or "")
        prompt = "".join(message.content for message in messages)
        usage = _usage(body) or _estimated(prompt, text)
        return Completion(text, self.name, finish_reason, usage, joined_calls(parts))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text."""
        body = self._asked("/completions", {"prompt": _as_json(prompt)}, config)
        text, finish_reason, _ = self._understood(body, lambda choice: choice["text"])
        return Completion(text, self.name, finish_reason, _usage(body) or _estimated(prompt, text))

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece."""
        prompt = "".join(message.content for message in messages)
        asked = {"messages": asked_messages(messages)}
        return self._streamed(
            "/chat/completions", asked, prompt, config, lambda choice: choice["delta"].get("content") or ""
        )

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        asked = {"prompt": _as_json(prompt)}
        return self._streamed("/completions", asked, prompt, config, lambda choice: choice.get("text") or "")

    def _asked(self, path: str, asked: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
        with self._response(path, self._body(asked, config)) as (response, deadline):
            content = b"".join(self._bytes(response, deadline))
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise self._unavailable("answered something that is not JSON") from None
        if not isinstance(body, dict):
            raise self._unavailable("answered JSON that is not a completion")
        return body

    def _understood(
        self, body: dict[str, Any], text_of: Callable[[Any], object]
    ) -> tuple[str, FinishReason, tuple[ToolCallPart, ...]]:
        try:
            choice = body["choices"][0]
            text = text_of(choice)
            parts = told_calls(choice.get("message") or choice.get("delta") or {})
            finish_reason = _finish_reason(choice.get("finish_reason"))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self._unavailable("answered JSON that is not a completion") from None
        if not isinstance(text, str):
            raise self._unavailable("answered JSON that is not a completion")
        return text, finish_reason, parts

    def _streamed(
        self,
        path: str,
        asked: dict[str, Any],
        prompt: Prompt,
        config: GenerationConfig,
        text_of: Callable[[Any], object],
    ) -> Iterator[Chunk]:
        wanted = {"stream": True, "stream_options": {"include_usage": True}}
        written: list[str] = []
        usage: Usage | None = None
        finish_reason: FinishReason | None = None
        with self._response(path, {**self._body(asked, config), **wanted}) as (response, deadline):
            for data in events(self._bytes(response, deadline)):
                if data == "[DONE]":
                    break
                part = self._part(data)
                usage = _usage(part) or usage
                if not part.get("choices"):
                    continue
                text, said, calls = self._understood(part, text_of)
                if part["choices"][0].get("finish_reason"):
                    finish_reason = said
                if text or calls:
                    written.append(text)
                    yield Chunk(text, tool_calls=calls)
        if finish_reason is None:
            raise self._unavailable("broke off in the middle of its answer")
        yield Chunk("", finish_reason, usage or _estimated(prompt, "".join(written)), self.name)

    def _part(self, data: str) -> dict[str, Any]:
        try:
            part = json.loads(data)
        except (ValueError, RecursionError):
            raise self._unavailable("streamed something that is not JSON") from None
        if not isinstance(part, dict):
            raise self._unavailable("streamed JSON that is not a completion")
        if part.get("error"):
            raise self._unavailable(f"broke off with an error{self._told(part)}")
        return part

    def _body(self, asked: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
        """The request in OpenAI's names."""
        length = {self._length_field: config.max_new_tokens}
        return {"model": self.model, **length, **asked_settings(config), **asked}

    @contextlib.contextmanager
    def _response(self, path: str, body: dict[str, Any]) -> Iterator[tuple[httpx.Response, float]]:
        """A successful response whose body was not read yet, and the moment at which to stop reading it."""
        deadline = time.monotonic() + self._patience.whole
        with contextlib.closing(self._first_success(path, body)) as response:
            try:
                yield response, deadline
            except httpx.TimeoutException:
                raise self._unavailable(f"was silent for {self._patience.between_bytes:g} s") from None
            except httpx.HTTPError as error:
                raise self._unavailable(f"broke the connection ({type(error).__name__})") from None

    def _first_success(self, path: str, body: dict[str, Any]) -> httpx.Response:
        for attempt in range(self._patience.attempts):
            last = attempt + 1 == self._patience.attempts
            wait = random.uniform(0, self._patience.first_wait * 2**attempt)
            try:
                request = self._client.build_request(
                    "POST", self.base_url + path, json=body, headers=self._headers()
                )
                response = self._client.send(request, stream=True)
                if response.is_success:
                    return response
                with contextlib.closing(response):
                    told = self._told_by(response)
            except _RETRIED_ERRORS as error:
                if last:
                    raise self._unavailable(f"cannot be reached ({type(error).__name__})") from None
                time.sleep(wait)
                continue
            except httpx.TimeoutException:
                # It got the request and may still be at it: asking again would make it worse.
                raise self._unavailable(f"was silent for {self._patience.between_bytes:g} s") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._unavailable(f"cannot be asked ({type(error).__name__})") from None
            if response.status_code not in _RETRIED_STATUS or last:
                raise self._unavailable(_meaning(response.status_code) + told)
            after = _retry_after(response.headers.get("retry-after"))
            if after is not None and after > self._patience.longest_wait:
                raise self._unavailable(
                    f"asks to wait for {after:.0f} s (status {response.status_code}){told}"
                )
            time.sleep(wait if after is None else after)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _bytes(self, response: httpx.Response, deadline: float) -> Iterator[bytes]:
        count = 0
        for block in response.iter_bytes():
            count += len(block)
            if count > _MOST_BYTES:
                raise self._unavailable(f"sent more than {_MOST_BYTES // 1_000_000} MB")
            if time.monotonic() > deadline:
                raise self._unavailable(f"had not finished after {self._patience.whole:g} s")
            yield block

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str:
        key = os.environ.get("YUNQUE_API_KEY", "")
        if not key and (self._on_this_machine or self.base_url.startswith("https:")):
            key = os.environ.get("OPENAI_API_KEY", "")
        key = key.strip()
        if not key.isascii() or not key.isprintable():
            raise UserError(
                "the API key in YUNQUE_API_KEY or OPENAI_API_KEY holds characters that no key has"
            )
        return key

    def _told_by(self, response: httpx.Response) -> str:
        content = b""
        try:
            for block in response.iter_bytes():
                content += block
                if len(content) > _MOST_BYTES_OF_AN_ERROR:
                    return ""
            return self._told(json.loads(content))
        except (ValueError, RecursionError, httpx.HTTPError):
            return ""

    def _told(self, body: object) -> str:
        """The server's own words about an error, in one short line and without our key."""
        error = body.get("error") if isinstance(body, dict) else None
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str) or not message.strip():
            return ""
        line = " ".join(message.split())
        if key := self._key():
            line = line.replace(key, "(key)")
        return ": " + (line if len(line) <= 300 else line[:299] + "…")

    def _unavailable(self, what: str) -> ModelUnavailable:
        return ModelUnavailable(f"{self.name} {what}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _as_json(prompt: Prompt) -> str | list[int]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _finish_reason(value: object) -> FinishReason:
    if value == "tool_calls":
        return "tool_calls"
    return "length" if value == "length" else "stop"


def _usage(body: dict[str, Any]) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens", 0))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Usage(*counts)  # type: ignore[arg-type]  # checked in the line above


def _estimated(prompt: Prompt, answer: str) -> Usage:
    asked = -(-len(prompt.encode()) // 4) if isinstance(prompt, str) else len(prompt)
    return Usage(asked, -(-len(answer.encode()) // 4))


def _meaning(status: int) -> str:
    if status in (401, 403):
        return f"refused the API key (status {status}; set YUNQUE_API_KEY)"
    if status == 404:
        return "does not know this model, or has no such API (status 404)"
    if 300 <= status < 400:
        return f"wants to send us elsewhere (status {status}); use the address it moved to"
    return f"answered with status {status}"


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header: a number, or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
