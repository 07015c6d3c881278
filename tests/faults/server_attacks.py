"""Attacks on the server, and a soak of it: rows of `tests/faults/server.py`, where that is there."""

from tests.faults.trial import Kind

KINDS: list[Kind] = []
