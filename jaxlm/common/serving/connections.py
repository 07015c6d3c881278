"""The connections of the server: how long they may take, how many there are, and how they end.

uvicorn alone waits for ever for the headers of a request, for a client that reads nothing, and for the rest of a body
that was answered before its end.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxlm.common.serving.engine import Engine

# Seconds for the headers of a request, and for a client to take the bytes that wait for it.
LONGEST_HEADERS_S = 10.0
LONGEST_STALL_S = 30.0
# With more than these the oldest one that has not sent a whole request is closed.
MOST_CONNECTIONS = 256
# Connections that wait to be accepted. All together stay below 1024, the open files that a process usually may have.
BACKLOG = 128
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds in which a second signal is part of the first: a terminal that closes sends two.
SAME_SIGNAL_S = 1.0
# Seconds that a stopping server still accepts connections, to answer them with 503, and then waits for its answers to
# be taken.
FAREWELL_S, GRACE_S = 0.3, 1.0


class Connection(H11Protocol):
    """One connection, closed when its client takes too long, or when others need its place."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = self.loop.time()

    @property
    def _is_idle(self) -> bool:
        """True between requests, and within the headers of one."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def rank(self) -> tuple[bool, float] | None:
        """The order in which connections lose their place: idle ones first; None if the server owes it an answer."""
        if self._is_idle or self.cycle.more_body:
            return not self._is_idle, self._idle_since
        return None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the time of the first request, and take the place of another connection if there are too many."""
        super().connection_made(transport)
        self._abort_after(LONGEST_HEADERS_S)
        others = [other for other in self.connections if isinstance(other, Connection) and not other.is_closing]
        if len(others) > MOST_CONNECTIONS:
            ranks = {other: rank for other in others if other is not self and (rank := other.rank)}
            if ranks:
                min(ranks, key=lambda other: ranks[other]).abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request; its headers have their time from the first byte on."""
        super().data_received(data)
        if not self._is_idle:
            if not self.flow.write_paused:
                self._cancel_timer()
        elif self._timer is None:
            self._abort_after(LONGEST_HEADERS_S)

    def pause_writing(self) -> None:
        """Wait for a client that does not read."""
        super().pause_writing()
        self._abort_after(LONGEST_STALL_S)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        self._cancel_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the client to read the last answer."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.is_closing:
            self._abort_after(LONGEST_STALL_S)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client never read the last answer."""
        super().timeout_keep_alive_handler()
        self._abort_after(LONGEST_STALL_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel_timer()
        super().connection_lost(exc)

    @property
    def is_closing(self) -> bool:
        """True once no more bytes are sent or read."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """Close the connection without waiting; a request in flight is told that its client has left."""
        self.transport.abort()

    def _abort_after(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, self.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """A server that ends its generations before it waits for the connections, which wait for an answer.

    SIGHUP, SIGINT and SIGTERM stop it alike. That takes seconds at most; a second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self._engine = engine
        self._stopped_at = 0.0
        self.signal: int | None = None
        """The signal that stopped the server."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, leave at the second."""
        if not self.should_exit:
            self.signal, self._stopped_at, self.should_exit = sig, time.monotonic(), True
        elif time.monotonic() - self._stopped_at > SAME_SIGNAL_S:
            os._exit(128 + sig)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take the signals while the server runs; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # What nohup ignores stays ignored. A script ignores SIGINT for what it starts with &, and may send it later.
        by_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        taken = [number for number in STOP_SIGNALS if not (by_nohup and number == signal.SIGHUP)]
        handlers = {number: signal.signal(number, self.handle_exit) for number in taken}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who waits or is about to ask with 503, then close the connections."""
        self._engine.stop()
        await asyncio.sleep(FAREWELL_S)
        asyncio.get_running_loop().call_later(GRACE_S, self._abort_all)
        await super().shutdown(sockets)

    def _abort_all(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.abort()


def server_settings(app: ASGIApp) -> uvicorn.Config:
    """Return the settings of uvicorn for an application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(2 * GRACE_S),
    )


def run(app: ASGIApp, engine: Engine, listener: socket.socket) -> None:
    """Serve until a signal. SIGINT is the normal end of a server; any other one is then passed on to the process."""
    server = Server(server_settings(app), engine)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if engine.is_alive:  # in a long step of a model: it must not meet the end of the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if server.signal in (None, signal.SIGINT) else 128 + server.signal)
    if server.signal not in (None, signal.SIGINT):
        signal.raise_signal(server.signal)
