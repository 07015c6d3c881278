"""Messages as data sets write them."""

import pytest

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.chat.parse import instruction_messages, is_message, parse_messages, unused_keys


def test_messages_in_either_spelling() -> None:
    expected = (Message("system", ""), Message("user", "a"), Message("assistant", "b"))
    first = [{"role": "system", "content": ""}, {"role": "user", "content": "a", "id": 3}]
    assert parse_messages([*first, {"role": "assistant", "content": "b", "tool_calls": None}]) == expected
    for user, assistant in (("human", "gpt"), ("user", "assistant"), ("human", "chatgpt"), ("user", "bot")):
        second = [{"from": "system", "value": ""}, {"from": user, "value": "a"}, {"from": assistant, "value": "b"}]
        assert parse_messages(second) == expected


def test_content_in_parts() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert parse_messages([{"role": "assistant", "content": parts}]) == (Message("assistant", "a b"),)


def test_messages_without_a_reply() -> None:
    assert parse_messages([{"role": "user", "content": "a"}], needs_reply=False) == (Message("user", "a"),)


USER = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "messages: found nothing, expected a list"),
        ({"role": "user"}, "messages: found a dict, expected a list"),
        ([], "messages: found an empty list"),
        (["hi"], r"messages\[0\]: found a str, expected an object"),
        ([{}], r"messages\[0\]: found the keys none, expected 'role' and 'content', or 'from' and 'value'"),
        ([{"role": "user", "value": "a"}], r"messages\[0\]: found the keys 'role', 'value', expected"),
        (
            [USER, {"role": "tool", "content": "a"}],
            r"messages\[1\]: found the role 'tool', expected one of system, user",
        ),
        ([{"role": ["user"], "content": "a"}], r"found the role \['user'\]"),
        ([USER, {"role": "assistant", "content": None}], r"messages\[1\]: content: found nothing, expected a text"),
        ([USER, {"from": "gpt", "value": 3}], r"messages\[1\]: value: found a int, expected a text"),
        (
            [USER, {"role": "assistant", "content": " \n"}],
            r"messages\[1\]: content: found no text, expected the message of the a",
        ),
        ([{"role": "user", "content": [{"type": "image"}]}, REPLY], "found a part that is 'image'"),
        ([{"role": "user", "content": ["a"]}, REPLY], "found a part that is a str"),
        ([{"role": "user", "content": "a\ud800"}, REPLY], r"messages\[0\]: content: found '\\ud800' at 1"),
        ([USER, {"role": "system", "content": "a"}, REPLY], r"messages\[1\]: found a system message"),
        ([USER], "messages: found no turn of the assistant"),
    ],
)
def test_messages_that_are_none(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_messages(value)


def test_instructions() -> None:
    assert instruction_messages("Add.", "1 2", "3") == (Message("user", "Add.\n\n1 2"), Message("assistant", "3"))
    for without in ("", None):
        assert instruction_messages("Add.", without, "3")[0] == Message("user", "Add.")
    with pytest.raises(ValueError, match="output: found no text"):
        instruction_messages("Add.", None, "")


# Keys that change what is learned.


TURNS = [USER, REPLY | {"content": "wrong"}, USER, REPLY]


@pytest.mark.parametrize(
    "key", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": 0}, {"weight": 1, "loss": False}]
)
def test_a_turn_of_weight_zero_is_context_only(key: dict[str, object]) -> None:
    turns = [TURNS[0], TURNS[1] | key, *TURNS[2:]]
    assert [message.learned for message in parse_messages(turns)] == [True, False, True, True]
    assert not list(unused_keys(turns))


@pytest.mark.parametrize("key", [{"weight": 1}, {"train": True}, {"weight": None}])
def test_a_turn_of_weight_one_is_learned(key: dict[str, object]) -> None:
    assert parse_messages([USER, REPLY | key]) == parse_messages([USER, REPLY])


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([USER, REPLY | {"weight": 0.5}], r"messages\[1\]: weight: found 0.5, expected 0 or 1"),
        ([USER, REPLY | {"train": "false"}], r"train: found 'false', expected 0 or 1"),
        ([USER, REPLY | {"weight": 0}], "found only turns of the assistant that are not to be learned"),
        ([USER, REPLY | {"train_detail": [{"begin": 0}]}], "found 'train_detail', which no chat format here writes"),
        ([USER, REPLY | {"training_detail": [{"begin": 0}]}], "found 'training_detail', which no chat format here"),
        (
            [USER, {"role": "assistant", "function_call": {"name": "f"}}],
            "'function_call' beside content null, which no",
        ),
        ([USER, {"role": "assistant", "content": None, "refusal": "No."}], "'refusal' beside content null, which no"),
        ([USER, REPLY | {"reasoning_content": "hm"}], "found 'reasoning_content', which no chat format here writes"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}], "'tool_calls' beside content null"),
        (
            [USER, REPLY, {"role": "tool", "content": "3"}],
            r"no chat format here writes those of tools.*'\{\"tool\": \"user\"\}'",
        ),
        ([{"role": "boss", "content": "a"}, REPLY], r"found the role 'boss', expected one of system.*--roles"),
        ([USER | {"content": [{"type": "image_url", "image_url": {}}]}, REPLY], "found a part that is 'image_url'"),
    ],
)
def test_keys_that_cannot_be_followed_are_refused_by_name(turns: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_messages(turns)


def test_empty_keys_do_not_matter_and_others_are_named() -> None:
    turns = [USER | {"name": "Ann", "weight": 1, "id": ""}, REPLY | {"tool_calls": [], "reasoning_content": None}]
    assert [message.content for message in parse_messages(turns)] == ["a", "b"]
    assert list(unused_keys(turns)) == ["name", "weight of user"]


def test_the_roles_of_published_data_sets() -> None:
    expected = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"))
    for system, user, assistant in (
        ("developer", "prompter", "model"),
        ("System", "Human", "GPT"),
        ("system", "q", "r"),
    ):
        turns = [{"role": system, "text": "s"}, {"role": user, "text": "a"}, {"role": assistant, "text": "b"}]
        assert all(map(is_message, turns))
        assert parse_messages(turns, roles={"q": "user", "r": "assistant"}) == expected
    tool = [USER, {"from": "function", "value": "3"}, REPLY]
    assert parse_messages(tool, roles={"function": "user"})[1] == Message("user", "3")


def test_system_messages_at_the_beginning_are_one() -> None:
    turns = [{"role": "developer", "content": "s"}, {"role": "system", "content": "t"}, USER, REPLY]
    assert parse_messages(turns)[0] == Message("system", "s\n\nt")
