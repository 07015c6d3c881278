"""The tokenizer over HTTP, as lm-evaluation-harness and vLLM's clients ask for it."""

import pytest
from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support
from starlette.testclient import TestClient

from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import Message, encode_chat, encode_generation_prompt
from shared_tokenizer.chat.template import chat_template
from tests.mlxlm.server.served_models import CONTEXT, NAME, app_of, open_model, running

URL = "http://127.0.0.1:8080"
USER = {"role": "user", "content": "add"}


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture(scope="module")
def client(model, tokenizer):
    with TestClient(app_of(model, tokenizer), base_url=URL) as client:
        yield client


def post(client, path, status=200, **fields):
    answered = client.post(path, json=fields)
    assert answered.status_code == status, answered.text
    return answered.json()


def test_a_text_has_the_ids_that_it_has_as_a_prompt(client, tokenizer):
    text = "def add(a, b):\n    return é"
    found = post(client, "/tokenize", model=NAME, prompt=text, return_token_strs=True)
    assert found["tokens"] == tokenizer.encode_prompt(text)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
    assert len(found["token_strs"]) == found["count"] and found["token_strs"][0] == "<s>"
    asked = {"model": NAME, "prompt": text, "max_tokens": 1}
    assert post(client, "/v1/completions", **asked)["usage"]["prompt_tokens"] == found["count"]
    bare = post(client, "/tokenize", prompt=text, add_special_tokens=False)
    assert bare["tokens"] == tokenizer.encode(text) and bare["token_strs"] is None
    assert post(client, "/detokenize", model=NAME, tokens=bare["tokens"]) == {"prompt": text}


def test_a_chat_has_the_ids_that_it_has_as_a_prompt(client, tokenizer):
    found = post(client, "/tokenize", messages=[USER])["tokens"]
    assert found == encode_generation_prompt([Message("user", "add")], tokenizer, CHATML)
    asked = {"model": NAME, "messages": [USER], "max_tokens": 1}
    assert post(client, "/v1/chat/completions", **asked)["usage"]["prompt_tokens"] == len(found)
    turns = [Message("user", "add"), Message("assistant", "2")]
    whole = post(
        client, "/tokenize", messages=[USER, {"role": "assistant", "content": "2"}], add_generation_prompt=False
    )
    assert whole["tokens"] == encode_chat(turns, tokenizer, CHATML).ids
    text = post(client, "/detokenize", tokens=found)["prompt"]
    assert "<|im_start|>user" in text and text.endswith("<|im_start|>assistant\n")


def test_a_special_token_is_known_by_its_spelling_alone(client, tokenizer):
    asked = {"prompt": "<|im_end|>", "add_special_tokens": False}
    assert post(client, "/tokenize", **asked)["tokens"] == [tokenizer.special_tokens["<|im_end|>"]]
    inside = post(client, "/tokenize", prompt="a <|im_end|>", add_special_tokens=False)["tokens"]
    assert inside == tokenizer.encode("a <|im_end|>") and len(inside) > 3


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt"),
        ("/tokenize", {"prompt": [1]}, "prompt"),
        ("/tokenize", {"prompt": "a", "colour": "red"}, "colour"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "return_token_strs": "yes"}, "return_token_strs"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [USER], "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": [USER], "add_generation_prompt": "yes"}, "add_generation_prompt"),
        ("/tokenize", {"messages": [USER], "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": [USER], "chat_template": "{{ messages }}"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, 300]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": [1], "skip": 1}, "skip"),
    ],
)
def test_what_is_wrong_or_unknown_is_refused_by_name(client, path, fields, param):
    error = post(client, path, 400, **fields)["error"]
    assert error["param"] == param and param in error["message"]


def test_another_model_is_refused(client):
    assert post(client, "/tokenize", 404, model="gpt-4", prompt="a")["error"]["code"] == "model_not_found"


def test_a_model_without_a_chat_format_has_texts_only(model, tokenizer):
    with TestClient(app_of(model, tokenizer, chat_format=None), base_url=URL) as client:
        assert post(client, "/tokenize", 400, messages=[USER])["error"]["code"] == "no_chat_format"
        assert client.get("/tokenizer_info").json()["chat_template"] is None


def test_the_guard_and_the_key_hold_here_too(model, tokenizer):
    with TestClient(app_of(model, tokenizer, api_key="key"), base_url=URL) as client:
        for method, path in (("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/tokenizer_info")):
            assert client.request(method, path, json={"prompt": "a"}).status_code == 401
            assert client.request(method, path, json={}, headers={"Host": "evil"}).status_code == 403
            headers = {"Authorization": "Bearer key", "Origin": "http://evil"}
            assert client.request(method, path, json={}, headers=headers).status_code == 403


def test_lm_evaluation_harness_reads_the_tokenizer(model, tokenizer):
    with running(model, tokenizer, api_key="key") as port:
        url = f"http://127.0.0.1:{port}/v1/completions"
        assert check_remote_tokenizer_support(url, auth_token="key")
        assert not check_remote_tokenizer_support(url, auth_token="wrong", max_retries=1)
        remote = RemoteTokenizer(url, auth_token="key")
        assert (remote.bos_token_id, remote.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert remote.encode("def add") == tokenizer.encode("def add")
        assert remote.decode(remote.encode("def add")) == "def add"
        assert remote.tokenizer_info["chat_template"] == chat_template(CHATML, tokenizer)
        assert remote.tokenizer_info["model_max_length"] == CONTEXT
