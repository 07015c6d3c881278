"""Attacks on the server, and a soak of it: `python -m tests.faults.server --requests 100000 --seed 1`.

A tiny model is served by a process of its own. Clients send requests of every kind, each drawn from one seed, and count
the answers by status. The server is then stopped by a signal while clients wait. One line of JSON is printed.
"""

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.commands import Command, preload, start
from tests.conftest import TEXT
from tests.mlxlm.server.served_models import NAME, save_model

preload("mlxlm.server.command")
CLIENTS = 6
# Seconds after which an answer counts as missing.
LONGEST_ANSWER_S = 60.0
# Seconds in which a request is answered, if it is one.
_PATIENCE_S = 0.5
_SHOWN = 10
_ROUTES = ("/v1/chat/completions", "/v1/completions")
_JSON = "application/json"
_HOSTILE = (b"[" * 50, b"\x00", b"\xff", b'"', b"{", b"\\ud800", b"1e999", b"-", b"NaN", b"9" * 5000)
_OTHER_ROUTES = ("/", "/v1", "/v1/models", "/v1/models/", "/health", f"/v1/models/{NAME}", *_ROUTES, "//", "/%00")

Attack = Callable[["Client", random.Random], str]
"""Make one attack and return its answer: a status, `closed` for an end of the connection, or `left` if nobody waited
for one. Raises AssertionError where the answer is none that is right."""


class Client:
    """One connection at a time to the server."""

    def __init__(self, port: int):
        self.port = port
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return status and body of an answer; the connection is kept for the next one."""
        for is_last in (False, True):  # a kept connection may have been closed in between
            is_new = self._connection is None
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_ANSWER_S)
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (ConnectionError, http.client.HTTPException):
                self.close()
                if is_new or is_last:
                    raise
        raise AssertionError

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self) -> socket.socket:
        """Open a connection for bytes that are no request."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST_ANSWER_S)

    @property
    def host(self) -> str:
        """The value of Host that the server expects."""
        return f"127.0.0.1:{self.port}"


def _good_body(rng: random.Random, path: str, most_tokens: int = 6) -> dict[str, Any]:
    text = "".join(rng.choice("def ad(,):\n é\N{GRINNING FACE}") for _ in range(rng.randrange(1, 40)))
    chat = [{"role": "user", "content": f"x{text}"}]
    if rng.random() < 0.3:
        chat = [
            {"role": "system", "content": "a"},
            *chat,
            {"role": "assistant", "content": rng.choice(["", None, "b"])},
            *chat,
        ]
    asked = {"messages": chat} if "chat" in path else {"prompt": rng.choice([text, [text], [1, 40], [[1, 40, 41]]])}
    choices: dict[str, Sequence[Any]] = {
        "temperature": (0, 0.7, 1.0, 2),
        "top_k": (-1, 0, 5, 1000),
        "top_p": (0.0, 0.5, 1),
        "min_p": (0, 0.1),
        "seed": (-1, 0, 2**63, 7.0),
        "repetition_penalty": (1.0, 1.3, None),
        "presence_penalty": (0, 1.5),
        "frequency_penalty": (0, -0.5),
        "stop": (None, [], "a", ["a", "b", "c", "d", "e"]),
        "n": (1, 1.0),
        "tools": ([], None),
        "user": ("me",),
        "stream_options": (None, {"include_usage": True}),
    }
    names = rng.sample(list(choices), rng.randrange(5))
    return {
        "model": NAME,
        "max_tokens": rng.randrange(1, most_tokens + 1),
        "stream": rng.random() < 0.3,
        **asked,
        **{name: rng.choice(choices[name]) for name in names},
    }


def _post(client: Client, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    return client.ask("POST", path, body, {"Content-Type": _JSON, "Host": client.host} | (headers or {}))


def _expect(found: tuple[int, bytes], *statuses: int) -> str:
    """Return the status, which must be one of these; 503 is right too where it says that too many wait."""
    status, body = found
    if status == 503 and b'"queue_full"' in body:
        return "503"
    assert status in statuses, f"found {status} {body[:200]!r}, expected {statuses}"
    if status == 200 and body.startswith(b"data: "):
        assert body.endswith(b"data: [DONE]\n\n"), f"found a stream that ends with {body[-200:]!r}"
    return str(status)


def ask_rightly(client: Client, rng: random.Random) -> str:
    """Send a request that has to be answered."""
    path = rng.choice(_ROUTES)
    return _expect(_post(client, path, json.dumps(_good_body(rng, path)).encode()), 200)


def ask_wrongly(client: Client, rng: random.Random) -> str:
    """Send a request of which one field is wrong or not served."""
    path = rng.choice(_ROUTES)
    wrong: dict[str, Sequence[Any]] = {
        "temperature": (-1, 3, "1", True, [], 10**400),
        "max_tokens": (0, -2, 0.5, "9"),
        "n": (129, 0, True),
        "stop": ("", [1], ["a"] * 65, {}),
        "tools": ([{"type": "function"}],),
        "logprobs": (21, -1, "yes"),
        "response_format": ({"type": "xml"}, "json", {"type": "json_schema"}),
        "stream": ("yes", 1),
        "unheard_of": (1, "x", [0]),
        "repetition_penalty": (0, 11, "1"),
        "messages" if "chat" in path else "prompt": ([], 1, [[]], {}, [None], [True]),
    }
    name = rng.choice(list(wrong))
    body = _good_body(rng, path) | {name: rng.choice(wrong[name])}
    return _expect(_post(client, path, json.dumps(body).encode()), 400)


def _mutate(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randrange(20)]
            case 2:
                changed[at:at] = rng.choice(_HOSTILE)
            case _:
                changed[at:at] = changed[: rng.randrange(60)]
    return bytes(changed)


def ask_with_a_damaged_body(client: Client, rng: random.Random) -> str:
    """Send a body with other bytes: it is refused, unless it is still right."""
    path = rng.choice(_ROUTES)
    body = _mutate(rng, json.dumps(_good_body(rng, path)).encode())
    return _expect(_post(client, path, body), 200, 400, 404)


def ask_elsewhere(client: Client, rng: random.Random) -> str:
    """Ask other routes, by other methods."""
    path = rng.choice(_OTHER_ROUTES)
    if rng.random() < 0.3:
        path += "".join(rng.choice("./%aA0?&=") for _ in range(rng.randrange(1, 300)))
    method = rng.choice(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "QUERY"))
    return _expect(client.ask(method, path, None, {"Host": client.host}), 200, 204, 404, 405)


def ask_as_another_site(client: Client, rng: random.Random) -> str:
    """Send the headers of a page of another site."""
    wrong = rng.choice(({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": ""}))
    path = rng.choice(_ROUTES)
    return _expect(_post(client, path, json.dumps(_good_body(rng, path)).encode(), wrong), 403)


def ask_with_another_type(client: Client, rng: random.Random) -> str:
    """Send a body that is no JSON by its type, or too large."""
    if rng.random() < 0.1:
        return _expect(_post(client, rng.choice(_ROUTES), b" " * ((1 << 20) + 1)), 413)
    kind = rng.choice(("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "application/xml"))
    return _expect(_post(client, rng.choice(_ROUTES), b"{}", {"Content-Type": kind}), 415)


def _head(client: Client, path: str, length: int) -> bytes:
    lines = f"POST {path} HTTP/1.1", f"Host: {client.host}", f"Content-Type: {_JSON}", f"Content-Length: {length}"
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _raw(client: Client, content: bytes) -> bytes:
    """Send bytes, no more, and return what comes first; nothing if the server waits for more."""
    with client.connect() as connection:
        connection.settimeout(_PATIENCE_S)
        try:
            connection.sendall(content)
            return connection.recv(65536)
        except (ConnectionError, TimeoutError):
            return b""


def _first_status(received: bytes) -> str:
    if not received:
        return "closed"
    found = re.match(rb"HTTP/1\.1 (\d\d\d) ", received)
    assert found, f"found {received[:100]!r}, expected an answer"
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)]
    assert all(status < 500 or status == 503 for status in statuses), f"found {received[:300]!r}"
    return str(statuses[0])


def send_damaged_bytes(client: Client, rng: random.Random) -> str:
    """Send a request with other bytes in its head, its body, or both."""
    path = rng.choice(_ROUTES)
    body = json.dumps(_good_body(rng, path)).encode()
    return _first_status(_raw(client, _mutate(rng, _head(client, path, len(body)) + body)))


def send_garbage(client: Client, rng: random.Random) -> str:
    """Send bytes that are no HTTP."""
    return _first_status(_raw(client, rng.randbytes(rng.randrange(1, 3000))))


def send_several_at_once(client: Client, rng: random.Random) -> str:
    """Send requests without waiting for the answers, which come in order."""
    count = rng.randrange(2, 6)
    request = f"GET /health HTTP/1.1\r\nHost: {client.host}\r\n\r\n".encode()
    with client.connect() as connection:
        connection.sendall(request * count)
        received = b""
        while received.count(b'{"status":"ok"}') < count:
            part = connection.recv(65536)
            assert part, f"found {received[:300]!r}, expected {count} answers"
            received += part
    return _first_status(received)


def leave_early(client: Client, rng: random.Random) -> str:
    """Leave within the head, the body or the answer."""
    path = rng.choice(_ROUTES)
    body = json.dumps(_good_body(rng, path, 200) | {"stream": rng.random() < 0.7}).encode()
    request = _head(client, path, len(body)) + body
    with client.connect() as connection:
        if rng.random() < 0.5:
            connection.sendall(request[: rng.randrange(len(request))])
        else:
            connection.sendall(request)
            connection.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                connection.recv(rng.randrange(1, 300))
    return "left"


def send_slowly(client: Client, rng: random.Random) -> str:
    """Send the bytes of a request with pauses between them."""
    path = rng.choice(_ROUTES)
    body = json.dumps(_good_body(rng, path) | {"stream": False}).encode()
    request = _head(client, path, len(body)) + body
    with client.connect() as connection:
        for at in range(0, len(request), 100):
            connection.sendall(request[at : at + 100])
            time.sleep(0.02)
        return _first_status(connection.recv(65536))


def crowd(client: Client, rng: random.Random) -> str:
    """Open more connections than the server keeps, and leave them half said; `/health` is answered meanwhile."""
    crowded = [client.connect() for _ in range(300)]
    try:
        for connection in crowded:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        client.close()
        return _expect(client.ask("GET", "/health", None, {"Host": client.host}), 200)
    finally:
        for connection in crowded:
            connection.close()


ATTACKS: dict[Attack, int] = {
    ask_rightly: 200,
    ask_wrongly: 200,
    ask_with_a_damaged_body: 200,
    ask_elsewhere: 150,
    ask_as_another_site: 50,
    ask_with_another_type: 50,
    send_damaged_bytes: 150,
    send_garbage: 60,
    send_several_at_once: 20,
    leave_early: 60,
    send_slowly: 5,
    crowd: 1,
}
"""Each with its share."""


def attack(*, requests: int | None = None, seconds: float | None = None, seed: int = 0) -> dict[str, Any]:
    """Attack a server until so many requests were sent, or for so long. Returns counts, and what was not expected."""
    from shared_tokenizer.tokenizers.train import train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / NAME, train_tokenizer([TEXT * 20], 300))
        words = {"--model": model, "--port": 0, "--max_tokens": 8, "--max_queue": 6}
        with start("-m", "mlxlm.server", *(word for pair in words.items() for word in pair)) as command:
            command.wait_for("http://127.0.0.1:")
            command.wait_for("curl ")
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", command.stdout)[1])  # pyright: ignore[reportOptionalSubscript]
            return _attack(command, port, requests, seconds, seed)


def _attack(command: Command, port: int, requests: int | None, seconds: float | None, seed: int) -> dict[str, Any]:
    begun = time.monotonic()
    answers, unexpected, slowest = Counter[str](), list[str](), [0.0]
    waiting = iter(range(sys.maxsize if requests is None else requests))
    lock = threading.Lock()

    def work() -> None:
        with contextlib.closing(Client(port)) as client:
            while seconds is None or time.monotonic() < begun + seconds:
                with lock:
                    number = next(waiting, None)
                if number is None or command.returncode is not None:
                    return
                (answer, wrong), took = _one(client, seed, number)
                with lock:
                    answers[answer] += 1
                    slowest[0] = max(slowest[0], took)
                    if wrong:
                        unexpected.append(wrong)

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    found = {"seed": seed, "requests": answers.total(), "seconds": round(time.monotonic() - begun, 1)}
    unexpected += _check_alive(command, port)
    number = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)[seed % 3]
    farewell, wrong = _stop(command, port, number)
    unexpected += wrong
    return found | {
        "answers": dict(sorted(answers.items())),
        "slowest_s": round(slowest[0], 2),
        "farewell": {"signal": signal.Signals(number).name, "answers": dict(sorted(farewell.items()))},
        "unexpected": len(unexpected),
        "shown": unexpected[:_SHOWN],
    }


def _one(client: Client, seed: int, number: int) -> tuple[tuple[str, str], float]:
    """Make an attack. Returns its answer, what is wrong with it or nothing, and the seconds that it took."""
    rng = random.Random(f"{seed} {number}")
    (chosen,) = rng.choices(list(ATTACKS), list(ATTACKS.values()))
    begun = time.monotonic()
    try:
        found = chosen(client, rng), ""
    except (AssertionError, OSError, http.client.HTTPException) as error:
        client.close()
        found = "wrong", f"seed {seed}, request {number}, {chosen.__name__}: {error!r}"
    return found, time.monotonic() - begun


def _check_alive(command: Command, port: int) -> list[str]:
    """Return what is wrong with the server after the attacks."""
    wrong = list[str]()
    if command.returncode is not None:
        wrong.append(f"the server ended: {command.returncode} {command.stderr[-2000:]}")
        return wrong
    client = Client(port)
    if client.ask("GET", "/health", None, {"Host": client.host})[0] != 200:
        wrong.append("/health is not ok at the end")
    client.close()
    deadline = time.monotonic() + 20
    while (count := len(list(Path(f"/proc/{command.pid}/fd").iterdir()))) > 60 and time.monotonic() < deadline:
        time.sleep(0.2)
    if count > 60:
        wrong.append(f"{count} files are open at the end")
    return wrong


def _stop(command: Command, port: int, number: signal.Signals) -> tuple[Counter[str], list[str]]:
    """Stop the server while clients wait. Returns their answers, and what is wrong."""
    if command.returncode is not None:
        return Counter(), []
    answers, wrong = Counter[str](), list[str]()

    def wait() -> None:
        client = Client(port)
        body = {"model": NAME, "prompt": "a", "max_tokens": 200}
        try:
            status, content = _post(client, _ROUTES[1], json.dumps(body).encode())
            answers[str(status)] += 1
            if status not in (200, 503) or (status == 503 and b"stopping" not in content and b"queue" not in content):
                wrong.append(f"{number.name}: found {status} {content[:200]!r}")
        except (OSError, http.client.HTTPException):
            answers["closed"] += 1
        client.close()

    clients = [threading.Thread(target=wait) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(0.05)
    command.send_signal(number)
    for client in clients:
        client.join()
    expected = 0 if number == signal.SIGINT else 128 + number
    try:
        code = command.wait(20)
    except Exception as error:
        return answers, [*wrong, f"{number.name}: no end: {error!r}"]
    if code != expected:
        wrong.append(f"{number.name}: found status {code}, expected {expected}")
    for words in ("Traceback", "ERROR", "Exception", "terminate called"):
        if words in command.stderr:
            wrong.append(f"stderr: {command.stderr[max(0, command.stderr.index(words) - 200) :][:1500]}")
    return answers, wrong


def main() -> int:
    """Read the command line, attack, print one line of JSON. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.faults.server", description=__doc__)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.requests is None and arguments.seconds is None:
        parser.error("--requests or --seconds is needed")
    found = attack(requests=arguments.requests, seconds=arguments.seconds, seed=arguments.seed)
    print(json.dumps(found, ensure_ascii=False))
    return int(bool(found["unexpected"]))


if __name__ == "__main__":
    sys.exit(main())
