"""The official client, where it reads more than a text: JSON of a schema, and calls of tools."""

import json
from typing import Literal

import openai
import pydantic
import pytest

from shared_tokenizer.chat.template import chat_format_of
from tests.mlxlm.server.served_models import NAME, open_model, running
from tests.shared_tokenizer.tools import tool_templates

USER = {"role": "user", "content": "add"}


class Row(pydantic.BaseModel):
    kind: Literal["add", "return"]
    ok: bool


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    return open_model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture(scope="module")
def api(model, tokenizer):
    with (
        running(model, tokenizer) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_class_of_pydantic_is_answered_whole_and_streamed(api):
    asked = {"model": NAME, "messages": [USER], "response_format": Row, "max_tokens": 200, "seed": 1}
    found = api.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(found, Row)
    with api.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == found
    with pytest.raises(openai.LengthFinishReasonError):
        api.chat.completions.parse(**asked | {"max_tokens": 3})


def test_a_schema_that_cannot_be_followed_is_named(api):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError, match="response_format: schema: found Unimplemented keys") as caught:
        api.chat.completions.create(model=NAME, messages=[USER], response_format=form)
    assert caught.value.param == "response_format"


@pytest.fixture(scope="module")
def with_tools(model, tokenizer):
    chat_format = chat_format_of(tool_templates.SHORT)
    with (
        running(model, tokenizer, chat_format=chat_format) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


def test_a_tool_is_called_and_its_result_answered(with_tools):
    create = with_tools.chat.completions.create
    asked = {"model": NAME, "tools": [TOOL], "max_tokens": 120, "seed": 2, "parallel_tool_calls": False}
    messages = [USER | {"content": "x"}]
    choice = create(messages=messages, tool_choice="required", **asked).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content, call.function.name) == ("tool_calls", None, "add")
    assert json.loads(call.function.arguments)["a"] in (1, 2)
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    answer = create(messages=[*messages, choice.message, result], **asked | {"max_tokens": 4}).choices[0]
    assert answer.message.content and answer.message.tool_calls is None and answer.finish_reason == "length"
    cut = create(messages=messages, tool_choice="required", **asked | {"max_tokens": 6}).choices[0]
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)


def test_a_streamed_call_is_the_same_call(with_tools):
    asked = {"model": NAME, "tools": [TOOL], "max_tokens": 120, "seed": 2, "messages": [USER | {"content": "x"}]}
    asked |= {"tool_choice": {"type": "function", "function": {"name": "add"}}, "parallel_tool_calls": False}
    (whole,) = with_tools.chat.completions.create(**asked).choices[0].message.tool_calls
    with with_tools.chat.completions.stream(**asked) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", whole.function.arguments)
    assert [event.arguments for event in done] == [whole.function.arguments]
