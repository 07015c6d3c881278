"""The command, and what only a real connection shows."""

import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import openai
import pytest

from jaxlm.common.serving.app import make_app
from jaxlm.common.serving.command import check_reach, example, find_api_key, listen, server_url
from jaxlm.common.serving.connections import run
from jaxlm.common.serving.guard import host_names
from mlxlm.adapters.adapter_config import AdapterConfig
from mlxlm.adapters.adapter_directory import save_adapters
from mlxlm.adapters.adapters import add_adapters
from mlxlm.load import load_model
from mlxlm.server.command import open_engine
from mlxlm.server.server_config import ServerConfig
from shared_tokenizer.chat.formats import CHATML
from tests.mlxlm.server.served_models import (
    NAME,
    Slow,
    make_engine,
    open_model,
    running,
    running_app,
    save_model,
    served,
)

USER = {"role": "user", "content": "add"}


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


def client(port, **options):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0, **options)


def test_the_official_client_is_served(model, tokenizer):
    with running(model, tokenizer, api_key="secret") as port, client(port) as api:
        assert [entry.id for entry in api.models.list()] == [NAME]
        assert api.models.retrieve(NAME).object == "model"
        asked = {"model": NAME, "temperature": 0, "max_tokens": 20}
        text = api.completions.create(prompt="def", **asked).choices[0].text
        pieces = api.completions.create(prompt="def", stream=True, **asked)
        assert "".join(piece.choices[0].text for piece in pieces) == text != ""
        whole = api.chat.completions.create(messages=[USER], **asked)
        chunks = list(
            api.chat.completions.create(messages=[USER], stream=True, stream_options={"include_usage": True}, **asked)
        )
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert content == whole.choices[0].message.content != ""
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        with pytest.raises(openai.NotFoundError, match="expected 'tiny'"):
            api.completions.create(model="gpt-4", prompt="x")
        with pytest.raises(openai.BadRequestError, match="temperature: found 9"):
            api.completions.create(model=NAME, prompt="x", temperature=9)
        with pytest.raises(openai.PermissionDeniedError, match="Host: found evil"):
            api.with_options(default_headers={"Host": "evil"}).models.list()
        with pytest.raises(openai.AuthenticationError):
            api.with_options(api_key="wrong").models.list()


def test_an_error_in_a_stream_reaches_the_official_client(model, tokenizer):
    with running(Slow(model, 0.02), tokenizer, timeout_s=0.3) as port, client(port) as api:
        asked = {"model": NAME, "prompt": "x", "max_tokens": 200, "temperature": 0}
        chunks = api.completions.create(stream=True, **asked)
        with pytest.raises(openai.APIError, match=r"found no end after 0\.3 s"):
            list(chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_a_generation_ends_within_a_second_of_a_disconnect(model, tokenizer, stream):
    slow = Slow(model, 0.02)
    with running(slow, tokenizer) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        asked = {"model": NAME, "prompt": "x", "max_tokens": 200, "temperature": 0}
        body = json.dumps(asked | {"stream": stream})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        while slow.calls < 5:
            time.sleep(0.01)
        connection.close()
        closed, calls = time.monotonic(), 0
        while slow.calls > calls:
            calls = slow.calls
            time.sleep(0.2)
        assert time.monotonic() - closed < 1.2 and calls < 200
        with client(port) as api:
            answer = api.completions.create(model=NAME, prompt="x", max_tokens=2, temperature=0)
            assert answer.usage.completion_tokens == 2


def test_a_body_without_a_length_is_cut_off_while_it_is_read(model, tokenizer):
    with running(model, tokenizer) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(11):
            connection.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")  # though the body has no end yet


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_server_with_requests_in_flight(model, tokenizer, number, capsys):
    engine = make_engine(Slow(model, 0.02), max_batch=1)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    hosts = host_names(port, [])
    app = make_app(served(tokenizer, CHATML), engine, hosts=hosts, api_key=None, max_body_bytes=1000)
    errors, sent, passed_on = [], [], []

    def ask(stream):
        with client(port) as api:
            try:
                answer = api.completions.create(model=NAME, prompt="x", max_tokens=200, stream=stream, temperature=0)
                list(answer)
            except openai.APIError as error:
                errors.append(error.message)

    def stop():
        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        while not (engine.running and engine.num_waiting):  # one is answered, one waits
            time.sleep(0.01)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)
        threads.append(threading.Thread(target=ask, args=(False,)))  # one is about to ask
        threads[-1].start()
        time.sleep(0.05)
        os.kill(os.getpid(), number)  # as a terminal that closes
        for thread in threads:
            thread.join()

    before = signal.signal(number, lambda number, frame: passed_on.append(number))
    try:
        client_thread = threading.Thread(target=stop)
        client_thread.start()
        run(app, engine, listener)
        ended = time.monotonic()
        client_thread.join()
    finally:
        signal.signal(number, before)
    assert ended - sent[0] < 3
    assert len(errors) == 3 and all("the server is stopping" in message for message in errors)
    assert not engine.is_alive
    assert passed_on == ([] if number == signal.SIGINT else [number])
    assert capsys.readouterr().err == ""  # no traceback


def test_a_model_that_cannot_be_stopped_does_not_keep_the_process(model, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("jaxlm.common.serving.engine.LONGEST_STOP_S", 0.1)
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    slow = Slow(model, 2.0)
    engine = make_engine(slow)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_app(served(tokenizer), engine, hosts=host_names(port, []), api_key=None, max_body_bytes=1000)
    messages = []

    def stop():
        def ask():
            with client(port) as api, pytest.raises(openai.APIError) as caught:
                api.completions.create(model=NAME, prompt="x")
            messages.append(caught.value.message)

        thread = threading.Thread(target=ask)
        thread.start()
        while not slow.calls:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        thread.join()

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        client_thread = threading.Thread(target=stop)
        client_thread.start()
        run(app, engine, listener)
        client_thread.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left == [128 + signal.SIGTERM] and "stopping" in messages[0]
    assert capsys.readouterr().err == ""
    engine._thread.join()


def test_a_body_that_comes_too_slowly_is_refused(model, tokenizer, monkeypatch):
    monkeypatch.setattr("jaxlm.common.openai_api.json_body.LONGEST_BODY_S", 0.3)
    with running(model, tokenizer) as port, socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        connection.settimeout(0.1)
        answer, deadline = b"", time.monotonic() + 5
        while not answer and time.monotonic() < deadline:
            connection.sendall(b"x")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body: found no end after 0.3 s" in answer


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "server.example", ""])
def test_another_host_needs_a_key(host):
    config = ServerConfig(model="x", host=host, allowed_hosts=["server.example"])
    with pytest.raises(ValueError, match="no api_key; set MLXLM_API_KEY"):
        check_reach(config, None)
    check_reach(config, "secret")


def test_a_host_that_is_no_name_needs_names():
    with pytest.raises(ValueError, match=r"host: found 0\.0\.0\.0, .* no allowed_hosts"):
        check_reach(ServerConfig(model="x", host="0.0.0.0"), "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_none(host):
    check_reach(ServerConfig(model="x", host=host), None)


def test_the_key_may_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("MLXLM_API_KEY", raising=False)
    assert find_api_key(ServerConfig(model="x")) is None
    monkeypatch.setenv("MLXLM_API_KEY", "from-outside")
    assert find_api_key(ServerConfig(model="x")) == "from-outside"
    given = ServerConfig(model="x", api_key="given")
    assert find_api_key(given) == "given"
    assert "given" not in repr(given)
    for wrong in ("", "two words", "schl\xfcssel", "line\n"):
        monkeypatch.setenv("MLXLM_API_KEY", wrong)
        with pytest.raises(ValueError, match=r"api_key: found .* expected one word") as caught:
            find_api_key(ServerConfig(model="x"))
        assert not wrong or wrong not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("port", -1, "0 to 65535"),
        ("port", 70000, "0 to 65535"),
        ("max_tokens", 0, "at least 1"),
        ("max_queue", 0, "at least 1"),
        ("request_timeout_s", float("nan"), "more than 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused(name, wrong, expected):
    with pytest.raises(ValueError, match=f"{name}: found {wrong}, expected {expected}"):
        ServerConfig(model="x", **{name: wrong})


def test_a_host_that_nobody_knows_is_an_error(monkeypatch):
    def unknown(*address, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="host: found 'nobody', expected an address or name of this machine"):
        listen("nobody", 0)


def test_a_port_that_is_taken_is_an_error():
    with listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("api_key", [None, "secret"])
@pytest.mark.parametrize("chats", [True, False])
def test_the_example_is_a_request_that_is_answered(model, tokenizer, tmp_path, api_key, chats):
    properties = dataclasses.replace(served(tokenizer, CHATML if chats else None), name="it's $HOME")
    engine = make_engine(model)
    with running_app(
        lambda port: make_app(properties, engine, hosts=host_names(port, []), api_key=api_key, max_body_bytes=10_000)
    ) as port:
        command = example(server_url("0.0.0.0", port), properties, has_key=api_key is not None)
        assert "secret" not in command
        environment = os.environ | {"MLXLM_API_KEY": "secret"}
        words = subprocess.run(
            ["sh", "-c", f"printf '%s\\0' {command.removeprefix('curl ')}"],
            env=environment,
            capture_output=True,
            check=True,
        )
        url, *rest = words.stdout.decode().split("\0")[:-1]
        flags = list(zip(rest[::2], rest[1::2], strict=True))
        headers = dict(value.split(": ", 1) for flag, value in flags if flag == "-H")
        (body,) = [value for flag, value in flags if flag == "-d"]
        request = urllib.request.Request(url, body.encode(), headers)
        with urllib.request.urlopen(request) as answered:
            assert json.load(answered)["choices"][0]["finish_reason"]


def test_the_address_is_one_that_clients_of_this_machine_can_call():
    hosts = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1", "localhost": "localhost", "fd00::2": "[fd00::2]"}
    for host, shown in hosts.items():
        assert server_url(host, 80) == f"http://{shown}:80/v1"


def test_what_is_served_is_what_the_directory_says(tokenizer, tmp_path, capsys):
    chats = save_model(tmp_path / "chats", tokenizer)
    found, _ = open_engine(ServerConfig(model=str(chats), max_tokens=7))
    assert (found.name, found.chat_format, found.max_seq_len, found.max_tokens) == ("chats", CHATML, 256, 7)
    plain = save_model(tmp_path / "plain", tokenizer, template=None)
    assert open_engine(ServerConfig(model=str(plain)))[0].chat_format is None
    named = ServerConfig(model=str(plain), chat_format="chatml", model_name="mine")
    assert (open_engine(named)[0].chat_format, open_engine(named)[0].name) == (CHATML, "mine")
    found_no_template = capsys.readouterr().out
    assert found_no_template.count("no chat: ") == 1
    assert "name the chat_format it was trained with: chatml, " in found_no_template
    with pytest.raises(ValueError, match="llama-3: found no special token"):
        open_engine(ServerConfig(model=str(plain), chat_format="llama-3"))
    with pytest.raises(ValueError, match="missing"):
        open_engine(ServerConfig(model=str(plain), adapter_path=str(tmp_path / "missing")))
    unknown = save_model(tmp_path / "unknown", tokenizer, template="{{ messages[0].secret }}")
    assert open_engine(ServerConfig(model=str(unknown)))[0].chat_format is None
    assert "no chat: " in capsys.readouterr().out


def test_adapters_are_named_and_listed_and_chosen_by_their_name(tokenizer, tmp_path):
    base = save_model(tmp_path / "base", tokenizer)
    model = load_model(base)[0]
    save_adapters(tmp_path / "tuned", model, add_adapters(model, AdapterConfig(rank=2)))
    config = ServerConfig(model=str(base), adapter=[f"mine={tmp_path / 'tuned'}"])
    properties, engine = open_engine(config)
    assert properties.names == ("base", "mine")
    with (
        running_app(
            lambda port: make_app(properties, engine, hosts=host_names(port, []), api_key=None, max_body_bytes=10_000)
        ) as port,
        client(port) as api,
    ):
        assert [entry.id for entry in api.models.list()] == ["base", "mine"]
        answers = [
            api.completions.create(model=name, prompt="def", max_tokens=2, temperature=0) for name in properties.names
        ]
        assert [answer.model for answer in answers] == ["base", "mine"]
        # Adapters that were not trained change nothing.
        assert answers[0].choices[0].text == answers[1].choices[0].text
        with pytest.raises(openai.NotFoundError, match="expected 'base' or 'mine'"):
            api.completions.create(model=str(tmp_path / "tuned"), prompt="def")
    for wrong in (["mine"], ["=x"], [f"mine={tmp_path / 'tuned'}"] * 2):
        with pytest.raises(ValueError, match="expected name=directory, each name once"):
            open_engine(ServerConfig(model=str(base), adapter=wrong))
    with pytest.raises(ValueError, match="found the name 'base', which is the model's"):
        open_engine(ServerConfig(model=str(base), adapter=[f"base={tmp_path / 'tuned'}"]))
