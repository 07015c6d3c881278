"""Log-probabilities and several choices, as clients read them."""

import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from mlxlm.score import score
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import Message, encode_generation_prompt
from tests.mlxlm.server.served_models import NAME, app_of, open_model

URL = "http://127.0.0.1:8080"
PROMPTS = [[1, 40, 41, 42], [1, 50], [1, 60, 61, 62, 63, 64, 65]]


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {variant: open_model(place / variant, tokenizer, variant) for variant in ("dense", "hybrid")}


@pytest.fixture(scope="module", params=["dense", "hybrid"])
def served_model(request, models, tokenizer):
    """A model, and a client of its server."""
    with TestClient(app_of(models[request.param], tokenizer), base_url=URL) as client:
        yield models[request.param], client


def post(client, route, **fields):
    answer = client.post(f"/v1/{route}", json={"model": NAME} | fields)
    assert answer.status_code == 200, answer.text
    return answer


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_prompts_are_scored_as_lm_evaluation_harness_reads_it(served_model):
    model, client = served_model
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    found = post(client, "completions", prompt=PROMPTS, **asked).json()
    expected = score(model, PROMPTS, [1] * 3, top=1)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 13,
        "completion_tokens": 3,
        "total_tokens": 16,
        "prompt_tokens_details": None,
    }
    for choice, prompt, scores in zip(found["choices"], PROMPTS, expected, strict=True):
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        np.testing.assert_allclose(logprobs["token_logprobs"][1:-1], scores.logprobs, atol=1e-5)
        likeliest = [max(top.values()) for top in logprobs["top_logprobs"][1:]]
        np.testing.assert_allclose(likeliest, scores.top_logprobs[:, 0], atol=1e-5)
        is_greedy = [
            logprob == top for logprob, top in zip(logprobs["token_logprobs"][1:-1], likeliest[:-1], strict=True)
        ]
        assert is_greedy == scores.is_greedy.tolist()


def test_a_prompt_alone_can_be_scored(served_model):
    _, client = served_model
    choice = post(client, "completions", prompt=PROMPTS[0], max_tokens=0, logprobs=3, echo=True).json()["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 4 and choice["finish_reason"] == "length"
    assert [len(top) for top in choice["logprobs"]["top_logprobs"][1:]] == [3, 3, 3]
    alone = post(client, "completions", prompt="def", max_tokens=0, echo=True).json()["choices"][0]
    assert (alone["text"], alone["logprobs"]) == ("def", None)


def test_generated_tokens_have_the_log_probabilities_of_the_model(served_model, tokenizer):
    model, client = served_model
    asked = {"prompt": PROMPTS[0], "max_tokens": 6, "logprobs": 2, "temperature": 0}
    plain = post(client, "completions", **asked).json()["choices"][0]
    # Penalties and biases change the choice, not the log-probabilities that are reported.
    changed = post(client, "completions", presence_penalty=1.5, logit_bias={"70": 9}, **asked).json()["choices"][0]
    for choice in (plain, changed):
        ids = [
            next(token for token in range(300) if tokenizer.pieces[token] and tokenizer.decode([1, token]) == text)
            for text in choice["logprobs"]["tokens"]
            if not text.startswith(("bytes:", "<"))
        ]
        if len(ids) == 6:
            (scores,) = score(model, [PROMPTS[0] + ids], [4], top=2)
            np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], scores.logprobs, atol=1e-4)
    likeliest = [max(top.values()) for top in plain["logprobs"]["top_logprobs"]]
    assert likeliest == plain["logprobs"]["token_logprobs"]
    assert changed["logprobs"]["top_logprobs"][0] == plain["logprobs"]["top_logprobs"][0]


def test_choices_differ_and_are_repeated_by_their_seed(served_model):
    _, client = served_model
    asked = {"prompt": [PROMPTS[0], PROMPTS[1]], "n": 2, "max_tokens": 6, "seed": 5}
    texts = [choice["text"] for choice in post(client, "completions", **asked).json()["choices"]]
    assert len(texts) == 4 and texts[0] != texts[1]
    assert [choice["text"] for choice in post(client, "completions", **asked).json()["choices"]] == texts
    alone = post(client, "completions", **asked | {"prompt": PROMPTS[1], "n": 1}).json()["choices"][0]["text"]
    assert alone == texts[2]


def test_a_stream_of_several_choices_holds_the_same(served_model):
    _, client = served_model
    asked = {"prompt": PROMPTS[:2], "n": 2, "max_tokens": 5, "seed": 5, "echo": True, "logprobs": 1}
    whole = post(client, "completions", **asked).json()
    found = events(post(client, "completions", **asked, stream=True, stream_options={"include_usage": True}))
    assert found.pop()["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        parts = [event["choices"][0] for event in found if event["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [part["finish_reason"] for part in parts][-1] == choice["finish_reason"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = [value for part in parts if part["logprobs"] for value in part["logprobs"][name]]
            assert joined == pytest.approx(choice["logprobs"][name]) if name == "token_logprobs" else joined


def test_chats_report_the_tokens_of_the_content(served_model, tokenizer):
    model, client = served_model
    asked = {"messages": [{"role": "user", "content": "add"}], "max_tokens": 5, "temperature": 0}
    choice = post(client, "chat/completions", **asked, logprobs=True, top_logprobs=2).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 5 and all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert [entry["top_logprobs"][0]["logprob"] for entry in content] == [entry["logprob"] for entry in content]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode("utf-8", "replace")
    prompt = encode_generation_prompt([Message("user", "add")], tokenizer, CHATML)
    (scores,) = score(model, [prompt], [len(prompt)], top=2)
    assert content[0]["logprob"] == pytest.approx(float(scores.top_logprobs[0, 0]), abs=1e-4)
    assert post(client, "chat/completions", **asked).json()["choices"][0]["logprobs"] is None
