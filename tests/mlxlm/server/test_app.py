import json
import threading

import pytest
from starlette.testclient import TestClient

from jaxlm.common.sampling import Sampling
from mlxlm.generate import generate
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import Message, encode_generation_prompt
from tests.mlxlm.server.served_models import CONTEXT, NAME, app_of, open_model

URL = "http://127.0.0.1:8080"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture
def client(model, tokenizer):
    with TestClient(app_of(model, tokenizer), base_url=URL) as client:
        yield client


def chat(client, content, **fields):
    messages = [{"role": "user", "content": content}]
    return client.post(CHAT, json={"model": NAME, "messages": messages, "temperature": 0} | fields).json()


def complete(client, prompt, **fields):
    return client.post(COMPLETION, json={"model": NAME, "prompt": prompt, "temperature": 0} | fields).json()


def events(client, path, **fields):
    """Return the events of a stream, without the marker of its end."""
    answered = client.post(path, json={"model": NAME, "temperature": 0, "stream": True} | fields)
    assert answered.headers["content-type"].startswith("text/event-stream")
    lines = answered.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_greedy_text_is_that_of_generate(client, model, tokenizer):
    prompt = tokenizer.encode_prompt("def add(")
    tokens = list(generate(model, prompt, Sampling(max_tokens=20), tokenizer.eos_id))
    answered = complete(client, "def add(", max_tokens=20)
    assert answered["choices"][0]["text"] == tokenizer.decode(tokens)
    assert answered["object"] == "text_completion" and answered["model"] == NAME
    prompt = encode_generation_prompt([Message("user", "def add(")], tokenizer, CHATML)
    tokens = list(generate(model, prompt, Sampling(max_tokens=20), tokenizer.special_tokens["<|im_end|>"]))
    answered = chat(client, "def add(", max_tokens=20)
    assert answered["choices"][0]["message"]["content"] == tokenizer.decode(tokens)
    assert answered["choices"][0]["finish_reason"] == "length"
    count = {"prompt_tokens": len(prompt), "completion_tokens": 20, "total_tokens": len(prompt) + 20}
    assert answered["usage"].items() >= count.items()


def test_a_stream_is_the_text_in_pieces(client):
    whole = complete(client, "def add(", max_tokens=20)
    asked = {"prompt": "def add(", "max_tokens": 20, "stream_options": {"include_usage": True}}
    *pieces, usage = events(client, COMPLETION, **asked)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], whole["usage"]["total_tokens"])
    whole = chat(client, "add", max_tokens=20)
    pieces = events(client, CHAT, messages=[{"role": "user", "content": "add"}], max_tokens=20)
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert (deltas[0], deltas[-1]) == ({"role": "assistant", "content": ""}, {})
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert len({piece["id"] for piece in pieces}) == 1


def test_a_stop_sequence_ends_the_text_before_it(client):
    text = complete(client, "a", max_tokens=30)["choices"][0]["text"]
    stop = text[5:9]
    answered = complete(client, "a", max_tokens=30, stop=["never there", stop])
    assert answered["choices"][0]["text"] == text[: text.index(stop)]
    assert answered["choices"][0]["finish_reason"] == "stop"
    assert answered["usage"]["completion_tokens"] < 30


def test_a_seed_gives_the_same_text_and_another_seed_another(client):
    texts = [complete(client, "a", temperature=2, top_k=300, seed=seed)["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_text_ends_with_the_context(client):
    answered = complete(client, [1] * 250, max_tokens=200)
    assert (answered["usage"]["completion_tokens"], answered["choices"][0]["finish_reason"]) == (6, "length")


def test_an_answer_that_is_longer_than_the_context_ends_with_it(client):
    for name in ("max_tokens", "max_completion_tokens"):
        answered = chat(client, "hi", **{name: 1000})
        usage = answered["usage"]
        assert usage["total_tokens"] <= CONTEXT
        ended = "length" if usage["total_tokens"] == CONTEXT else "stop"
        assert answered["choices"][0]["finish_reason"] == ended


def test_an_empty_answer_is_accepted_in_the_next_request(client):
    asked = [{"role": "user", "content": "hi"}]
    begins = chat(client, "hi", max_tokens=5)["choices"][0]["message"]["content"][0]
    reply = chat(client, "hi", max_tokens=5, stop=begins)["choices"][0]["message"]
    assert (reply["role"], reply["content"]) == ("assistant", "")
    body = {"model": NAME, "messages": [*asked, reply, {"role": "user", "content": "hello?"}], "max_tokens": 2}
    assert client.post(CHAT, json=body).status_code == 200


def test_requests_at_once_are_answered_as_one_after_the_other(client):
    prompts = ["def add(", "def", "return", "a + b", "def add(a"]
    expected = [complete(client, prompt)["choices"][0]["text"] for prompt in prompts]
    found = dict.fromkeys(prompts)

    def ask(prompt):
        found[prompt] = complete(client, prompt)["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == expected and len(set(expected)) > 1


def test_models_and_health(client):
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [NAME]
    assert client.get(f"/v1/models/{NAME}").json() == listed["data"][0]
    assert client.get("/v1/models/../secret").status_code == 404
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("/v1/models/", "/v1/models"),
        (f"/v1/models/{NAME}/", f"/v1/models/{NAME}"),
        ("//v1//models", "/v1/models"),
        ("/health/", "/health"),
    ],
)
def test_a_slash_more_changes_nothing(client, path, like):
    assert client.get(f"{URL}{path}").json() == client.get(like).json()
    assert client.get(f"{URL}{path}").status_code == 200


def test_a_slash_more_changes_no_answer(client):
    asked = {"model": NAME, "temperature": 0, "max_tokens": 3}
    for path, prompt in ((CHAT, {"messages": [{"role": "user", "content": "a"}]}), (COMPLETION, {"prompt": "a"})):
        paths = (path, f"{path}/", path.replace("/v1/", "/v1//"))
        found = [client.post(f"{URL}{address}", json=asked | prompt) for address in paths]
        assert [answered.status_code for answered in found] == [200, 200, 200]
        assert len({json.dumps(answered.json()["choices"]) for answered in found}) == 1


def test_head_and_options_are_answered(client):
    for path in ("/health", "/v1/models", f"/v1/models/{NAME}"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        options = client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    for path in (CHAT, COMPLETION):
        assert client.options(path).headers["allow"] == "POST, OPTIONS"
        assert client.head(path).status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", CHAT, 405), ("DELETE", "/v1/models", 405), ("POST", "/v1/", 404)],
)
def test_other_routes_and_methods_are_errors_of_the_api(client, method, path, status):
    answered = client.request(method, path)
    assert answered.status_code == status
    error = answered.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert f"{method} {path}: " in error["message"] and "served are /health, /v1/models, " in error["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
def test_bodies_of_another_type_or_too_large_are_refused(client, path):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""):
        assert client.post(path, content=b"{}", headers={"Content-Type": kind}).status_code == 415
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post(path, content=b"[]", headers=headers).status_code == 400
    answered = client.post(path, content=b"x" * 10_001, headers=headers)
    assert answered.status_code == 413
    assert answered.json()["error"]["message"].startswith("body: found more than 10000 bytes")


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"[" * 9000,
        b'{"model": "\\ud800"}',
        b'{"model": "tiny", "prompt": "\\udfff", "messages": "\\udfff"}',
        b"{}",
    ],
)
def test_hostile_bodies_are_refused(client, path, body):
    answered = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (answered.status_code, answered.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_model_without_a_chat_format_still_continues_texts(model, tokenizer):
    with TestClient(app_of(model, tokenizer, chat_format=None), base_url=URL) as client:
        assert chat(client, "add")["error"]["code"] == "no_chat_format"
        assert complete(client, "add")["choices"][0]["text"]
