import errno
import os
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from jaxlm.common.run.output_guard import GuardedStream
from jaxlm.common.run.stop_request import SIGNALS, StopRequest, StopRequested


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_and_a_later_one_acts_as_ever_after_a_grace_time(number, monkeypatch):
    received, now = [], [100.0]
    monkeypatch.setattr("jaxlm.common.run.stop_request.time.monotonic", lambda: now[0])
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        with StopRequest(grace_seconds=30) as stop:
            stop.check()
            os.kill(os.getpid(), number)
            assert stop.requested == signal.Signals(number).name
            with pytest.raises(StopRequested, match=signal.Signals(number).name):
                stop.check()
            for now[0] in (100.0, 100.05, 129.9):  # the run is being saved
                for again in SIGNALS:
                    os.kill(os.getpid(), again)
            assert not received and stop.requested == signal.Signals(number).name
            now[0] = 130.0
            os.kill(os.getpid(), number)
            assert received == [number]
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == "SIGTERM"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Closed:
    """A stream whose reader has gone."""

    def __init__(self, number):
        self.number, self.writes = number, 0

    def write(self, text):
        self.writes += 1
        raise OSError(self.number, os.strerror(self.number))

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))

    def fileno(self):
        raise OSError(errno.EBADF, "no descriptor")


@pytest.mark.parametrize(
    ("number", "name"), [(errno.EPIPE, "SIGPIPE"), (errno.EIO, "SIGHUP"), (errno.ENOSPC, "SIGPIPE")]
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_dead_output_is_a_request_and_no_error(monkeypatch, number, name, stream):
    monkeypatch.setattr(sys, stream, closed := Closed(number))
    with StopRequest() as stop:
        Console(file=getattr(sys, stream), force_terminal=True).print("a line")  # rich ends the program on EPIPE
        print("another", file=getattr(sys, stream), flush=True)
        assert stop.requested == name and closed.writes > 0
    assert getattr(sys, stream) is closed


def test_a_pipe_without_a_reader_is_read_by_nobody_from_then_on():
    reader, writer = os.pipe()
    os.close(reader)
    requested = []
    with open(writer, "w") as file:
        guarded = GuardedStream(file, requested.append)
        guarded.write("a line\n")
        guarded.flush()
        assert requested == ["SIGPIPE"]
        os.write(writer, b"written by a library\n")  # to /dev/null, without SIGPIPE
        guarded.write("more\n")
        guarded.flush()
    assert requested == ["SIGPIPE"]


def test_work_is_watched_and_left_when_a_stop_comes():
    release = threading.Event()
    with StopRequest() as stop:
        assert stop.watch(lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            stop.watch(lambda: 1 / 0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        start = time.monotonic()
        with pytest.raises(StopRequested):
            stop.watch(lambda: release.wait(30))
        assert time.monotonic() - start < 10  # not the 30 s of the work
    release.set()
