"""Calls of tools are read from replies, at once and character by character alike."""

import json

import pytest

from shared_tokenizer.tools.tool_calls import HERMES, LLAMA_3_1, MISTRAL, CallReader

ADD = '{"name": "add", "arguments": {"a": 1, "b": "\u00e9"}}'
SAID = [("add", {"a": 1, "b": "\u00e9"})]
TAGGED = f"<tool_call>\n{ADD}\n</tool_call>"


def read(form, text, step, **options):
    reader = CallReader(form, ["add", "sub"], **options)
    found = [reader.add(text[start : start + step]) for start in range(0, len(text), step)] + [reader.end()]
    calls = [(call.name, json.loads(call.arguments)) for _, each in found for call in each]
    assert reader.count == len(calls)
    return "".join(out for out, _ in found), calls


CASES = [
    (HERMES, TAGGED, "", SAID),
    (HERMES, f"Let me see.\n{TAGGED}\n", "Let me see.", SAID),
    (HERMES, f"{TAGGED}\n{TAGGED}", "", SAID * 2),
    (HERMES, f"<tool_call>{ADD}", "", SAID),  # the end of the turn stands for the mark
    (HERMES, "<tool_call>\n{not JSON}\n</tool_call> so", "<tool_call>\n{not JSON}\n</tool_call> so", []),
    (HERMES, TAGGED.replace("add", "rm"), TAGGED.replace("add", "rm"), []),
    (HERMES, TAGGED.replace('{"a": 1, "b": "\u00e9"}', "[1]"), TAGGED.replace('{"a": 1, "b": "\u00e9"}', "[1]"), []),
    (HERMES, "a < b, <tool and <tool_cal ", "a < b, <tool and <tool_cal ", []),
    (HERMES, ADD, ADD, []),
    (LLAMA_3_1, ' {"name": "add", "parameters": {"a": 2}}', "", [("add", {"a": 2})]),
    (LLAMA_3_1, ADD, "", SAID),
    (LLAMA_3_1, f"So: {ADD}", f"So: {ADD}", []),
    (LLAMA_3_1, '{"name": "add', '{"name": "add', []),
    (LLAMA_3_1, " \n so", " \n so", []),
    (MISTRAL, f"[TOOL_CALLS] [{ADD}, {ADD}]", "", SAID * 2),
    (MISTRAL, f"[TOOL_CALLS] [{ADD}, 3]", f"[TOOL_CALLS] [{ADD}, 3]", []),
    (MISTRAL, "[TOOL] no", "[TOOL] no", []),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CASES)
@pytest.mark.parametrize("step", [1, 3, 10_000])
def test_calls_leave_the_text(form, text, content, calls, step):
    assert read(form, text, step) == (content, calls)


def test_more_calls_than_asked_for_are_not_made():
    assert read(HERMES, f"{TAGGED}\n{TAGGED}", 1, most=1) == ("", SAID)
    assert read(MISTRAL, f"[TOOL_CALLS] [{ADD}, {ADD}]", 1, most=1) == ("", SAID)


def test_text_before_a_call_comes_at_once_and_a_call_when_it_is_whole():
    reader = CallReader(HERMES, ["add"])
    assert reader.add("Well <") == ("Well", [])
    assert reader.add("b") == (" <b", [])
    assert reader.add(TAGGED[:-1]) == ("", [])
    assert [call.name for call in reader.add(">")[1]] == ["add"]
