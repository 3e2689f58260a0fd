"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error; `message` is for the client to read, `headers` for its program."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        if self.code == "insufficient_quota":
            kind = "insufficient_quota"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        usual = {
            401: {"WWW-Authenticate": "Bearer"},
            429: {"Retry-After": "1"},
            503: {"Retry-After": "1"},
            408: {"Connection": "close"},
            413: {"Connection": "close"},
        }
        return JSONResponse(self.body(), self.status, {**usual.get(self.status, {}), **self.headers})


def internal_error() -> ApiError:
    """What a client learns of a bug of ours: nothing but that it is one."""
    return ApiError(500, "the server failed on this request; its log says where", code="internal_error")
