"""The clients of soak.py: small, made of bare sockets, and not all of them well-behaved."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_PATIENCE = 120.0
_HANG_UPS = 0.2
_RUBBISH = 0.12


@dataclass(frozen=True)
class Prompt:
    """A prompt, the greedy answer that belongs to it, and how many tokens that has."""

    text: str
    length: int
    answer: str
    tokens: int


@dataclass
class Exchange:
    """One request. `complete` when its head was sent whole; `problem` says what was wrong with its answer."""

    kind: str
    complete: bool = True
    status: int = 0
    id: str = ""
    tokens: int = 0
    problem: str = ""
    seconds: float = 0.0


class Client:
    """Asks one thing after the other until its time is over."""

    def __init__(self, number: int, port: int, key: str, model: str, prompts: Sequence[Prompt]) -> None:
        self.done: list[Exchange] = []
        self._random = random.Random(number)
        self._port = port
        self._key = key
        self._model = model
        self._prompts = prompts

    async def run(self, until: float) -> None:
        """Ask until this moment (of time.monotonic)."""
        while time.monotonic() < until:
            begun = time.monotonic()
            exchange = await self._one()
            exchange.seconds = time.monotonic() - begun
            self.done.append(exchange)

    async def _one(self) -> Exchange:
        chance = self._random.random()
        exchange = Exchange("whole")
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
                try:
                    if chance < _RUBBISH:
                        await self._rubbish(exchange, reader, writer)
                    elif chance < _RUBBISH + _HANG_UPS:
                        await self._hang_up(exchange, reader, writer)
                    else:
                        await self._ask(exchange, reader, writer, stream=chance > 0.66)
                finally:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
        except TimeoutError:
            exchange.problem = f"no answer within {_PATIENCE:.0f} s"
        except (OSError, asyncio.IncompleteReadError) as error:
            exchange.problem = f"broken connection ({type(error).__name__})"
        return exchange

    def _head(
        self, length: int, extra: str = "", method: str = "POST", path: str = "/v1/completions"
    ) -> bytes:
        lines = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n{extra}\r\n"
        )
        return lines.encode()

    def _question(self, prompt: Prompt, stream: bool) -> bytes:
        asked = {
            "model": self._model,
            "prompt": prompt.text,
            "max_tokens": prompt.length,
            "temperature": 0,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        body = json.dumps(asked).encode()
        return self._head(len(body)) + body

    async def _ask(
        self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: bool
    ) -> None:
        prompt = self._random.choice(self._prompts)
        exchange.kind = "stream" if stream else "whole"
        writer.write(self._question(prompt, stream))
        body = await _response(exchange, reader)
        if exchange.status != 200:
            exchange.problem = f"status {exchange.status}: {body[:200]!r}"
            return
        try:
            text, exchange.tokens = _streamed(body) if stream else _whole(body)
        except (ValueError, KeyError, IndexError) as error:
            exchange.problem = f"{exchange.kind}: {type(error).__name__} in {body[-200:]!r}"
            return
        if text != prompt.answer:
            exchange.problem = f"{prompt.text!r} was answered with {text!r}, not {prompt.answer!r}"
        elif exchange.tokens != prompt.tokens:
            exchange.problem = f"{exchange.tokens} tokens were told, not {prompt.tokens}"

    async def _hang_up(
        self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Ask for a stream, read some of it or nothing, and go without a word."""
        exchange.kind = "hangs up"
        writer.write(self._question(self._random.choice(self._prompts), stream=True))
        await writer.drain()
        if self._random.random() < 0.7:
            await _read_head(exchange, reader)
            for _ in range(self._random.randint(0, 6)):
                await reader.readline()
        else:
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
        if self._random.random() < 0.5:
            writer.transport.abort()  # a reset, not an end

    async def _rubbish(
        self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send something that no client should, and want to be told so (4xx)."""
        exchange.kind = "rubbish"
        name, sent, complete, answered = self._random.choice(self._kinds_of_rubbish())
        exchange.complete = complete
        writer.write(sent)
        await writer.drain()
        if not answered:
            await asyncio.sleep(0.05)
            return
        body = await _response(exchange, reader)
        if not 400 <= exchange.status < 500:
            exchange.problem = f"{name} was answered with {exchange.status}"
        elif complete and set(json.loads(body)["error"]) != {"message", "type", "param", "code"}:
            exchange.problem = f"{name}: not OpenAI's shape: {body[:200]!r}"

    def _kinds_of_rubbish(self) -> list[tuple[str, bytes, bool, bool]]:
        """Name, bytes, whether the head is whole, and whether there is an answer to wait for."""
        asked = {"model": self._model, "prompt": "a", "max_tokens": 4}
        bodies = {
            "no JSON": b'{"model": ',
            "no UTF-8": b'{"model": "\xff\xfe"}',
            "deep JSON": b"[" * 50_000,
            "no object": b"[1, 2]",
            "half a surrogate": b'{"model": "\\ud800", "prompt": "a"}',
            "unknown model": json.dumps({**asked, "model": "nothing"}).encode(),
            "absurd length": json.dumps({**asked, "max_tokens": 10**9}).encode(),
            "absurd temperature": json.dumps({**asked, "temperature": "hot"}).encode(),
            "unknown field": json.dumps({**asked, "tempreature": 1}).encode(),
            "too long a prompt": json.dumps({**asked, "prompt": "maleta " * 2000}).encode(),
        }
        kinds = [(name, self._head(len(body)) + body, True, True) for name, body in bodies.items()]
        wrong_key = self._head(2).replace(self._key.encode(), b"yq-wrong") + b"{}"
        return [
            *kinds,
            ("wrong key", wrong_key, True, True),
            ("wrong method", self._head(0, method="DELETE"), True, True),
            ("wrong path", self._head(0, path="/v1/nothing"), True, True),
            ("no deadline", self._head(2, "X-Request-Timeout: soon\r\n") + b"{}", True, True),
            ("too long a body", self._head(50_000_000) + b"x", True, True),
            ("no HTTP", b"\x16\x03\x01 hello\r\n\r\n", False, True),
            ("too long a head", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, False, False),
            ("half a head", b"POST /v1/comp", False, False),
            ("half a body", self._head(100) + b'{"model"', True, False),
            ("nothing", b"", False, False),
        ]


async def _read_head(exchange: Exchange, reader: asyncio.StreamReader) -> bool:
    """Read status and id; whether the body comes in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    exchange.status = int(status.split()[1])
    headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
    exchange.id = headers.get("x-request-id", "")
    return headers.get("transfer-encoding") == "chunked"


async def _response(exchange: Exchange, reader: asyncio.StreamReader) -> bytes:
    """The whole body of a response, which ends with the connection."""
    chunked = await _read_head(exchange, reader)
    if not chunked:
        return await reader.read(-1)
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return body


def _whole(body: bytes) -> tuple[str, int]:
    answer = json.loads(body)
    return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]


def _streamed(body: bytes) -> tuple[str, int]:
    *events, done, rest = body.decode().split("\n\n")
    if done != "data: [DONE]" or rest:
        raise ValueError("the stream does not end as it should")
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(part["choices"][0]["text"] for part in parts if part["choices"])
    return text, parts[-1]["usage"]["completion_tokens"]
