"""Checks of every request, on all routes: Host, Origin and key.

A web page of another site can make a browser send requests to this server. Its Origin shows it, or its Host if the
site's name resolves to this machine (DNS rebinding).
"""

import hmac
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxlm.common.openai_api.errors import ApiError

OPEN_ROUTE = "/health"
LONGEST_NAME = 100  # characters of a header, in messages


class Guard:
    """ASGI middleware that refuses requests of other sites, and requests without the key.

    `hosts` are the accepted values of Host, and pages of `origins` may use the server (CORS). Every route but `/health`
    needs the key, and so does every request but those in which a browser asks what a page may do.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], api_key: str | None, origins: Collection[str] = ()):
        self._app = app if api_key is None else _KeyCheck(app, api_key)
        if origins:
            self._app = CORSMiddleware(
                self._app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",)
            )
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401 or 403."""
        if scope["type"] == "http":  # the others are start and stop of the server; it has no WebSockets
            try:
                self._check(Headers(scope=scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        found = [host.lower() for host in headers.getlist("host")]
        if len(found) != 1 or found[0] not in self._hosts:
            shown = ", ".join(found)[:LONGEST_NAME]
            message = (
                f"Host: found {shown or 'none'}, expected one of {', '.join(sorted(self._hosts))}; if clients call "
                f"this server so, start it with --allowed_hosts {shown or 'NAME'}"
            )
            raise ApiError(403, message, code="bad_host")
        for origin in headers.getlist("origin"):
            if origin not in self._origins and origin.lower() != f"http://{found[0]}":
                shown = origin[:LONGEST_NAME]
                message = (
                    f"Origin: found {shown}, expected none or http://{found[0]}; if pages of that site may use this "
                    f"server, start it with --allowed_origins {shown}"
                )
                raise ApiError(403, message, code="bad_origin")


class _KeyCheck:
    """ASGI middleware that refuses requests without the key, but for `/health`."""

    def __init__(self, app: ASGIApp, api_key: str):
        self._app = app
        self._authorization = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != OPEN_ROUTE:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._authorization):
                message = "Authorization: found no valid key, expected 'Bearer' and the key of this server"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def host_names(port: int, names: Collection[str]) -> list[str]:
    """Return the values of Host that clients of this port send, for the local names and for `names`.

    An IPv6 address is in brackets. Each of `names` may also name the port of a proxy, as in `server:80`; without one it
    is accepted with this port, and without a port, as proxies pass it on. Local names leave out port 80 only.
    """
    local, found = ("localhost", "127.0.0.1", "[::1]"), list[str]()
    for name in map(_bracketed, names):
        has_port = re.search(r"[^:]:\d+$", name) is not None
        found += [name] if has_port else [f"{name}:{port}"] if name in local else [f"{name}:{port}", name]
    found += [f"{name}:{port}" for name in local]
    return list(dict.fromkeys([*found, *(local if port == 80 else ())]))


def _bracketed(name: str) -> str:
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name


def origin_names(names: Collection[str]) -> list[str]:
    """Return the values of Origin for the sites that may use the server. Raises ValueError on what is no site."""
    found = [name.strip().rstrip("/").lower() for name in names]
    for name in found:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", name):
            raise ValueError(
                f"allowed_origins: found {name!r}, expected sites such as http://localhost:3000; * and null would let "
                f"every page on the internet use the model"
            )
    return found
