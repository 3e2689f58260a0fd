"""The one line that every request leaves in the log, and its place in the metrics."""

import asyncio
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yunque.server.account import Account, answering
from yunque.server.errors import internal_error
from yunque.server.metrics import Metrics, known_method

log = logging.getLogger("yunque.server")

WENT_AWAY = 499
"""What stands for the status where a client went away before there was one (as in nginx's logs)."""


class AccessLog:
    """Logs method, route, status, milliseconds and the request's id, then whose key it came with, what it used and
    how it ended early: no address, no query, no header, no body.

    The route is the pattern that matched (`/v1/models/{name}`), for a path may hold anything; of a request that the
    gate turned away it is the part of the path that is ours (`/v1/models`). An exception that
    reached this far is a bug of ours: the log says where, the client gets OpenAI's error shape with status 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, running: set[Account]) -> None:
        self._app = app
        self._metrics = metrics
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        account = Account()
        status, ended = 0, False

        async def noting(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", account.id.encode())]
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body"))
            await send(message)

        async def listening() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not ended:
                account.gone = True
                account.remark = account.remark or "disconnected"
            return message

        self._running.add(account)
        try:
            with answering(account):
                await self._app(scope, listening, noting)
        except Exception as error:
            log.error("%s internal error: %s", account.id, _place(error))
            if not status:
                await internal_error().response()(scope, receive, noting)
        finally:
            self._running.discard(account)
            try:
                if not account.is_settled:
                    await asyncio.shield(asyncio.to_thread(account.settle))
            finally:
                self._note(account, scope, status)

    def _note(self, account: Account, scope: Scope, status: int) -> None:
        method = known_method(scope["method"])
        route = getattr(scope.get("route"), "path", account.route or "(unknown path)")
        seconds = time.monotonic() - account.started
        shown = status or WENT_AWAY
        metrics = self._metrics
        metrics.requests.labels(method, route, str(shown)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        metrics.prompt_tokens.inc(account.prompt_tokens)
        metrics.completion_tokens.inc(account.completion_tokens)
        if account.first_token_seconds is not None:
            metrics.first_token_seconds.observe(account.first_token_seconds)
        if shown == 429:
            metrics.refused.inc()
        if account.remark == "disconnected":
            metrics.disconnected.inc()
        said = [account.id]
        if account.key:
            said.append(f"key {account.key.id}")
        if account.prompt_tokens or account.completion_tokens:
            said.append(f"{account.prompt_tokens}+{account.completion_tokens} tokens")
        if account.remark:
            said.append(account.remark)
        log.info("%s %s %s %.0f ms %s", method, route, shown, 1000 * seconds, " ".join(said))


def _place(error: BaseException) -> str:
    """The kind of an exception and the line it came from; its message may quote what a client sent."""
    trace = error.__traceback__
    frames: list[str] = []
    while trace is not None:
        frames.append(f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__} at {' > '.join(frames[-4:])}"
