import pytest

from jaxlm.common.openai_api.history import read_history
from shared_tokenizer.chat.formats import CHATML, LLAMA_2, LLAMA_3, ZEPHYR
from shared_tokenizer.chat.messages import Message, encode_generation_prompt

USER, AGAIN = {"role": "user", "content": "hi"}, {"role": "user", "content": "hello?"}


def system(content, role="system"):
    return {"role": role, "content": content}


def said(turns):
    return [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", ""), (None, ""), (" \n", " \n"), ([], ""), ([{"type": "text", "text": ""}], "")],
)
def test_a_blank_answer_in_the_middle_is_an_empty_turn(tokenizer, content, expected):
    reply = {"role": "assistant", "content": content, "refusal": None, "tool_calls": []}
    turns = read_history([USER, reply, AGAIN], CHATML)
    assert said(turns) == [("user", "hi"), ("assistant", expected), ("user", "hello?")]
    end, header = tokenizer.special_tokens["<|im_end|>"], tokenizer.encode("assistant\n")
    ids = encode_generation_prompt(turns, tokenizer, CHATML)
    assert any(ids[at : at + len(header)] == header for at in range(len(ids)))
    assert ids.count(end) == 3  # also after the empty turn, as the model wrote it


def test_a_blank_answer_at_the_end_stands_for_the_answer_to_come():
    for reply in ({"role": "assistant", "content": ""}, {"role": "assistant", "content": None}, {"role": "assistant"}):
        assert said(read_history([USER, reply], CHATML)) == [("user", "hi")]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([system("A", "developer")], "A"),
        ([system("A"), system("B")], "A\n\nB"),
        ([system("A"), system("B", "developer"), system("C")], "A\n\nB\n\nC"),
        ([system("A"), system(""), system(None)], "A"),
        ([system([{"type": "text", "text": "A"}]), system("B")], "A\n\nB"),
        ([system("")], ""),
        ([system(""), system(" ")], ""),
        ([system(None)], None),
    ],
)
@pytest.mark.parametrize("chat_format", [CHATML, LLAMA_2])
def test_system_messages_at_the_beginning_are_one(messages, expected, chat_format):
    turns = read_history([*messages, USER], chat_format)
    assert said(turns) == ([] if expected is None else [("system", expected)]) + [("user", "hi")]


def test_a_later_system_message_stays_where_the_format_has_a_place_for_it():
    messages = [USER, {"role": "assistant", "content": "yes"}, system("Now in French."), AGAIN]
    for chat_format in (CHATML, LLAMA_3, ZEPHYR):
        assert [turn.role for turn in read_history(messages, chat_format)] == ["user", "assistant", "system", "user"]
    with pytest.raises(ValueError, match="a system message after others, which the chat format llama-2 cannot write"):
        read_history(messages, LLAMA_2)
    with pytest.raises(ValueError, match="a system message as the last one, expected a message of the user"):
        read_history(messages[:-1], CHATML)


@pytest.mark.parametrize(
    "extra", [{"name": "me"}, {"type": "text"}, {"tool_calls": None}, {"reasoning_content": ""}, {"prefix": False}]
)
def test_keys_that_say_nothing_are_fine(extra):
    assert read_history([USER | extra], CHATML) == [Message("user", "hi")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, AGAIN], r"\[1\]: found 'tool_c"),
        ([USER, {"role": "assistant", "content": "a", "reasoning_content": "b"}, AGAIN], r"\[1\]: found 'reasoning_c"),
        ([USER, {"role": "assistant", "content": False}, AGAIN], r"messages\[1\]: content: found a bool"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image_url"}]}, AGAIN],
            r"\[1\].* a part that is 'image_url'",
        ),
        ([USER, {"role": "tool", "content": ""}], r"messages\[1\]: found the role 'tool'"),
        ([USER, {"role": "user", "content": ""}], r"messages\[1\]: content: found no text"),
        ([{"role": "system"}, USER], r"messages\[0\]: found the keys 'role'"),
        ([USER, 1], r"messages\[1\]: found a int"),
        ([], "found an empty list"),
        ({}, "found a dict"),
    ],
)
def test_what_would_change_the_answer_is_named(messages, message):
    with pytest.raises(ValueError, match=message):
        read_history(messages, CHATML)
