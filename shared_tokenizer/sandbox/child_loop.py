"""The loop of a child process (`child_process`): a request from standard input, its answer to standard output.

It needs the standard library and `limits` alone, so that starting it is cheap.
"""

import json
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from shared_tokenizer.sandbox.limits import limit_process


def limit_time(seconds: float) -> None:
    """End this process once it has computed for this long, in Python or in C, even if nobody waits for it any more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def answer_requests(
    answer: Callable[[bytes], dict[str, Any]],
    source: BinaryIO | None = None,
    sink: BinaryIO | None = None,
    *,
    before: Callable[[int], None] = lambda length: None,
) -> None:
    """Answer requests until the source ends, by default standard input; `before` gets the length of each.

    `child_process` tells the form of a message.
    """
    requests, replies = source or sys.stdin.buffer, sink or sys.stdout.buffer
    reply: dict[str, Any] = {"ready": True}
    while True:
        content = json.dumps(reply).encode()
        replies.write(struct.pack(">I", len(content)) + content)
        replies.flush()
        head = requests.read(4)
        if len(head) < 4:
            return
        (length,) = struct.unpack(">I", head)
        before(length)
        reply = answer(requests.read(length))


def answer_within_limits(answer: Callable[[bytes], dict[str, Any]]) -> None:
    """Answer requests until standard input ends: each in its time, and in that to read it.

    The arguments of the process are its limits: bytes of memory, seconds, bytes per second.
    """
    memory_bytes, seconds, bytes_per_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    limit_process(memory_bytes)
    answer_requests(answer, before=lambda length: limit_time(seconds + length / bytes_per_s))
