"""What a client is told when its request is refused: OpenAI's error envelope."""

from typing import Any

from starlette.responses import JSONResponse


class RequestError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: what is wrong and how to mend it.
        code: OpenAI's machine-readable reason.
        param: the request's field at fault.
    """

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def envelope(self) -> dict[str, Any]:
        """The error as OpenAI's API words it."""
        return {"error": {"message": self.message, "type": self._kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The whole HTTP response."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
        return JSONResponse(self.envelope, self.status, headers)

    @property
    def _kind(self) -> str:
        if self.status >= 500:
            return "server_error"
        named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error")
