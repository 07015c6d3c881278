import os
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from jaxlm.common.serving import metrics
from tests.mlxlm.server.served_models import NAME, Slow, app_of, open_model

URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


def numbers(client, **headers):
    """Return the values of /metrics by name and labels."""
    answered = client.get("/metrics", headers=headers)
    assert answered.status_code == 200 and answered.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answered.text)
        for sample in family.samples
    }


def test_requests_and_tokens_are_counted(model, tokenizer):
    with TestClient(app_of(model, tokenizer), base_url=URL) as client:
        asked = {"model": NAME, "prompt": [1, *range(40, 60)], "max_tokens": 5, "temperature": 0}
        usages = [client.post("/v1/completions", json=asked | {"n": 2}).json()["usage"] for _ in range(2)]
        client.post("/v1/completions", json=asked | {"stream": True})
        client.post("/v1/completions", json=asked | {"max_tokens": 0, "echo": True})
        client.post("/v1/completions", json=asked | {"n": 0})
        for path in ("/secret/1", "/secret/2"):
            client.get(path)
        found = numbers(client)
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] == 20
    assert found["jaxlm_requests_total", "/v1/completions", "200"] == 4
    assert found["jaxlm_requests_total", "/v1/completions", "400"] == 1
    assert found["jaxlm_requests_total", "other", "404"] == 2
    assert not any("secret" in label for labels in found for label in labels)
    assert found["jaxlm_prompt_tokens_total",] == 4 * 21
    assert found["jaxlm_cached_prompt_tokens_total",] == usages[0]["prompt_tokens_details"]["cached_tokens"] + 2 * 20
    assert found["jaxlm_generated_tokens_total",] == 5 * 5
    assert found["jaxlm_time_to_first_token_seconds_count",] == 3  # a prompt that is only scored has no token
    assert found["jaxlm_request_seconds_count", "/v1/completions"] == 5
    assert (found["jaxlm_running_texts",], found["jaxlm_waiting_requests",]) == (0, 0)
    assert found["jaxlm_prompt_store_bytes",] > 0 and found["process_resident_memory_bytes",] > 1 << 20


def test_times_and_what_runs_and_waits(model, tokenizer):
    with TestClient(app_of(Slow(model, 0.02), tokenizer, max_batch=1), base_url=URL) as client:
        asked = {"model": NAME, "prompt": "x", "max_tokens": 10, "temperature": 0}
        client.post("/v1/completions", json=asked)
        found = numbers(client)
        whole = found["jaxlm_request_seconds_sum", "/v1/completions"]
        assert 0.02 < found["jaxlm_time_to_first_token_seconds_sum",] < whole - 0.1
        assert found["jaxlm_request_seconds_bucket", "/v1/completions", "0.1"] == 0
        threads = [
            threading.Thread(target=client.post, args=("/v1/completions",), kwargs={"json": asked}) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        seen = set()
        while any(thread.is_alive() for thread in threads):
            found = numbers(client)
            seen.add((found["jaxlm_running_texts",], found["jaxlm_waiting_requests",]))
        assert (1, 2) in seen and max(running for running, _ in seen) == 1


def test_every_server_counts_for_itself(model, tokenizer):
    for _ in range(2):
        with TestClient(app_of(model, tokenizer), base_url=URL) as client:
            assert not [name for name, *_ in numbers(client) if name == "jaxlm_requests_total"]
            assert numbers(client)["jaxlm_requests_total", "/metrics", "200"] == 1


def test_the_guard_and_the_key_hold_here_too(model, tokenizer):
    with TestClient(app_of(model, tokenizer, api_key="key"), base_url=URL) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Host": "evil"}).status_code == 403
        found = numbers(client, Authorization="Bearer key")
    assert found["jaxlm_requests_total", "/metrics", "401"] == found["jaxlm_requests_total", "/metrics", "403"] == 1


def test_memory_is_known_without_proc(monkeypatch, tmp_path):
    expected = metrics.resident_bytes()
    monkeypatch.setattr(metrics, "STATM", tmp_path / "none")
    assert metrics.resident_bytes() == pytest.approx(expected, rel=0.2)
    monkeypatch.setattr(os, "getpid", lambda: 2**30)
    assert metrics.resident_bytes() == 0
