"""The body of a request: untrusted JSON of a bounded size, and the checks of its fields."""

import asyncio
import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from jaxlm.common.openai_api.errors import ApiError
from shared_tokenizer.tokenizers.tokenizer import check_unicode

LONGEST_BODY_S = 30.0
MOST_LEVELS = 32


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the bytes of a JSON body. Raises ApiError if it has another type, is too large or comes too slowly."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"Content-Type: found {kind or 'none'}, expected application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(LONGEST_BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise ApiError(413, f"body: found more than {max_bytes} bytes, this server's limit")
    except TimeoutError:
        raise ApiError(408, f"body: found no end after {LONGEST_BODY_S:g} s") from None
    except ClientDisconnect:
        raise ApiError(499, "the client closed the request", code="cancelled") from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises ApiError on anything else, and on text that is not valid Unicode."""
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        _check_value(value, MOST_LEVELS)
    except RecursionError:
        raise _nested_too_deeply() from None
    except ValueError as error:
        raise ApiError(400, f"body: found no valid JSON in UTF-8: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"body: found a JSON {type(value).__name__}, expected an object")
    return value


def _check_value(value: object, levels: int) -> None:
    """Raise an error if the value is nested too deeply for later code, or holds text that UTF-8 cannot express."""
    if levels == 0:
        raise _nested_too_deeply()
    if isinstance(value, str):
        check_unicode(value)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, levels - 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_unicode(name)
            _check_value(item, levels - 1)


def _nested_too_deeply() -> ApiError:
    return ApiError(400, f"body: found JSON of more than {MOST_LEVELS} levels, this server's limit")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def refuse(name: str, found: object, expected: str, code: str | None = None) -> ApiError:
    """Return the error for the value of a field."""
    shown = repr(found)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return ApiError(400, f"{name}: found {shown}, expected {expected}", param=name, code=code)


class Fields:
    """The fields of an object that are still to be read; a null field counts as absent."""

    def __init__(self, content: dict[str, Any]):
        self._content = {name: value for name, value in content.items() if value is not None}

    def take(self, name: str) -> Any:
        """Remove and return a field, or None if it is absent."""
        return self._content.pop(name, None)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Take a number within bounds; true and false are not numbers. Raises ApiError on anything else."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int | None, *, unset: int | None = None) -> int | None:
        """Take a whole number within bounds, or None if it is absent or `unset`. Raises ApiError on anything else.

        JSON has one kind of number, so 16.0 is 16. `high` None sets no bound.
        """
        value = self.take(name)
        if value is None:
            return None
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if unset is not None and whole == unset:
            return None
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        if isinstance(whole, bool) or not isinstance(whole, int) or whole < low or (high is not None and whole > high):
            also = f", or {unset}" if unset is not None else ""
            raise refuse(name, value, f"a whole number {bounds}{also}")
        return whole

    def flag(self, name: str) -> bool:
        """Take true or false; absent is false. Raises ApiError on anything else."""
        value = self.take(name)
        if not isinstance(value, bool | None):
            raise refuse(name, value, "true or false")
        return bool(value)

    @property
    def rest(self) -> dict[str, Any]:
        """The fields that were not taken."""
        return self._content
