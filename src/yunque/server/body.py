"""Reading the body of a request, from clients that send too much, too slowly or not at all."""

import asyncio
from typing import Any

from starlette.types import Receive

from yunque.server.errors import ApiError

BODY_SECONDS = 60.0
SILENT_SECONDS = 15.0


async def read_body(
    receive: Receive,
    headers: Any,
    most_bytes: int,
    seconds: float = BODY_SECONDS,
    silent_seconds: float = SILENT_SECONDS,
) -> bytes:
    """The request's body.

    Raises ApiError 413 as soon as it is, or says it is, longer than `most_bytes`, and 408 when it is not here after
    so many `seconds`, or nothing came for `silent_seconds`.
    """
    too_long = ApiError(413, f"the body is longer than {most_bytes} bytes", code="body_too_large")
    announced = headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:20]) > most_bytes:
        raise too_long
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await asyncio.wait_for(receive(), silent_seconds)
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the client went away while it was sending", code="disconnected")
                content += message.get("body", b"")
                if len(content) > most_bytes:
                    raise too_long
                if not message.get("more_body"):
                    return bytes(content)
    except TimeoutError:
        raise ApiError(408, "the body was not sent in time", code="request_timeout") from None
