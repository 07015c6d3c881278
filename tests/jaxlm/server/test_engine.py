"""The server before a JAX model: the same answers as `generate`, in batches."""

import asyncio
import dataclasses
import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.reply_text import ReplyText
from jaxlm.common.openai_api.requests import read_completion
from jaxlm.common.openai_api.responses import collect
from jaxlm.common.openai_api.tasks import Task
from jaxlm.common.sampling import Sampling
from jaxlm.common.serving.app import make_app
from jaxlm.common.serving.engine import merged_events
from jaxlm.common.serving.guard import host_names
from jaxlm.generate import generate
from jaxlm.load import load_model
from jaxlm.score import score
from jaxlm.server.command import open_engine
from jaxlm.server.server_config import ServerConfig
from shared_tokenizer.tokenizers.tokenizer import TextStream
from tests.mlxlm.server.served_models import save_model

URL = "http://127.0.0.1:8080"
PROMPTS = [[1, 40, 41, 42], [1, 50], [1, 60, 61, 62, 63, 64, 65]]


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer, "hybrid")


@pytest.fixture(scope="module")
def client(place):
    properties, engine = open_engine(ServerConfig(model=str(place)))
    app = make_app(properties, engine, hosts=host_names(8080, []), api_key=None, max_body_bytes=10_000)
    with TestClient(app, base_url=URL) as client:
        yield client


def post(client, route="completions", status=200, **fields):
    answer = client.post(f"/v1/{route}", json={"model": "tiny"} | fields)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_several_prompts_are_one_batch_with_the_texts_of_each_alone(client, place):
    model, params, tokenizer = load_model(place)
    found = post(client, prompt=PROMPTS, max_tokens=8, temperature=0, logprobs=1)
    for choice, prompt in zip(found["choices"], PROMPTS, strict=True):
        alone = list(generate(model, params, prompt, Sampling(max_tokens=8), tokenizer.stop_ids))
        assert choice["text"] == tokenizer.decode([*prompt, *alone])[len(tokenizer.decode(prompt)) :]
        assert [max(top.values()) for top in choice["logprobs"]["top_logprobs"]] == pytest.approx(
            choice["logprobs"]["token_logprobs"], abs=1e-4
        )
    assert found["usage"]["completion_tokens"] >= 3


def test_prompts_are_scored(client, place):
    model, params, _ = load_model(place)
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    found = post(client, prompt=PROMPTS, **asked)
    for choice, prompt, scores in zip(found["choices"], PROMPTS, score(model, params, PROMPTS, [1] * 3), strict=True):
        logprobs = choice["logprobs"]["token_logprobs"]
        assert len(logprobs) == len(prompt) + 1 and logprobs[0] is None
        np.testing.assert_allclose(logprobs[1:-1], scores.logprobs, atol=1e-5)


def test_chats_stream_and_stop_and_repeat_by_their_seed(client):
    asked = {"messages": [{"role": "user", "content": "add"}], "max_tokens": 6, "seed": 3, "n": 2}
    whole = post(client, "chat/completions", **asked)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts == [choice["message"]["content"] for choice in post(client, "chat/completions", **asked)["choices"]]
    streamed = client.post("/v1/chat/completions", json={"model": "tiny", "stream": True} | asked).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    for number, text in enumerate(texts):
        deltas = [event["choices"][0] for event in events if event["choices"][0]["index"] == number]
        assert "".join(delta["delta"].get("content") or "" for delta in deltas) == text
    stop = texts[0][2:4]
    cut = post(client, "chat/completions", **asked | {"stop": [stop], "n": 1})["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == (texts[0][: texts[0].index(stop)], "stop")


def test_what_only_the_mlx_server_has_is_refused_by_name(client):
    error = post(client, prompt="def", presence_penalty=1, status=400)["error"]
    assert error["param"] == "presence_penalty" and "the JAX server does not have" in error["message"]


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "row", "schema": schema}}


def test_texts_follow_a_schema_beside_free_ones(client, place):
    properties, engine = open_engine(ServerConfig(model=str(place)))
    schema = json_schema({"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3})
    body = {"model": "tiny", "prompt": PROMPTS, "temperature": 0, "max_tokens": 40, "response_format": schema}
    request = read_completion(json.dumps(body).encode(), properties)
    tasks = [*request.tasks[:2], dataclasses.replace(request.tasks[2], constraint=None)]

    async def answer():
        engine.start()
        return await collect(merged_events(engine.submit(*tasks)), tasks, request.reply)

    choices = asyncio.run(answer())["choices"]
    engine.stop()
    engine.join()
    for choice in choices[:2]:
        row = json.loads(choice["text"])
        assert choice["finish_reason"] == "stop" and 1 <= len(row) <= 3 and set(row) <= {1, 2}
    free = post(client, prompt=PROMPTS, max_tokens=40, temperature=0)["choices"][2]["text"]
    assert choices[2]["text"] == free


def test_a_schema_that_no_text_follows_fails_alone(client):
    asked = {"prompt": PROMPTS, "temperature": 0, "max_tokens": 8}
    error = post(client, response_format=json_schema({"$ref": "#"}), status=400, **asked)["error"]
    assert error["code"] == "grammar_failed" and len(post(client, **asked)["choices"]) == 3


def test_a_fault_fails_the_prompt_or_the_batch_that_it_is_in_alone(place, monkeypatch, caplog):
    properties, engine = open_engine(ServerConfig(model=str(place)))
    scores, generates = engine._scores, engine._generate

    def score_or_fail(generations, rows, contexts):
        if PROMPTS[1] in rows:
            raise RuntimeError("secret of the inside")
        return scores(generations, rows, contexts)

    def generate_or_fail(batch):
        if batch[0].task.sampling.temperature == 1:
            raise RuntimeError("secret of the inside")
        generates(batch)

    monkeypatch.setattr(engine, "_scores", score_or_fail)
    monkeypatch.setattr(engine, "_generate", generate_or_fail)

    def task(prompt, temperature=0.0, **fields):
        reply, sampling = (
            ReplyText(TextStream(properties.tokenizer), []),
            Sampling(max_tokens=2, temperature=temperature),
        )
        return Task(prompt=prompt, sampling=sampling, stop_ids=frozenset(), reply=reply, **fields)

    tasks = [task(PROMPTS[0]), task(PROMPTS[0], temperature=1.0)]
    tasks += [task(prompt, scores_prompt=True, generates=False) for prompt in PROMPTS]

    async def end(generation):
        return [event async for event in generation.events()][-1]

    async def ask():
        generations = [engine.submit(each)[0] for each in tasks]  # one step takes all of them
        engine.start()
        found = await asyncio.gather(*map(end, generations), return_exceptions=True)
        engine.stop()
        engine.join()
        return found

    found = asyncio.run(ask())
    assert [isinstance(event, ApiError) for event in found] == [False, True, False, True, False]
    assert found[0].completion_tokens == 2 and "secret of the inside" in caplog.text
