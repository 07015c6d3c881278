"""The bodies that published programs send, by their documentation: status, and what each changes of the answer."""

import dataclasses
import json

import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.requests import read_chat, read_completion
from jaxlm.common.openai_api.tasks import TokenPenalties
from tests.mlxlm.server.served_models import CONTEXT, NAME, served

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}
HISTORY = [SYSTEM, USER, {"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "add"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]
USAGE = {"include_usage": True}
OFF = {"frequency_penalty": 0, "presence_penalty": 0, "top_p": 1}
STREAM = {"stream": True, "include_usage": False}
STREAM_USAGE = {"stream": True, "include_usage": True}
TOOL = {"type": "function", "function": {"name": "read", "parameters": {}}}

# client, body without its model -> what differs from the answer to a request without settings
CHATS = [
    ("openai-python", {"messages": [USER]}, {}),
    ("openai-python, streaming", {"messages": [USER], "stream": True, "stream_options": USAGE}, STREAM_USAGE),
    (
        "openai-python, every field",
        {
            **{"messages": [{"role": "developer", "content": "x"}, USER], "audio": None, "frequency_penalty": 0.0},
            **{"logit_bias": None, "logprobs": False, "max_completion_tokens": 9, "metadata": {"a": "b"}, "n": 1},
            **{"modalities": ["text"], "parallel_tool_calls": True, "prediction": None, "presence_penalty": 0.0},
            **{"prompt_cache_key": "k", "response_format": {"type": "text"}, "safety_identifier": "me", "seed": 3},
            **{"service_tier": "auto", "stop": None, "store": False, "stream": False, "stream_options": None},
            **{"temperature": 1.0, "tool_choice": "none", "tools": [], "top_logprobs": None, "top_p": 1.0},
            **{"user": "me", "verbosity": "medium", "web_search_options": None, "reasoning_effort": None},
        },
        {"max_tokens": 9, "seed": 3},
    ),
    (
        "lm-eval local-chat-completions",
        {"messages": [USER | {"type": "text"}], "max_tokens": 256, "temperature": 0, "stop": ["</s>"], "seed": 1234},
        {"max_tokens": CONTEXT, "temperature": 0.0, "seed": 1234, "stop": ("</s>",)},
    ),
    ("LangChain ChatOpenAI", {"messages": HISTORY, "n": 1, "temperature": 0.7, "stream": False}, {"temperature": 0.7}),
    (
        "LangChain ChatOpenAI, streaming",
        {"messages": HISTORY, "temperature": 0.7, "stream": True, "stream_options": USAGE, "max_completion_tokens": 8},
        {"temperature": 0.7, "max_tokens": 8} | STREAM_USAGE,
    ),
    (
        "LibreChat",
        {"messages": HISTORY, "temperature": 1, **OFF, "stream": True, "user": "65f0", "stop": ["||>", "\nUser:"]},
        {"stop": ("||>", "\nUser:")} | STREAM,
    ),
    (
        "Open WebUI",
        {
            **{"messages": [SYSTEM, SYSTEM, *HISTORY[1:]], "stream": True, "temperature": 0.8, "max_tokens": 128},
            **{"seed": 42, "stop": [], "logit_bias": {}, "top_p": 0.9, "frequency_penalty": 0.0, "min_p": 0.0},
        },
        {"temperature": 0.8, "max_tokens": 128, "seed": 42, "top_p": 0.9} | STREAM,
    ),
    ("Open WebUI, after an empty answer", {"messages": [USER, {"role": "assistant", "content": ""}, USER]}, {}),
    (
        "Continue",
        {"messages": HISTORY, "max_tokens": 4096, "stream": True, "temperature": 0.5, "top_p": None, "stop": None},
        {"max_tokens": CONTEXT, "temperature": 0.5} | STREAM,
    ),
    (
        "Cursor, asking",
        {"messages": [SYSTEM, *PARTS], "temperature": 0, "stream": True, "user": "x", "stream_options": USAGE},
        {"temperature": 0.0} | STREAM_USAGE,
    ),
    ("llm", {"messages": HISTORY, "stream": True, "stream_options": USAGE}, STREAM_USAGE),
    (
        "LobeChat",
        {"messages": HISTORY, **OFF, "temperature": 1, "stream": True, "stream_options": USAGE},
        STREAM_USAGE,
    ),
    (
        "Zed",
        {
            **{"messages": [SYSTEM, *PARTS], "stream": True, "max_completion_tokens": 8192, "stop": []},
            **{"temperature": 1.0, "tools": [], "parallel_tool_calls": False, "prompt_cache_key": "thread"},
        },
        {"max_tokens": CONTEXT} | STREAM,
    ),
    (
        "SillyTavern, custom endpoint",
        {
            **{"messages": [SYSTEM, {"role": "system", "content": "[Start a new chat]"}, USER], "temperature": 1},
            **{"max_tokens": 300, "stream": True, "presence_penalty": 0, "frequency_penalty": 0, "top_p": 1},
            **{"top_k": 0, "min_p": 0, "top_a": 0, "repetition_penalty": 1, "seed": -1, "n": 1, "logit_bias": {}},
            **{"stop": [f"\n{name}:" for name in "ABCDEFGH"], "chat_template_kwargs": {}},
        },
        {"max_tokens": CONTEXT, "stop": tuple(f"\n{name}:" for name in "ABCDEFGH")} | STREAM,
    ),
    (
        "aider",
        {"messages": [*HISTORY, HISTORY[2], USER], "temperature": 0, "stream": True},
        {"temperature": 0.0} | STREAM,
    ),
    ("LM Studio's example", {"messages": [SYSTEM, USER], "temperature": 0.7, "max_tokens": -1}, {"temperature": 0.7}),
    (
        "vLLM's own client, all off",
        {
            **{"messages": [USER], "best_of": 1, "use_beam_search": False, "top_k": -1, "min_p": 0.0},
            **{"repetition_penalty": 1.0, "length_penalty": 1.0, "stop_token_ids": [], "ignore_eos": False},
            **{"include_stop_str_in_output": False, "min_tokens": 0, "skip_special_tokens": True},
            **{"spaces_between_special_tokens": True, "truncate_prompt_tokens": None, "prompt_logprobs": None},
            **{"add_generation_prompt": True, "continue_final_message": False, "guided_json": None, "priority": 0},
        },
        {},
    ),
    (
        "llama.cpp's web page",
        {
            **{"messages": HISTORY, "stream": True, "cache_prompt": True, "samplers": "", "temperature": 0.8},
            **{"dynatemp_range": 0, "dynatemp_exponent": 1, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "typical_p": 1},
            **{"xtc_probability": 0, "xtc_threshold": 0.1, "repeat_last_n": 64, "repeat_penalty": 1, "max_tokens": -1},
            **{"presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75},
            **{"dry_allowed_length": 2, "dry_penalty_last_n": -1, "timings_per_token": False, "reasoning_format": ""},
        },
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05} | STREAM,
    ),
    (
        "text-generation-webui's settings, all off",
        {
            **{"messages": [USER], "do_sample": True, "typical_p": 1, "tfs": 1, "top_a": 0, "epsilon_cutoff": 0},
            **{"eta_cutoff": 0, "guidance_scale": 1, "negative_prompt": "", "penalty_alpha": 0, "mirostat_mode": 0},
            **{"mirostat_tau": 5, "mirostat_eta": 0.1, "no_repeat_ngram_size": 0, "smoothing_factor": 0},
            **{"smoothing_curve": 1, "encoder_repetition_penalty": 1, "dynamic_temperature": False, "seed": -1},
            **{"add_bos_token": True, "ban_eos_token": False, "grammar_string": "", "temperature_last": False},
        },
        {},
    ),
    (
        "penalties by hand",
        {"messages": [USER], "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -1},
        {"repetition_penalty": 1.1, "penalties": TokenPenalties(presence=0.5, frequency=-1.0)},
    ),
    ("curl, as printed", {"messages": [{"role": "user", "content": "Hello"}]}, {}),
]
IDS = [1, 40, 41]
COMPLETIONS = [
    ("openai-python", {"prompt": "def"}, {}),
    (
        "openai-python, every field",
        {
            **{"prompt": ["def"], "best_of": 1, "echo": False, "frequency_penalty": 0, "logit_bias": {}, "n": 1},
            **{"logprobs": None, "max_tokens": 16.0, "presence_penalty": 0, "seed": None, "stop": None},
            **{"stream": False, "stream_options": None, "suffix": None, "temperature": 1.0, "top_p": 1.0, "user": ""},
        },
        {},
    ),
    (
        "lm-eval local-completions",
        {"prompt": [IDS], "max_tokens": 32, "temperature": 0, "stop": ["\n\n", "Question:", "</s>"], "seed": 1234},
        {"max_tokens": 32, "temperature": 0.0, "seed": 1234, "stop": ("\n\n", "Question:", "</s>")},
    ),
    (
        "LangChain OpenAI",
        {"prompt": ["def"], "temperature": 0.7, "max_tokens": 256, "n": 1, "best_of": 1, "logit_bias": {}, **OFF},
        {"temperature": 0.7, "max_tokens": CONTEXT},
    ),
    (
        "Continue, autocomplete",
        {"prompt": "def a", "max_tokens": 64, "temperature": 0.01, "stream": True, "stop": ["\n\n"] * 6, "suffix": ""},
        {"max_tokens": 64, "temperature": 0.01, "stop": ("\n\n",) * 6} | STREAM,
    ),
    ("llama.cpp's example", {"prompt": "def", "n_predict": -1, "cache_prompt": True, "id_slot": -1}, {}),
]
REFUSED = [
    ("Cursor, editing", {"messages": [USER], "tools": [TOOL], "tool_choice": "auto"}, "tools"),
    ("Zed, agent", {"messages": [USER], "tools": [TOOL]}, "tools"),
    ("a picture", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ("a tool's result", {"messages": [USER, {"role": "tool", "content": "3", "tool_call_id": "1"}]}, "messages"),
    ("llama.cpp's grammar", {"messages": [USER], "grammar": "root ::= [0-9]"}, "grammar"),
    ("vLLM's regular expression", {"messages": [USER], "guided_regex": "[0-9]"}, "guided_regex"),
    ("an old penalty", {"messages": [USER], "repeat_penalty": 1.1}, "repeat_penalty"),
    ("thinking", {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
]


def changes(request, plain):
    """Return the fields of the answer that a request sets to another value than a plain request has."""
    before = _settings(plain) | {"seed": None}
    after = _settings(request)
    return {name: value for name, value in after.items() if value != before[name]}


def _settings(request):
    task = request.tasks[0]
    room = CONTEXT - len(task.prompt)
    most = CONTEXT if task.sampling.max_tokens == room else task.sampling.max_tokens
    return dataclasses.asdict(task.sampling) | {
        "max_tokens": most,
        "penalties": task.penalties,
        "stop": task.reply._stops._stops,
        "stream": request.stream,
        "include_usage": request.include_usage,
    }


def read(reader, body, tokenizer):
    return reader(json.dumps({"model": NAME} | body).encode(), served(tokenizer))


def check(reader, body, expected, plain, tokenizer):
    found = changes(read(reader, body, tokenizer), read(reader, plain, tokenizer))
    if body.get("seed") in (None, -1):
        del found["seed"]
    assert found == {name: value for name, value in expected.items() if value is not False}


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in CHATS], ids=[row[0] for row in CHATS])
def test_chats(tokenizer, body, expected):
    check(read_chat, body, expected, {"messages": [USER]}, tokenizer)


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in COMPLETIONS], ids=[row[0] for row in COMPLETIONS])
def test_completions(tokenizer, body, expected):
    check(read_completion, body, expected, {"prompt": "def"}, tokenizer)


@pytest.mark.parametrize(("body", "param"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_would_be_another_answer_is_refused_by_its_name(tokenizer, body, param):
    with pytest.raises(ApiError) as caught:
        read(read_chat, body, tokenizer)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"]) == (400, param) and param in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [USER, {"role": "assistant", "content": ""}, {"role": "user", "content": "hello?"}]},
        {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
        {"messages": [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, USER]},
        {"messages": [USER], "max_completion_tokens": 1000},
        {"messages": [USER], "stop": ["a1", "b1", "c1", "d1", "e1"]},
        {"messages": [USER], "top_k": -1, "seed": -1, "repetition_penalty": 1.0, "max_tokens": -1},
    ],
)
def test_requests_that_were_reported_as_refused_are_served(tokenizer, body):
    assert read(read_chat, body, tokenizer).tasks[0].prompt
