import os
import signal
import threading
import time

import pytest

from jaxlm.common.run.stop_request import SIGNALS, StopRequest, StopRequested


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_and_a_second_one_acts_as_ever(number):
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        with StopRequest() as stop:
            stop.check()
            os.kill(os.getpid(), number)
            assert stop.requested == signal.Signals(number).name
            with pytest.raises(StopRequested, match=signal.Signals(number).name):
                stop.check()
            assert not received
            os.kill(os.getpid(), number)
            assert received == [number]
    finally:
        signal.signal(number, before)


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
