"""The process that `unit_tests` starts. Every program runs in a fork of its own, which the limits hold."""

import bisect
import collections
import contextlib
import datetime
import functools
import heapq
import itertools
import json
import math
import operator
import os
import random
import re
import select
import signal
import string
import sys
import time
import typing

from shared_tokenizer.sandbox.child_loop import answer_requests
from shared_tokenizer.sandbox.limits import limit_process

# What a program may import: no file can be opened in its process.
ALLOWED = (
    bisect,
    collections,
    datetime,
    functools,
    heapq,
    itertools,
    json,
    math,
    operator,
    random,
    re,
    string,
    typing,
)


def count_passed(source: str, tests: list[str], memory_bytes: int, seconds: float) -> int:
    """Return the number of tests that pass after the source has run. What is not done in time has not passed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            _run(source, tests, write, memory_bytes)
        finally:
            os._exit(0)
    os.close(write)
    found, deadline = b"", time.monotonic() + seconds
    try:
        while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not (chunk := os.read(read, 1 << 16)):
                break
            found += chunk
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
    return found[: len(tests)].count(b"1")


def _run(source: str, tests: list[str], write: int, memory_bytes: int) -> None:
    """Run a program, then each of its tests, and write 1 or 0 for each. What they print goes nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    limit_process(memory_bytes)
    names: dict[str, typing.Any] = {"__name__": "program"}
    try:
        exec(compile(source, "program", "exec"), names)
    except BaseException:
        return
    for test in tests:
        try:
            exec(compile(test, "test", "exec"), names)
        except BaseException:
            os.write(write, b"0")
        else:
            os.write(write, b"1")


def main(memory_bytes: int, seconds: float) -> None:
    """Answer requests until standard input ends."""

    def answer(content: bytes) -> dict[str, int]:
        request = json.loads(content)
        return {"passed": count_passed(request["source"], request["tests"], memory_bytes, seconds)}

    answer_requests(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
