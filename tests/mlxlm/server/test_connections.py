"""Clients that are too slow, too many, or read nothing, against an application without a model."""

import contextlib
import os
import signal
import socket
import time
import urllib.request

import pytest
import uvicorn

from jaxlm.common.serving import connections
from jaxlm.common.serving.connections import Server
from tests.mlxlm.server.served_models import running_app

HEAD = b"HTTP/1.1\r\nHost: x\r\n"
LIMIT_S = 0.4


class App:
    """`/whole` reads the body, `/early` answers before it, `/large` sends far more than the buffers between two sockets
    hold, `/slow` sends one byte at a time."""

    def __init__(self):
        self.ended = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self._lifespan(receive, send)
        if scope["path"] == "/whole":
            while (message := await receive()).get("more_body"):
                pass
            if message["type"] == "http.disconnect":
                self.ended.append("disconnected")
                return None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/large":
            for _ in range(800):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        if scope["path"] == "/slow":
            for _ in range(20):
                await connections.asyncio.sleep(LIMIT_S / 5)
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})
        self.ended.append(scope["path"])

    async def _lifespan(self, receive, send):
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})


@pytest.fixture
def app():
    return App()


@pytest.fixture
def port(app, monkeypatch, capsys):
    for name in ("LONGEST_HEADERS_S", "LONGEST_STALL_S"):
        monkeypatch.setattr(connections, name, LIMIT_S)
    with running_app(lambda port: app) as port:
        yield port
    assert capsys.readouterr().err == ""


@contextlib.contextmanager
def connected(port, first=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(first)
        yield connection


def seconds_until_closed(connection, trickle=b""):
    """Return the time until the server closes a connection, while a byte is sent now and then; answers are dropped."""
    started = time.monotonic()
    connection.settimeout(LIMIT_S / 4)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - started < 10:
            try:
                if not connection.recv(65536):
                    break
            except TimeoutError:
                connection.sendall(trickle)
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("first", "trickle"),
    [
        (b"", b""),
        (b"GET / " + HEAD, b""),
        (b"GET / " + HEAD + b"X: ", b"x"),
        # Half a second request.
        (b"GET / " + HEAD + b"\r\nGET / " + HEAD + b"X: ", b"x"),
        # A body that goes on after its answer.
        (b"POST /early " + HEAD + b"Content-Length: 1000\r\n\r\n", b"x"),
    ],
)
def test_a_connection_that_sends_no_whole_request_is_closed(port, first, trickle):
    with connected(port, first) as connection:
        assert LIMIT_S / 2 < seconds_until_closed(connection, trickle) < 10 * LIMIT_S


def test_an_answer_may_take_longer_than_the_headers(port):
    with connected(port, b"GET /slow " + HEAD + b"Connection: close\r\n\r\n") as connection:
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.count(b"\r\nx\r\n") == 20


def test_a_connection_is_used_again(port):
    with connected(port) as connection:
        for _ in range(5):
            time.sleep(LIMIT_S / 2)
            connection.sendall(b"GET / " + HEAD + b"\r\n")
            assert b"end" in connection.recv(65536)


def test_a_client_that_reads_nothing_is_closed(port, app):
    with connected(port, b"GET /large " + HEAD + b"\r\n") as connection:
        deadline = time.monotonic() + 10
        while not app.ended and time.monotonic() < deadline:
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                connection.sendall(b"x")  # does not count as reading
        assert app.ended == ["/large"]  # the application was let go on
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 80_000_000  # and what nobody read is gone


def test_the_health_is_answered_among_any_number_of_half_requests(port, app, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 20)
    monkeypatch.setattr(connections, "LONGEST_HEADERS_S", 60)
    with contextlib.ExitStack() as stack:
        answered = stack.enter_context(connected(port, b"GET /slow " + HEAD + b"\r\n"))
        halves = (b"GET / " + HEAD, b"", b"POST /whole " + HEAD + b"Content-Length: 9\r\n\r\nx")
        for number in range(120):
            stack.enter_context(connected(port, halves[number % 3]))
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
                assert response.status == 200
        answered.settimeout(10)
        received = b""
        while b"end" not in received:  # what is being answered keeps its place
            received += (part := answered.recv(65536))
            assert part
    assert "disconnected" in app.ended


def test_a_second_signal_ends_the_process_at_once_unless_it_is_part_of_the_first(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    now = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    server = Server(uvicorn.Config(app=None), engine=None)
    server.handle_exit(signal.SIGHUP, None)
    now[0] += 0.05
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit, server.signal, left) == (True, False, signal.SIGHUP, [])
    now[0] += 2
    server.handle_exit(signal.SIGTERM, None)
    assert left == [128 + signal.SIGTERM]


def test_only_what_nohup_ignores_stays_ignored():
    ignored = (signal.SIGHUP, signal.SIGINT)  # by nohup, and by a script for what it starts in the background
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        server = Server(uvicorn.Config(app=None), engine=None)
        with server.capture_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == server.handle_exit
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
