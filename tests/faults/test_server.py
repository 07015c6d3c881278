"""A small attack on the server; and the attacks notice what goes wrong."""

import random

import pytest

from tests.faults import server
from tests.faults.server import ATTACKS, _expect, _first_status, _one, attack


def test_a_server_survives_a_small_attack():
    found = attack(requests=200, seed=0)
    assert found["unexpected"] == 0, found["shown"]
    assert found["requests"] == 200 == sum(found["answers"].values())
    assert {"200", "400", "403", "404"} <= set(found["answers"])
    assert sum(found["farewell"]["answers"].values()) == 8


def test_an_answer_that_is_not_right_is_noticed():
    for status, body in ((500, b""), (503, b"Service Unavailable"), (502, b""), (200, b"data: {}\n\n")):
        with pytest.raises(AssertionError):
            _expect((status, body), 200)
    assert _expect((503, b'{"error": {"code":"queue_full"}}'), 400) == "503"
    for received in (b"HTTP/1.1 500 Internal Server Error\r\n", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 500 X\r\n", b"hello"):
        with pytest.raises(AssertionError):
            _first_status(received)


def test_an_attack_without_an_answer_is_noticed_and_named(monkeypatch):
    def reset(client, rng):
        raise ConnectionResetError(104, "gone")

    monkeypatch.setattr(server, "ATTACKS", {reset: 1})
    (answer, wrong), _ = _one(server.Client(1), 7, 3)
    assert answer == "wrong" and wrong.startswith("seed 7, request 3, reset: ConnectionResetError")


def test_equal_seeds_make_equal_attacks():
    bodies = [server._good_body(random.Random("1 2"), "/v1/completions") for _ in range(2)]
    assert bodies[0] == bodies[1] and len(ATTACKS) > 10
