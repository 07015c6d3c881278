"""Servers of models in processes of their own, and clients that ask them."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Seconds that a server may take to load its model.
LONGEST_START_S = 120.0
MOST_TRIES = 100


@dataclass
class Answer:
    """An answer to a streamed request."""

    status: int
    text: str = ""
    tokens: int = 0
    first_s: float = 0.0
    """Seconds to the first piece of text."""
    total_s: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server_process(
    command: Sequence[str], port: int, *, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers, and stop it at the end. Raises RuntimeError where it does not start.

    `folder` is a checkout of the project whose code it runs.
    """
    environment = dict(os.environ) | ({} if folder is None else {"PYTHONPATH": str(folder)})
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + LONGEST_START_S
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)}: found no answer at port {port}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False


def ask(port: int, body: dict[str, Any], leave_after: int | None = None) -> Answer:
    """Ask for a streamed completion. With `leave_after` the client closes the connection after so many events."""
    began = time.perf_counter()
    connection, response = _sent(port, json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}))
    try:
        answer = Answer(response.status)
        if response.status != 200:
            answer.text = response.read().decode()
            return answer
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            answer.events.append(event)
            if event.get("choices") and not answer.first_s:
                answer.first_s = time.perf_counter() - began
            answer.text += "".join(choice.get("text") or "" for choice in event.get("choices", []))
            if event.get("usage"):
                answer.tokens = event["usage"]["completion_tokens"]
            if leave_after is not None and len(answer.events) >= leave_after:
                break
        answer.total_s = time.perf_counter() - began
        return answer
    finally:
        connection.close()


def _sent(port: int, body: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Return the response to a request. A server with a short backlog resets connections: they are tried again."""
    for _ in range(MOST_TRIES):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        with contextlib.suppress(ConnectionError):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            return connection, connection.getresponse()
        connection.close()
        time.sleep(0.01)
    raise RuntimeError(f"port {port}: found no answer after {MOST_TRIES} tries")


def ask_together(clients: int, work: Callable[[int], Any]) -> list[Any]:
    """Return `work(number)` of clients that begin at the same time."""
    found: list[Any] = [None] * clients
    barrier = threading.Barrier(clients)

    def run(number: int) -> None:
        barrier.wait()
        found[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
