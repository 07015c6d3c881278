"""Errors in the form of OpenAI's API."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

log = logging.getLogger("uvicorn.error")
# Messages quote what was found; a request of a megabyte is not to come back whole.
LONGEST_MESSAGE = 500


class ApiError(Exception):
    """A request that is refused, with what the client is told."""

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
        """The error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = self._message if len(self._message) <= LONGEST_MESSAGE else f"{self._message[:LONGEST_MESSAGE]}..."
        return {"error": {"message": message, "type": kind, "param": self._param, "code": self._code}}

    def response(self) -> JSONResponse:
        """The answer to the request."""
        return JSONResponse(self.body(), self.status, self.headers)


def internal_error() -> ApiError:
    """What a client is told of a fault of ours: nothing of its inside."""
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for an `ApiError`."""
    assert isinstance(error, ApiError)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for an unknown route or a method that the route has not."""
    assert isinstance(error, HTTPException)
    served = ", ".join(route.path for route in request.app.routes)
    message = f"{request.method} {request.url.path[:100]}: {error.detail}; served are {served}"
    return ApiError(error.status_code, message, code="unknown_url", headers=error.headers).response()


async def answer_fault(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for anything else, which it raises again for the server's log."""
    return internal_error().response()
