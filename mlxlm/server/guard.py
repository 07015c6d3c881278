"""Checks of every request, on all routes: Host, Origin and key.

A web page of another site can make a browser send requests to this server. Its Origin shows it, or its Host if the
site's name resolves to this machine (DNS rebinding).
"""

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mlxlm.server.errors import ApiError

OPEN_ROUTE = "/health"


class Guard:
    """ASGI middleware that refuses requests of other sites, and requests without the key.

    `hosts` are the accepted values of Host. Every route but `/health` needs the key.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], api_key: str | None):
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401 or 403."""
        if scope["type"] != "http":  # start and stop of the server; it has no WebSockets
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope), scope["path"])
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        found = [host.lower() for host in headers.getlist("host")]
        if len(found) != 1 or found[0] not in self._hosts:
            expected = ", ".join(sorted(self._hosts))
            raise ApiError(
                403, f"Host: found {', '.join(found) or 'none'}, expected one of {expected}", code="bad_host"
            )
        for origin in headers.getlist("origin"):
            if origin.lower() != f"http://{found[0]}":
                raise ApiError(403, f"Origin: found {origin}, expected none or http://{found[0]}", code="bad_origin")
        if self._authorization is not None and path != OPEN_ROUTE:
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._authorization):
                message = "Authorization: found no valid key, expected 'Bearer' and the key of this server"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def host_names(port: int, names: Collection[str]) -> list[str]:
    """Return the values of Host that clients of this port send, for the local names and for `names`.

    An IPv6 address is in brackets. Port 80 may be left out.
    """
    bracketed = (f"[{name}]" if ":" in name and not name.startswith("[") else name for name in names)
    allowed = dict.fromkeys(("localhost", "127.0.0.1", "[::1]", *bracketed))
    return [*(f"{name}:{port}" for name in allowed), *(allowed if port == 80 else ())]
