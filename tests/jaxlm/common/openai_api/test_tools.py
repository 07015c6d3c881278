"""Tools in requests of chats: what is offered, what must be called, and conversations about it."""

import dataclasses
import json

import pytest

from jaxlm.common.openai_api.errors import ApiError
from jaxlm.common.openai_api.requests import read_chat
from jaxlm.common.openai_api.tasks import Finish, Piece
from shared_tokenizer.chat.template import chat_format_of
from shared_tokenizer.tokenizers.json_tokenizer import JsonTokenizer
from tests.mlxlm.server.served_models import NAME, served
from tests.shared_tokenizer.tokenizers.tokenizers_of_every_kind import byte_level_library_tokenizer
from tests.shared_tokenizer.tools import tool_templates

USER = {"role": "user", "content": "add"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]},
    },
}
SUB = {"type": "function", "function": {"name": "sub"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "call_1"}


def model_of(tokenizer, template):
    return dataclasses.replace(served(tokenizer, chat_format_of(template)), max_seq_len=2000)


@pytest.fixture(scope="module", params=["HERMES", "LLAMA", "MISTRAL"])
def model(request, tokenizer):
    return model_of(tokenizer, getattr(tool_templates, request.param))


@pytest.fixture(scope="module")
def hermes(tokenizer):
    return model_of(tokenizer, tool_templates.HERMES)


def chat(model, **fields):
    return read_chat(json.dumps({"model": NAME, "messages": [USER]} | fields).encode(), model)


def text(model, **fields):
    return model.tokenizer.decode(chat(model, **fields).tasks[0].prompt)


def test_tools_are_in_the_prompt_and_their_results_too(model):
    assert '"name": "add"' in text(model, tools=[ADD]) and "add" not in text(model, messages=[USER | {"content": "x"}])
    found = text(model, tools=[ADD], messages=[USER, CALLED, RESULT | {"content": [{"type": "text", "text": "34"}]}])
    assert '{"a": 1}' in found and "34" in found
    # A conversation goes on where its tools are not offered any more.
    assert '{"a": 1}' in text(model, messages=[USER, CALLED, RESULT, {"role": "assistant", "content": "3"}, USER])


@pytest.mark.parametrize(
    "fields", [{"tools": []}, {"tools": None}, {"tools": [ADD], "tool_choice": "none"}, {"tool_choice": "auto"}]
)
def test_no_tools_are_no_tools(hermes, fields):
    assert text(hermes, **fields) == text(hermes)


def test_a_format_without_tools_says_what_to_do(tokenizer):
    with pytest.raises(
        ApiError, match=r"tools: found tools, which the chat format chatml .*; leave them out, or"
    ) as caught:
        chat(served(tokenizer), tools=[ADD])
    assert caught.value.body()["error"]["param"] == "tools"
    assert chat(served(tokenizer), tools=[ADD], tool_choice="none").tasks


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_that_is_asked_for_is_the_only_thing_to_write(model, choice, tokenizer):
    request = chat(model, tools=[ADD, SUB], tool_choice=choice, n=2)
    first, second = (task.constraint for task in request.tasks)
    assert first is not second
    form = model.tool_format.form
    body = json.dumps({"name": "add", form.arguments: {"a": 2}})
    written = {"hermes": f"<tool_call>\n{body}\n</tool_call>", "llama-3.1": body, "mistral": f"[TOOL_CALLS][{body}]"}
    for token in tokenizer.encode(f"x{written[form.name]}")[1:]:
        assert first.allowed()[token]
        first.accept(token)
    assert first.allowed()[tokenizer.eos_id] and not second.allowed()[tokenizer.eos_id]
    assert chat(model, tools=[ADD], tool_choice="auto").tasks[0].constraint is None


@pytest.mark.parametrize("name", ["HERMES", "MISTRAL"])
def test_marks_that_are_special_tokens_are_written_and_read_as_such(name):
    library = byte_level_library_tokenizer()
    library.add_special_tokens(["<tool_call>", "</tool_call>", "[TOOL_CALLS]"])
    tokenizer = JsonTokenizer(library.to_str().encode())
    model = model_of(tokenizer, getattr(tool_templates, name))
    model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    request = chat(model, tools=[ADD], tool_choice="required")
    (task,) = request.tasks
    form, special = model.tool_format.form, tokenizer.special_tokens
    body = '{"name": "add", "arguments": {"a": 2}}'
    ids = [special[form.begin], *tokenizer.encode(f"[{body}]" if form.is_list else f"\n{body}\n")]
    ids += [special[form.end]] if form.end else []
    said = ""
    for token in ids:
        assert task.constraint.allowed()[token]
        task.constraint.accept(token)
        said += task.reply.add(token)
    assert task.constraint.allowed()[tokenizer.eos_id]
    whole = request.reply.complete(request.tasks, [[Piece(said), Finish("stop", 1, 1, 0)]])["choices"][0]
    assert (whole["finish_reason"], whole["message"]["content"]) == ("tool_calls", None)
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2}'}
    assert special[form.begin] in chat(model, tools=[ADD], messages=[USER, CALLED, RESULT]).tasks[0].prompt


def test_text_around_calls_is_streamed_and_calls_are_numbered(hermes):
    request = chat(hermes, tools=[ADD], stream=True)
    body = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    pieces = ["Two", " sums <t", "wo>\n", body[:9], body[9:] + "\n", body, "\n<tool_ca"]
    events = [request.reply.piece(0, request.tasks[0], Piece(piece)) for piece in pieces]
    events += request.reply.closing(0, Finish("stop", 1, 1, 0))
    deltas = [event["choices"][0]["delta"] for event in events if event is not None]
    assert "".join(delta.get("content", "") for delta in deltas) == "Two sums <two>\n<tool_ca"
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [call["index"] for call in calls] == [0, 1] and len({call["id"] for call in calls}) == 2
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls" and deltas[-1] == {}


def test_one_call_is_one_call(hermes, tokenizer):
    body = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    for most, ends in ((False, True), (True, False)):
        constraint = chat(hermes, tools=[ADD], tool_choice="required", parallel_tool_calls=most).tasks[0].constraint
        for token in tokenizer.encode(f"x{body}")[1:]:
            constraint.accept(token)
        allowed = set(constraint.allowed().nonzero()[0].tolist())
        assert (allowed <= hermes.ends) == ends and allowed & hermes.ends


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "add"}, "tools"),
        ({"tools": [ADD] * 129}, "tools"),
        ({"tools": [3]}, "tools[0]"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0]"),
        ({"tools": [ADD, {"type": "function"}]}, "tools[1]"),
        *(
            ({"tools": [named(name)]}, "tools[0].function.name")
            for name in ("two words", "", "x" * 65, None, 3, "\u00e9")
        ),
        ({"tools": [ADD, SUB, ADD]}, "tools[2].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": "b"}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "description": 1}}]},
            "tools[0].function.description",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a", "more": 1}}]}, "tools[0].function.more"),
        ({"tools": [ADD], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": named("sub")}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"tools": [ADD], "tool_choice": "required", "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "strin"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
def test_tools_that_cannot_be_offered_are_named(hermes, fields, param):
    with pytest.raises(ApiError) as caught:
        chat(hermes, **fields)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"]) == (400, param) and error["message"].startswith(param)


def calls(*found):
    return CALLED | {"tool_calls": list(found)}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, RESULT], r"messages\[1\].tool_call_id: found 'call_1', expected the id of an earlier call"),
        ([USER, CALLED, RESULT | {"tool_call_id": "other"}], r"messages\[2\].tool_call_id: found 'other'"),
        ([USER, CALLED, {"role": "tool", "content": "3"}], r"messages\[2\].tool_call_id: found None"),
        ([USER, CALLED, RESULT, RESULT], r"messages\[3\].tool_call_id: found 'call_1'"),
        ([USER, CALLED], "found assistant as the role of the last message, expected user or tool"),
        ([USER, calls(3), RESULT], r"messages\[1\].tool_calls\[0\]: found 3, expected a call of a function"),
        ([USER, CALLED | {"tool_calls": {"a": 1}}, RESULT], r"messages\[1\].tool_calls: found"),
        ([USER, calls(CALL, CALL), RESULT], r"messages\[1\].tool_calls\[1\].id: found 'call_1', expected an id"),
        ([USER, calls(CALL | {"id": None}), RESULT], r"messages\[1\].tool_calls\[0\].id: found None"),
        *(
            (
                [USER, calls(CALL | {"function": {"name": "add", "arguments": arguments}}), RESULT],
                r"messages\[1\].tool_calls\[0\].function.arguments: found .*, expected a JSON object",
            )
            for arguments in ("[1]", "{", 3, {"a": 1})
        ),
        (
            [USER, CALLED, RESULT | {"content": [{"type": "image_url"}]}],
            r"messages\[2\]: content: found a part that is",
        ),
        ([USER | {"tool_calls": [CALL]}], r"messages\[0\]: found 'tool_calls'"),
        ([{"role": "tool", "content": "x", "tool_call_id": []}], r"messages\[0\].tool_call_id"),
        ([None, CALLED, RESULT], r"messages\[0\]: found"),
    ],
)
def test_conversations_about_tools_that_cannot_be_read(hermes, messages, message):
    with pytest.raises(ApiError, match=message) as caught:
        chat(hermes, messages=messages, tools=[ADD])
    assert (caught.value.status, caught.value.body()["error"]["param"]) == (400, "messages")


def test_what_the_template_refuses_is_refused_in_its_words(tokenizer):
    refuses = "{{ raise_exception('no results') if message.content == '4' }}"
    refusing = model_of(tokenizer, tool_templates.HERMES.replace("'tool' %}", f"'tool' %}}{refuses}"))
    with pytest.raises(ApiError, match=r"messages: the model's chat template refuses .*: it says 'no results'"):
        chat(refusing, messages=[USER, CALLED, RESULT | {"content": "4"}], tools=[ADD])
