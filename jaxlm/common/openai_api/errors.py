"""Errors in the form of OpenAI's API."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Scope

log = logging.getLogger("uvicorn.error")
# Characters. Messages quote the request, which may be a megabyte long.
LONGEST_MESSAGE, LONGEST_PATH = 500, 100


class ApiError(Exception):
    """A refusal of a request: HTTP status, and the error object for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.headers = headers
        self._message, self._param, self._code = message, param, code

    def body(self) -> dict[str, Any]:
        """Return the error object, in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = self._message if len(self._message) <= LONGEST_MESSAGE else f"{self._message[:LONGEST_MESSAGE]}..."
        return {"error": {"message": message, "type": kind, "param": self._param, "code": self._code}}

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.body(), self.status, self.headers)


def internal_error() -> ApiError:
    """Return the error for a fault of the server; it tells the client no details."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an `ApiError`; a handler of Starlette."""
    assert isinstance(error, ApiError)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unknown route, or a method that the route does not allow; a handler of Starlette."""
    assert isinstance(error, HTTPException)
    served = ", ".join(route.path for route in request.app.routes)
    message = f"{request.method} {shown_path(request.scope)}: {error.detail}; served are {served}"
    return ApiError(error.status_code, message, code="unknown_url", headers=error.headers).response()


def shown_path(scope: Scope) -> str:
    """Return the path as it was sent, in printable ASCII and without the query, which may hold secrets."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in raw)
    return path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}..."


async def answer_fault(request: Request, error: Exception) -> JSONResponse:
    """Answer any other exception; a handler of Starlette, which raises the exception again for the server's log."""
    return internal_error().response()
