import io
import logging
import re
import sys

import pytest
from starlette.testclient import TestClient

from jaxlm.common.serving.request_log import log, start_log
from tests.mlxlm.server.served_models import NAME, app_of, open_model

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture
def lines(monkeypatch):
    """Lines of the log, as they stand on the error stream."""
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    start_log()
    yield lambda: output.getvalue().splitlines()
    log.handlers.clear()


def test_every_request_is_one_line_without_its_content(model, tokenizer, lines):
    secrets = ("swordfish", "mellon", "Bearer key", "token=hidden")
    chat = {"model": NAME, "messages": [{"role": "user", "content": "swordfish"}], "max_tokens": 3, "temperature": 0}
    completion = {"model": NAME, "prompt": "x", "max_tokens": 2, "stream": True, "temperature": 0}
    with TestClient(app_of(model, tokenizer, api_key="key"), base_url=URL) as client:
        key = {"Authorization": "Bearer key"}
        client.get("/health/?token=hidden")
        tokens = client.post("/v1/chat/completions", json=chat, headers=key).json()["usage"]["prompt_tokens"]
        client.post("/v1/completions", json=chat | {"stream": True, "prompt": "swordfish"}, headers=key)
        client.post("/v1/completions", json=completion, headers=key)
        client.post("/v1/completions", json={"model": NAME, "prompt": "mellon", "n": 999}, headers=key)
        client.get("/v1/models")
        client.get("/health", headers={"Host": "evil"})
        client.get("/v1/%1B%0A" + "x" * 500, headers=key)
        client.request("X" * 5000, "/health")
    found = lines()
    assert len(found) == 9 and not any(secret in line for line in found for secret in secrets)
    expected = [
        r"GET /health/ 200, \d+\.\d\d s",
        rf"POST /v1/chat/completions 200, {tokens} tokens in, 3 out, \d+\.\d\d s",
        r"POST /v1/completions 400, \d+\.\d\d s",
        r"POST /v1/completions 200, \d+ tokens in, 2 out, \d+\.\d\d s",
        r"POST /v1/completions 400, \d+\.\d\d s",
        r"GET /v1/models 401, \d+\.\d\d s",
        r"GET /health 403, \d+\.\d\d s",
        r"GET /v1/%1B%0Ax{90}\.\.\. 404, \d+\.\d\d s",
        r"X{20} /health 405, \d+\.\d\d s",
    ]
    for line, pattern in zip(found, expected, strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d {pattern}", line), line


def test_a_log_without_a_terminal_does_not_end_the_server(monkeypatch, capfd):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    start_log()
    log.info("lost")
    log.handlers.clear()
    assert capfd.readouterr() == ("", "")
    assert logging.raiseExceptions  # only such errors are silent
