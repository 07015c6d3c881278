"""Answers that follow a schema: alone, beside free texts, streamed, with log-probabilities, with a draft model."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from tests.mlxlm.server.served_models import app_of, open_model

URL = "http://127.0.0.1:8080"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["add", "return"]},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3},
    },
    "required": ["kind", "ok", "tags"],
    "additionalProperties": False,
}
OBJECT = {"type": "json_object"}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "row", "schema": SCHEMA, "strict": True}}
ASKED = {"messages": [{"role": "user", "content": "add"}], "max_tokens": 220, "temperature": 1, "seed": 5}


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture(scope="module")
def client(model, tokenizer):
    with TestClient(app_of(model, tokenizer), base_url=URL) as client:
        yield client


@pytest.fixture(scope="module")
def short(tokenizer):
    """Biases that end texts and objects soon, which a random model does not."""
    return {str(tokenizer.encode(f"x{mark}")[-1]): 8 for mark in '"}'}


def post(client, route="chat/completions", status=200, **fields):
    answer = client.post(f"/v1/{route}", json={"model": "tiny"} | ASKED | fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def check_row(text):
    row = json.loads(text)
    assert list(row) == ["kind", "ok", "tags"] and row["kind"] in ("add", "return") and isinstance(row["ok"], bool)
    assert len(row["tags"]) <= 3 and set(row["tags"]) <= {1, 2}


def test_an_object_that_has_ended_can_be_parsed(client, short):
    choices = post(client, response_format=OBJECT, n=12, logit_bias=short)["choices"]
    whole = [choice["message"]["content"] for choice in choices if choice["finish_reason"] == "stop"]
    assert len(whole) > 3 and all(isinstance(json.loads(text), dict) for text in whole) and len(set(whole)) > 1
    assert all(text.lstrip().startswith("{") for text in (choice["message"]["content"] for choice in choices))


def test_a_schema_is_followed_by_every_choice(client):
    for choice in post(client, response_format=AS_SCHEMA, n=6)["choices"]:
        assert choice["finish_reason"] == "stop"
        check_row(choice["message"]["content"])


def test_completions_follow_it_too_for_several_prompts(client):
    asked = {"prompt": ["add", "return a"], "n": 2, "messages": None, "response_format": AS_SCHEMA}
    for choice in post(client, "completions", **asked)["choices"]:
        check_row(choice["text"])


def test_a_text_without_room_for_all_ends_with_length(client):
    (choice,) = post(client, response_format=AS_SCHEMA, max_tokens=5)["choices"]
    assert choice["finish_reason"] == "length" and choice["message"]["content"].lstrip().startswith("{")


def test_a_stream_is_the_same_text(client):
    whole = post(client, response_format=AS_SCHEMA)["choices"][0]["message"]["content"]
    streamed = client.post(
        "/v1/chat/completions", json={"model": "tiny", "stream": True, **ASKED, "response_format": AS_SCHEMA}
    )
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_texts_beside_it_stay_free_and_log_probabilities_are_the_model_s_own(client):
    free = {"logprobs": True, "top_logprobs": 2, "temperature": 0, "max_tokens": 30}
    alone = post(client, **free)
    with ThreadPoolExecutor(4) as pool:
        asked = [free, free | {"response_format": AS_SCHEMA, "max_tokens": 220}, free, {"response_format": AS_SCHEMA}]
        first, scored, third, sampled = pool.map(lambda fields: post(client, **fields)["choices"][0], asked)
    assert first["message"] == third["message"] == alone["choices"][0]["message"]
    check_row(sampled["message"]["content"])
    check_row(scored["message"]["content"])
    tokens = scored["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == scored["message"]["content"]
    # The model's likeliest token is not the one that the schema allows.
    assert any(token["logprob"] < token["top_logprobs"][0]["logprob"] for token in tokens)


def test_with_a_draft_model_it_joins_the_batch(model, tokenizer):
    with TestClient(app_of(model, tokenizer, draft=model), base_url=URL) as client:
        check_row(post(client, response_format=AS_SCHEMA, temperature=0)["choices"][0]["message"]["content"])
        assert post(client, temperature=0)["choices"][0]["message"]["content"]


def test_a_grammar_that_fails_ends_its_own_text_alone(client):
    empty = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(post, client, response_format=AS_SCHEMA)
        error = post(client, status=400, response_format=empty)["error"]
        check_row(good.result()["choices"][0]["message"]["content"])
    assert error["code"] == "grammar_failed" and error["message"].startswith("response_format: found no token")
    streamed = client.post(
        "/v1/chat/completions", json={"model": "tiny", "stream": True, **ASKED, "response_format": empty}
    )
    assert json.loads(streamed.text.split("data: ")[-1])["error"]["code"] == "grammar_failed"
    check_row(post(client, response_format=AS_SCHEMA)["choices"][0]["message"]["content"])
