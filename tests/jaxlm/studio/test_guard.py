import asyncio

import pytest

from jaxlm.studio.guard import Guard, kept_key, session_of

KEY = "k" * 40
HOST = "127.0.0.1:8090"


async def app(scope, receive, send):
    """Answer every request, and read its body."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    seen = [(b"x-root", scope.get("root_path", "").encode()), (b"x-path", scope["path"].encode())]
    seen += [(b"x-proxy", value) for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
    await send({"type": "http.response.start", "status": 200, "headers": seen})
    await send({"type": "http.response.body", "body": str(size).encode()})


def ask(path="/", query="", *, kind="http", body=(b"",), key=KEY, prefix="", **headers):
    """Return status and headers of an answer; of a websocket the type of the first message."""
    guard = Guard(app, [HOST, "localhost:8090"], key, max_body_bytes=100, prefix=prefix)
    sent, bodies = [], list(body)
    given = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": kind,
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value is not None],
    }

    async def receive():
        if kind == "websocket":
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": bodies.pop(0), "more_body": bool(bodies)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    if kind == "websocket":
        return sent[0]["type"], {}
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def cookie(value=None):
    return f"jaxlm_studio={session_of(KEY) if value is None else value}"


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8090"},
        {"host": None},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "http://127.0.0.1:8090.evil.example"},
    ],
)
def test_other_sites_are_refused_even_with_the_cookie(kind, headers):
    status, _ = ask(kind=kind, cookie=cookie(), **headers)
    assert status == ("websocket.close" if kind == "websocket" else 403)


@pytest.mark.parametrize("value", ["", "wrong", KEY, session_of("other")])
def test_without_the_right_cookie_nothing_is_shown(value):
    assert ask(cookie=cookie(value))[0] == 401
    assert ask(kind="websocket", cookie=cookie(value))[0] == "websocket.close"
    assert ask()[0] == 401


def test_the_token_gives_a_cookie_once_and_leaves_the_address():
    status, headers = ask("/run", f"path=a%2Fb&token={KEY}")
    assert status == 303 and headers["location"] == "/run?path=a%2Fb"
    given = headers["set-cookie"].lower()
    assert "httponly" in given and "samesite=strict" in given and KEY not in headers["set-cookie"]
    assert ask(cookie=headers["set-cookie"].partition(";")[0])[0] == 200


def test_a_wrong_token_gives_none_and_no_address_leads_elsewhere():
    assert ask("/", "token=wrong")[0] == 401
    status, headers = ask("//evil.example/", f"token={KEY}")
    assert status == 303 and headers["location"] == "/evil.example/"


def test_own_pages_and_sockets_pass():
    status, headers = ask(cookie=cookie(), origin=f"http://{HOST}")
    assert status == 200 and headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert ask(kind="websocket", cookie=cookie(), origin=f"http://{HOST}")[0] == "websocket.accept"
    assert ask(host="LOCALHOST:8090", cookie=cookie())[0] == 200


def test_a_demo_without_a_key_still_asks_for_host_and_origin():
    assert ask(key=None)[0] == 200
    assert ask(key=None, host="evil.example")[0] == 403


@pytest.mark.parametrize("path", ["/run", "/some/prefix/run"])
def test_behind_a_prefix_the_path_has_it_once(path):
    passed = ask(path, key=None, prefix="/some/prefix", x_forwarded_prefix="/other")[1]
    assert (passed["x-root"], passed["x-path"]) == ("/some/prefix", "/some/prefix/run") and "x-proxy" not in passed
    status, headers = ask(path, f"token={KEY}", prefix="/some/prefix")
    assert status == 303 and headers["location"] == "/some/prefix/run"
    assert "path=/some/prefix;" in headers["set-cookie"].lower() + ";"
    assert ask("/some/prefixes", key=None, prefix="/some/prefix")[1]["x-path"] == "/some/prefix/some/prefixes"


def test_uploads_are_bounded_with_and_without_a_length():
    assert ask(cookie=cookie(), content_length="101")[0] == 413
    assert ask(cookie=cookie(), body=[b"x" * 50, b"y" * 50])[0] == 200
    with pytest.raises(ConnectionResetError):
        ask(cookie=cookie(), body=[b"x" * 60, b"y" * 60])


def test_the_key_is_kept_for_its_owner_alone(tmp_path):
    key = kept_key(tmp_path / "state" / "key")
    assert kept_key(tmp_path / "state" / "key") == key and len(key) >= 32
    assert (tmp_path / "state" / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "state" / "key").write_text("short")
    assert len(kept_key(tmp_path / "state" / "key")) >= 32
