"""Checks of every request and websocket: Host, Origin, the token of the link or its cookie, the size of a body.

The link of the studio has a token. A browser that opens it gets a cookie and is sent to the same address without the
token, so that the token stays in no history that a page could read.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"
# Characters of a header, in messages.
_LONGEST_NAME = 100
_SECURITY_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
}


class Guard:
    """ASGI middleware in front of all routes.

    `hosts` are the accepted values of Host. With `key` None no token is asked for. `max_body_bytes` bounds uploads.
    `prefix` is the path at which a proxy shows the pages, which it passes on or takes off; the cookie is for that path.
    With `frame_ancestors` other sites may show the pages in a frame.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str],
        key: str | None,
        *,
        cookie: str = "jaxlm_studio",
        max_body_bytes: int = 1 << 20,
        prefix: str = "",
        frame_ancestors: bool = False,
    ):
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._key = key
        self._cookie = cookie
        self._session = None if key is None else session_of(key)
        self._max_body_bytes = max_body_bytes
        self._prefix = prefix
        self._headers = {
            name: value
            for name, value in _SECURITY_HEADERS.items()
            if not (frame_ancestors and name in (b"x-frame-options", b"cross-origin-opener-policy"))
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it: 401 without token and cookie, 403 from another site, 413 where too long."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = self._placed(scope)
        headers = Headers(scope=scope)
        problem = self._site_problem(headers)
        if problem is not None:
            await _refuse(scope, receive, send, 403, problem)
        elif scope["type"] == "http" and self._has_token(scope):
            await self._welcome(scope, receive, send)
        elif not self._has_session(headers):
            message = "Open the address that was printed at the start: its token is the key to these pages."
            await _refuse(scope, receive, send, 401, message)
        elif _body_bytes(headers) > self._max_body_bytes:
            most = f"{self._max_body_bytes:,}"
            await _refuse(
                scope, receive, send, 413, f"body: found {_body_bytes(headers):,} bytes, expected at most {most}"
            )
        else:
            await self._app(scope, self._bounded(receive), self._hardened(send))

    def _placed(self, scope: Scope) -> Scope:
        """Return a request with the prefix before its path, which a proxy may have taken off."""
        if not self._prefix:
            return scope
        path = scope["path"]
        if not f"{path}/".startswith(f"{self._prefix}/"):
            path = f"{self._prefix}/{path.lstrip('/')}"
        # A header of that name would put another prefix before this one.
        headers = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-prefix"]
        return {**scope, "root_path": self._prefix, "path": path, "headers": headers}

    def _site_problem(self, headers: Headers) -> str | None:
        """Return why a request may be one that another site has caused, None where it is not."""
        found = [host.lower() for host in headers.getlist("host")]
        if len(found) != 1 or found[0] not in self._hosts:
            shown = ", ".join(found)[:_LONGEST_NAME]
            return f"Host: found {shown or 'none'}, expected one of {', '.join(sorted(self._hosts))}"
        for origin in headers.getlist("origin"):
            if origin.lower() not in (f"http://{found[0]}", f"https://{found[0]}"):
                return f"Origin: found {origin[:_LONGEST_NAME]}, expected none or http://{found[0]}"
        return None

    def _has_token(self, scope: Scope) -> bool:
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get(TOKEN)
        return self._key is not None and given is not None and hmac.compare_digest(given.encode(), self._key.encode())

    def _has_session(self, headers: Headers) -> bool:
        if self._session is None:
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._session.encode())

    async def _welcome(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the cookie, and send the browser to the address without the token."""
        assert self._session is not None
        rest = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != TOKEN]
        # A path that begins with two slashes would be another host.
        path = "/" + scope["path"].lstrip("/\\")
        response = RedirectResponse(f"{path}{'?' + urlencode(rest) if rest else ''}", 303)
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path=self._prefix or "/")
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that ends a body without a length at the limit."""
        total = 0

        async def bounded() -> Message:
            nonlocal total
            message = await receive()
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self._max_body_bytes:
                    return {"type": "http.disconnect"}
            return message

        return bounded

    def _hardened(self, send: Send) -> Send:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers.items()]
            await send(message)

        return hardened


def session_of(key: str) -> str:
    """Return the value of the cookie that stands for a key."""
    return hmac.new(key.encode(), b"jaxlm studio session", hashlib.sha256).hexdigest()


def kept_key(path: Path) -> str:
    """Return the key of a file that only its owner reads; a new one where there is none.

    It is kept, so that the tabs of a studio that was started again go on.
    """
    try:
        found = path.read_text("ascii").strip()
        if len(found) >= 32:
            path.chmod(0o600)
            return found
    except (OSError, UnicodeDecodeError):
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    key = secrets.token_urlsafe(32)
    with open(path, "x", encoding="ascii", opener=_owner_only) as file:
        file.write(key)
    return key


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _body_bytes(headers: Headers) -> int:
    found = headers.get("content-length", "0")
    return int(found) if found.isdigit() else 0


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect, which is answered by a close: the server sends 403
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        return
    await PlainTextResponse(f"{message}\n", status)(scope, receive, send)
