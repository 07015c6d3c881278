import dataclasses
import json

import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.requests import read_chat, read_completion
from jaxlm.common.openai_api.tasks import TokenPenalties
from jaxlm.common.sampling import LARGEST_SEED
from shared_tokenizer.chat.formats import CHATML
from shared_tokenizer.chat.messages import Message, encode_generation_prompt, stop_ids
from tests.mlxlm.server.served_models import CONTEXT, NAME, served

USER = {"role": "user", "content": "add"}


def chat(tokenizer, **fields):
    content = {"model": NAME, "messages": [USER]} | fields
    return read_chat(json.dumps(content).encode(), served(tokenizer))


def completion(tokenizer, **fields):
    content = {"model": NAME, "prompt": "add"} | fields
    return read_completion(json.dumps(content).encode(), served(tokenizer))


def test_defaults_are_those_of_the_api_but_for_the_length(tokenizer):
    request = chat(tokenizer)
    task, sampling = request.tasks[0], request.tasks[0].sampling
    assert task.prompt == encode_generation_prompt([Message("user", "add")], tokenizer, CHATML)
    assert task.stop_ids == set(stop_ids(tokenizer, CHATML))
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 16)
    assert (request.stream, request.include_usage) == (False, False)
    assert chat(tokenizer).tasks[0].sampling.seed != sampling.seed


def test_what_is_asked_for_is_done(tokenizer):
    request = chat(
        tokenizer,
        temperature=0,
        top_p=0,
        top_k=300,
        min_p=0.5,
        seed=LARGEST_SEED,
        max_completion_tokens=CONTEXT,
        stream=True,
        stream_options={"include_usage": True},
    )
    sampling = request.tasks[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p, sampling.seed) == (0, 300, 0.5, LARGEST_SEED)
    assert 0 < sampling.top_p < 1e-5
    almost_greedy = chat(tokenizer, temperature=1e-300, top_p=1e-300).tasks[0].sampling
    assert (almost_greedy.temperature, almost_greedy.top_p) == (0, sampling.top_p)
    assert sampling.max_tokens == CONTEXT - len(request.tasks[0].prompt)
    assert request.stream and request.include_usage


def test_prompts_of_text_and_of_ids(tokenizer):
    ids = tokenizer.encode_prompt("add")
    for prompt in ("add", ["add"], ids, [ids]):
        assert completion(tokenizer, prompt=prompt).tasks[0].prompt == ids
    # The end of a turn ends a text too.
    assert completion(tokenizer).tasks[0].stop_ids == set(stop_ids(tokenizer, CHATML))


def test_several_stop_tokens_of_a_model_all_stop(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "stop_ids", property(lambda self: (self.eos_id, 77)))
    assert completion(tokenizer).tasks[0].stop_ids == {tokenizer.eos_id, 77, tokenizer.special_tokens["<|im_end|>"]}
    assert chat(tokenizer).tasks[0].stop_ids == {tokenizer.eos_id, 77, tokenizer.special_tokens["<|im_end|>"]}


def test_a_text_goes_on_within_a_character(tokenizer):
    ids = tokenizer.encode("\N{SLIGHTLY SMILING FACE}")
    reply = completion(tokenizer, prompt=ids[:-1]).tasks[0].reply
    assert reply.add(ids[-1]) == "\N{SLIGHTLY SMILING FACE}"


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": []},
        {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "tool_choice": "auto", "stop": None, "temperature": None},
        {"messages": [USER | {"name": "me", "refusal": None, "tool_calls": None, "audio": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "add"}]}]},
        {"max_tokens": 5, "max_completion_tokens": 5.0, "stop": [str(number) for number in range(64)]},
    ],
)
def test_fields_that_change_nothing_are_fine(tokenizer, fields):
    assert chat(tokenizer, **fields).tasks[0].prompt


@pytest.mark.parametrize(
    ("param", "value"),
    [
        *(("temperature", value) for value in (-0.1, 2.1, "hot", True, [])),
        *(("top_p", value) for value in (-0.1, 1.1, "1")),
        *(("max_tokens", value) for value in (0, -2, 1.5, "5", True, -1.5)),
        *(("max_completion_tokens", value) for value in (0, False)),
        *(("seed", value) for value in (-2, 2**64, 0.5)),
        *(("top_k", value) for value in (-2, 0.5, True)),
        *(("stop", value) for value in ("", ["a"] * 65, [""], [1], 1, "x" * 257, {})),
        *(("stream_options", value) for value in ([], "usage")),
        ("stream_options.continuous_usage_stats", {"stream_options": {"continuous_usage_stats": True}}),
        *(("n", value) for value in (129, 0, True, 1.5, -1)),
        *(("presence_penalty", value) for value in (2.5, -3, "0", True)),
        ("frequency_penalty", 2.1),
        *(("logprobs", value) for value in (21, -1, "1", 0.5)),
        ("top_logprobs", 3),
        *(("logit_bias", value) for value in ({"300": 1}, {"-1": 1}, {"a": 1}, {"5": 101}, {"5": True}, [5])),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("reasoning_effort", "high"),
        *(("repetition_penalty", value) for value in (0, -1, 10.1, "1.0", True)),
        ("best_of", 2),
        ("echo", 1),
        ("suffix", "end"),
        ("stop_token_ids", [1]),
        ("ignore_eos", True),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("skip_special_tokens", False),
        ("min_tokens", 5),
        ("mirostat", 2),
        ("nonsense" * 100, 1),
    ],
)
def test_a_field_that_is_wrong_or_not_served_is_named(tokenizer, param, value):
    # Only chats have top_logprobs, and only completions count them in logprobs and know an echo.
    for read in {"logprobs": (completion,), "echo": (completion,)}.get(param, (chat, completion)):
        with pytest.raises(ApiError) as caught:
            read(tokenizer, **(value if "." in param else {param: value}))
        error = caught.value.body()["error"]
        assert (caught.value.status, error["param"]) == (400, param[:100])
        assert error["message"].startswith(param[:100])


def test_what_other_servers_read_as_off_is_off(tokenizer):
    plain = chat(tokenizer, seed=1).tasks[0]
    off = {"top_k": -1, "repetition_penalty": 1, "max_tokens": -1, "presence_penalty": 0.0, "frequency_penalty": 0}
    for fields in ({}, off, off | {"top_k": 0, "repetition_penalty": 1.0, "max_tokens": None}):
        task = chat(tokenizer, seed=1, **fields).tasks[0]
        assert (task.sampling, task.penalties, task.prompt) == (plain.sampling, plain.penalties, plain.prompt)
    assert chat(tokenizer, seed=-1).tasks[0].sampling.seed != chat(tokenizer, seed=-1).tasks[0].sampling.seed
    assert chat(tokenizer, top_k=100_000).tasks[0].sampling.top_k == 300  # the vocabulary


def test_whole_numbers_may_be_written_as_fractions(tokenizer):
    sampling = chat(tokenizer, max_tokens=16.0, top_k=5.0, seed=7.0, n=1.0, temperature=1).tasks[0].sampling
    assert (sampling.max_tokens, sampling.top_k, sampling.seed) == (16, 5, 7)
    assert all(type(value) is int for value in (sampling.max_tokens, sampling.top_k, sampling.seed))


@pytest.mark.parametrize("most", [CONTEXT, CONTEXT + 1, 1000.0, 10**30])
def test_more_than_the_context_is_as_much_as_fits(tokenizer, most):
    for read in (chat, completion):
        for name in ("max_tokens", "max_completion_tokens"):
            task = read(tokenizer, **{name: most}).tasks[0]
            assert task.sampling.max_tokens == CONTEXT - len(task.prompt)


def test_large_seeds_are_told_apart(tokenizer):
    seeds = [
        chat(tokenizer, seed=seed).tasks[0].sampling.seed for seed in (LARGEST_SEED + 5, LARGEST_SEED + 5, 2**64 - 1)
    ]
    assert seeds[0] == seeds[1] != seeds[2] and max(seeds) <= LARGEST_SEED


def test_penalties_are_served(tokenizer):
    task = chat(tokenizer, repetition_penalty=1.1, presence_penalty=-0.5, frequency_penalty=2).tasks[0]
    assert (task.sampling.repetition_penalty, task.penalties) == (1.1, TokenPenalties(presence=-0.5, frequency=2.0))


def test_two_lengths_are_one_too_many(tokenizer):
    with pytest.raises(ApiError, match="max_tokens: found 6, expected 5, the value of max_completion_tokens"):
        chat(tokenizer, max_tokens=6, max_completion_tokens=5)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "found nothing, expected a list"),
        ([], "found an empty list"),
        ("add", "found a str"),
        ([1], r"messages\[0\]: found a int"),
        ([{"role": "user"}], "found the keys 'role'"),
        ([{"role": "user", "content": ""}], "found no text, expected the message of the user"),
        ([{"role": "user", "content": None}], "found nothing, expected a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "found a part that is 'image_url'"),
        ([{"role": "tool", "content": "x"}], "found the role 'tool'"),
        (
            [USER, {"role": "assistant", "content": "x"}],
            "role of the last message, expected user",
        ),
        ([USER, {"role": "system", "content": "x"}], "a system message"),
        ([USER | {"tool_calls": [{"id": "1"}]}], r"messages\[0\]: found 'tool_calls'"),
        ([{"role": "user", "content": "x " * CONTEXT}], "expected fewer than the model's context"),
    ],
)
def test_conversations_that_cannot_be_answered(tokenizer, messages, message):
    with pytest.raises(ApiError, match=message) as caught:
        chat(tokenizer, messages=messages)
    assert (caught.value.status, caught.value.body()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            None,
            1,
            [],
            ["a", 1],
            ["a", [1]],
            [[1], "a"],
            [[]],
            [[1, 2], []],
            ["a"] * 129,
            [["a"]],
            [[[1]]],
            [[300]],
            [True],
            [[True]],
            [1.0],
        ),
        *([-1], [300], [2**70], [1] * CONTEXT),
    ],
)
def test_prompts_that_cannot_be_continued(tokenizer, prompt):
    with pytest.raises(ApiError) as caught:
        completion(tokenizer, prompt=prompt)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"]) == (400, "prompt")
    assert (error["code"] == "context_length_exceeded") == (prompt == [1] * CONTEXT)


@pytest.mark.parametrize(
    ("name", "status"), [("other", 404), ("", 404), ("/etc", 404), ("x" * 9999, 404), (1, 400), (None, 400)]
)
def test_only_the_model_that_is_served(tokenizer, name, status):
    with pytest.raises(ApiError, match=r"model: found .*, expected 'tiny'") as caught:
        completion(tokenizer, model=name)
    assert caught.value.status == status


def test_a_model_without_a_chat_format_says_so(tokenizer):
    model = dataclasses.replace(served(tokenizer), chat_format=None)
    body = json.dumps({"model": NAME, "messages": [USER]}).encode()
    with pytest.raises(ApiError, match="no chat format that is known here; use /v1/completions"):
        read_chat(body, model)


def test_choices_are_prompts_times_n_with_seeds_of_their_own(tokenizer):
    tasks = completion(tokenizer, prompt=[[1, 40], [1, 41]], n=3, seed=LARGEST_SEED).tasks
    assert [task.prompt for task in tasks] == [[1, 40]] * 3 + [[1, 41]] * 3
    # The second prompt has the choices that it has alone.
    assert [task.sampling.seed for task in tasks] == [LARGEST_SEED, 0, 1] * 2
    assert len({id(task.reply) for task in tasks}) == 6
    with pytest.raises(ApiError, match="n: found 65, expected at most 64 for 2 prompts"):
        completion(tokenizer, prompt=["a", "b"], n=65)


def test_prompts_are_scored_where_echo_and_logprobs_are_asked_for(tokenizer):
    asked = {"prompt": [[1] * CONTEXT], "echo": True, "logprobs": 2, "max_tokens": 1}
    (task,) = completion(tokenizer, **asked).tasks
    assert (task.scores_prompt, task.generates, task.logprobs, task.sampling.max_tokens) == (True, True, 2, 1)
    (task,) = completion(tokenizer, **asked | {"max_tokens": 0}).tasks
    assert (task.scores_prompt, task.generates) == (True, False)
    (task,) = completion(tokenizer, **asked | {"prompt": "add", "logprobs": None}).tasks
    assert (task.scores_prompt, task.logprobs) == (False, None)
    with pytest.raises(ApiError, match="prompt: found 256 tokens"):
        completion(tokenizer, **asked | {"max_tokens": 2})
    with pytest.raises(ApiError, match="max_tokens: found 0"):
        completion(tokenizer, max_tokens=0)


def test_a_chat_may_ask_for_log_probabilities_and_biases(tokenizer):
    (first, second) = chat(tokenizer, n=2, logprobs=True, top_logprobs=5, logit_bias={"7": -100, "9": 2.5}).tasks
    assert (first.logprobs, first.logit_bias) == (5, {7: -100.0, 9: 2.5}) and first.prompt is second.prompt
    assert chat(tokenizer, logprobs=True).tasks[0].logprobs == 0
    assert chat(tokenizer, logprobs=False).tasks[0].logprobs is None


def test_a_response_format_constrains_every_choice_on_its_own(tokenizer):
    for form in ({"type": "text"}, None):
        assert chat(tokenizer, response_format=form).tasks[0].constraint is None
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}, "description": "d"}}
    for read in (chat, completion):
        first, second = (task.constraint for task in read(tokenizer, response_format=form, n=2).tasks)
        assert first is not second and first.allowed()[tokenizer.encode("x[")[-1]]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("json", "response_format: found 'json', expected an object with a type"),
        ({}, "response_format.type: found None, expected one of text, json_object, json_schema"),
        ({"type": "xml"}, "response_format.type: found 'xml'"),
        (
            {"type": "json_object", "schema": {}, "depth": 3},
            "response_format.depth: found a field that is not supported",
        ),
        ({"type": "json_schema"}, "response_format.json_schema: found None, expected an object with a schema"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "response_format.json_schema.schema: found None"),
        *(
            ({"type": "json_schema", "json_schema": {"schema": schema}}, message)
            for schema, message in (
                ([1], "response_format.json_schema.schema: found \\[1\\], expected a JSON schema, an object"),
                (True, "response_format.json_schema.schema: found True"),
                ({"type": "strin"}, "response_format: schema: found Invalid type"),
                ({"enum": ["x" * 99] * 2000}, "response_format: schema: found .* characters, expected at most 100000"),
            )
        ),
        (
            {"type": "json_schema", "json_schema": {"name": 3, "schema": {}}},
            "response_format.json_schema.name: found 3",
        ),
        (
            {"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}},
            "strict: found 1, expected true or false",
        ),
    ],
)
def test_a_response_format_that_cannot_be_followed(tokenizer, form, message):
    with pytest.raises(ApiError, match=message) as caught:
        chat(tokenizer, response_format=form)
    param = caught.value.body()["error"]["param"]
    assert caught.value.status == 400 and param.startswith(("response_format", "strict"))
