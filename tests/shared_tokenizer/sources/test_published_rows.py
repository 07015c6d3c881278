"""Rows as public data sets have them: each is read as a person would read it, or refused by the name of a column."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.sources.columns import find_columns, read_columns, unused_columns
from shared_tokenizer.sources.row_rules import RowRules

ASK, REPLY = {"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}
FROM = [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}]
CHAT = (Message("user", "Two and two?"), Message("assistant", "Four."))
SYSTEM = Message("system", "Be brief.")


def read(row, **rules):
    """Return the columns, the content and the unused columns of a row."""
    chosen = RowRules(**rules)
    columns, holds_chats = find_columns([row], chosen)
    found = read_columns(row, columns, chosen)
    assert isinstance(found, str) != holds_chats
    return str(columns), found, list(unused_columns(row, columns))


PAIRS = {
    "instruction, input": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "instruction + input + output"),
    "input, output": ({"input": "Two and two?", "output": "Four."}, "input + output"),
    "dolly": (
        {"instruction": "Add.", "context": "1 2", "response": "3", "category": "qa"},
        "instruction + context + response",
    ),
    "gsm8k": ({"question": "Two and two?", "answer": "Four."}, "question + answer"),
    "metamath": (
        {"type": "GSM", "query": "Two and two?", "original_question": "2+2?", "response": "Four."},
        "query + response",
    ),
    "numina": ({"problem": "Two and two?", "solution": "Four.", "answer": "4"}, "problem + solution"),
    "human": ({"human": "Two and two?", "assistant": "Four."}, "human + assistant"),
    "completion": ({"prompt": "Two and two?", "completion": "Four."}, "prompt + completion"),
    "flan": ({"inputs": "Two and two?", "targets": "Four.", "task": "add"}, "inputs + targets"),
    "coding alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3", "prompt": "Below is... ### Instruction:\nAdd."},
        "instruction + input + output",
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "### Instruction:\nAdd.\n### Response:\n3"},
        "instruction + input + output",
    ),
    "a table with headings": (
        {"Instruction": "Add.", "Input": "1 2", "Output": "3", "Topic": "sums"},
        "Instruction + Input + Output",
    ),
    "wizardlm": ({"instruction": "Two and two?", "output": "Four.", "idx": 3}, "instruction + output"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_question_and_its_answer_are_a_chat(name):
    row, columns = PAIRS[name]
    found_columns, chat, unused = read(row)
    assert found_columns == columns
    question, *context, answer = columns.split(" + ")
    asked = "\n\n".join([row[question], *(row[part] for part in context)])
    assert chat == (Message("user", asked), Message("assistant", row[answer]))
    assert unused == [key for key in row if key not in columns.split(" + ")]


CHATS = {
    "ultrachat": {"prompt": "Two and two?", "prompt_id": "x", "messages": [ASK, REPLY]},
    "no_robots": {"prompt": "Two and two?", "messages": [ASK, REPLY], "category": "qa"},
    "sharegpt": {"id": "x", "conversations": FROM},
    "openhermes": {"conversations": FROM, "system_prompt": None, "source": "x", "custom_instruction": False},
    "lima": {"conversations": ["Two and two?", "Four."], "source": "x"},
    "capybara": {"source": "x", "conversation": [{"input": "Two and two?", "output": "Four."}]},
    "oasst thread": {
        "messages": [{"role": "prompter", "text": "Two and two?"}, {"role": "assistant", "text": "Four."}]
    },
    "trl": {"prompt": [ASK], "completion": [REPLY]},
    "trl, one text": {"prompt": "Two and two?", "completion": [REPLY]},
    "trl in a csv": {"prompt": json.dumps([ASK]), "completion": json.dumps([REPLY])},
    "json": {"messages": json.dumps([ASK, REPLY])},
    "python": {"messages": str([ASK, REPLY])},
    "numpy": {"conversations": f"[{FROM[0]}\n {FROM[1]}]"},
    "json in a text column": {"text": json.dumps([ASK, REPLY])},
    "lists of the datasets library": {
        "conversations": {"from": ["human", "gpt"], "value": ["Two and two?", "Four."], "weight": [None, None]}
    },
    "an input alone": {"instruction": "", "input": "Two and two?", "output": "Four."},
    "an empty text": {"text": "", "question": "Two and two?", "answer": "Four."},
    "parts": {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "Four."}]}]},
    "null keys": {"messages": [ASK | {"tool_calls": None}, REPLY | {"tool_calls": []}], "tools": None},
}


@pytest.mark.parametrize("name", CHATS)
def test_a_list_of_messages_is_a_chat(name):
    _, chat, unused = read(CHATS[name])
    assert chat == CHAT
    assert set(unused) <= {"prompt", "prompt_id", "id", "source", "category", "custom_instruction"}


SYSTEMS = {
    "orca": {"id": "x", "system_prompt": "Be brief.", "question": "Two and two?", "response": "Four."},
    "sharegpt": {"system": "Be brief.", "conversations": FROM},
    "twice the same": {"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, ASK, REPLY]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, ASK, REPLY]},
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_column_begins_the_chat(name):
    columns, chat, unused = read(SYSTEMS[name])
    assert chat == (SYSTEM, *CHAT)
    assert unused == (["id"] if name == "orca" else [])
    assert columns.startswith("system") or name == "developer"


@pytest.mark.parametrize("history", [[["Hi", "Hello."]], '[["Hi", "Hello."]]', "[['Hi', 'Hello.']]"])
def test_a_history_stands_before_the_question(history):
    row = {"instruction": "Two and two?", "output": "Four.", "system": "Be brief.", "history": history}
    columns, chat, unused = read(row)
    assert columns == "system + history + instruction + output"
    assert chat == (SYSTEM, Message("user", "Hi"), Message("assistant", "Hello."), *CHAT)
    assert not unused
    for empty in (None, [], "", "[]"):
        assert read(row | {"history": empty})[1] == (SYSTEM, *CHAT)
    with pytest.raises(ValueError, match=r"column 'history': found 'Hi', expected a list"):
        read(row | {"history": "Hi"})


def test_later_rows_may_have_what_the_first_ones_lack():
    columns, _ = find_columns([{"instruction": "Add.", "output": "3"}], RowRules())
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}
    assert read_columns(row, columns) == (SYSTEM, Message("user", "Add.\n\n1 2"), Message("assistant", "3"))
    assert not list(unused_columns(row, columns))


def test_the_columns_next_to_a_chat_are_those_of_any_of_the_first_rows():
    rows = [{"instruction": "Add.", "output": "3", "history": []}]
    rows += [rows[0] | {"history": [["Hi", "Hello."]]}, rows[0] | {"system": "Be brief."}]
    assert str(find_columns(rows, RowRules())[0]) == "system + history + instruction + output"


def test_a_system_column_of_text_parts_is_the_system_message():
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    row = {"messages": [ASK, REPLY]}
    assert read(row | {"system": parts})[1] == read(row | {"system": "Be brief."})[1]
    with pytest.raises(ValueError, match="system: found a part that is 'image'"):
        read(row | {"system": [{"type": "image"}]})


@pytest.mark.parametrize("question", ["Add.", [ASK]])
def test_a_missing_context_of_a_data_frame_is_none(question):
    rows = [{"instruction": question, "input": cell, "output": "3"} for cell in (None, float("nan"))]
    assert read(rows[1])[1:] == read(rows[0])[1:]


def test_the_assistants_turns_of_a_prompt_are_context_only():
    row = {"prompt": [ASK, REPLY | {"content": "Five."}, ASK | {"content": "Sure?"}], "completion": [REPLY]}
    assert [message.learned for message in read(row)[1]] == [True, False, True, True]


REFUSED = {
    "no turns of hh-rlhf": (
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
        "column 'chosen': found a text with",
    ),
    "kto": ({"prompt": "a", "completion": "b", "label": False}, "prompt, completion and a label"),
    "kto of a CSV": ({"prompt": "a", "completion": "b", "label": "False"}, "prompt, completion and a label"),
    "kto messages": ({"messages": [ASK, REPLY], "label": True}, "messages and a label.*--text_column messages"),
    "one message": ({"role": "user", "content": "Hi"}, "role and content, which are one message of a conversation"),
    "oasst": ({"message_id": "x", "role": "prompter", "text": "Hi", "parent_id": None}, "role and text.*one message"),
    "prose and pair": (
        {"text": "Some prose.", "question": "a", "answer": "b"},
        r"text, question, answer, which can be read as a text and .*--text_column text or --text_column question\+ans",
    ),
    "text and answer": (
        {"text": "Two and two?", "answer": "Four."},
        r"--text_column text or --text_column text\+answer",
    ),
    "answer and words": (
        {"sentence": "Two and two?", "output": "Four."},
        r"output, sentence.*--text_column output or --text_column sentence\+output",
    ),
    "answer and a word": ({"input_text": "Hello", "output": "Bonjour"}, r"--text_column input_text\+output"),
    "answer and a list": ({"questions": ["Who?"], "output": "Me."}, r"--text_column questions\+output"),
    "two questions": (
        {"instruction": "Add.", "question": "1 2", "answer": "3"},
        r"question and instruction beside answer|instruction and question beside answer",
    ),
    "glaive": ({"system": "SYSTEM: x", "chat": "USER: a\nASSISTANT: b"}, "found the columns system, chat, expected a"),
    "squad": (
        {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [3]}},
        "column 'answers': found a dict, expected a string",
    ),
    "coqa": (
        {"story": "s", "questions": ["q"], "answers": {"input_text": ["a"]}},
        "found the columns story, questions",
    ),
    "xlam": (
        {"id": 0, "query": "q", "answers": '[{"name": "f", "arguments": {"a": 1}}]', "tools": '[{"name": "f"}]'},
        "column 'tools': found tools that an answer calls",
    ),
    "prose in messages": ({"messages": "Hi there"}, "column 'messages': found a text that is neither JSON nor Python"),
    "code": ({"func": "def f(): pass", "repo": "x"}, "found the columns func, repo, expected a known name"),
    "two systems": (
        {"system": "Be long.", "messages": [{"role": "system", "content": "Be brief."}, ASK, REPLY]},
        "column 'system': found another system message",
    ),
    "nested": ({"data": {"messages": [ASK, REPLY], "id": 3}}, r"found the columns data.messages, data.id, expected"),
    "function": ({"conversations": [FROM[0], {"from": "function", "value": "4"}, FROM[1]]}, "the role 'function'"),
    "rated turn": ({"messages": [ASK, REPLY | {"weight": 0.3}]}, "weight: found 0.3, expected 0 or 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_mean_something_else_is_refused_by_name(name):
    row, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read(row)


NAMED = [
    ({"data": {"messages": [ASK, REPLY], "id": 3}}, "data.messages", ["data.id"]),
    (
        {"question": "Two and two?", "answers": {"text": ["Four."], "start": 1}},
        "question+answers.text.0",
        ["answers.start"],
    ),
    ({"src": "Two and two?", "tgt": "Four.", "id": 3}, "src+tgt", ["id"]),
    ({"src": "Two and", "more": "two?", "tgt": "Four."}, "src + more + tgt", []),
    ({"a.b": [ASK, REPLY]}, "a.b", []),
]


@pytest.mark.parametrize(("row", "name", "unused"), NAMED)
def test_a_named_column_may_be_nested_and_two_are_a_pair(row, name, unused):
    _, chat, left = read(row, text_column=name)
    assert chat[-1] == CHAT[-1] and " ".join(chat[0].content.split()) == CHAT[0].content
    assert left == unused


def test_an_answer_alone_is_a_text_where_no_other_column_is_one():
    assert read({"output": "Four.", "id": "row 3 of 7", "source": "a b"})[1:] == ("Four.", ["id", "source"])
    assert read({"sentence": "Two and two?", "output": "Four."}, text_column="output")[1] == "Four."
    assert read({"text": "Two and two?", "title": "Sums", "answer": None}) == ("text", "Two and two?", ["title"])


def test_names_in_capitals_are_known_where_they_mean_one_thing():
    assert read({"Question": "Two and two?", "Answer": "Four."})[:2] == ("Question + Answer", CHAT)
    assert read({"Text": "Some prose.", "Title": "x"}) == ("Text", "Some prose.", ["Title"])
    assert read({"Messages": [ASK, REPLY]})[1] == CHAT
    for name in ("Messages", "data.messages"):
        row = {"Messages": "prose"} if name == "Messages" else {"data": {"messages": "prose"}}
        with pytest.raises(ValueError, match=f"column '{name}': found a text that is neither JSON"):
            read(row, text_column=name)
        with pytest.raises(ValueError, match="found"):
            read(row)
    with pytest.raises(ValueError, match="found the columns Text, Answer, expected a known name"):
        read({"Text": "Some prose.", "Answer": "Four."})


def test_roles_under_other_names():
    row = {"messages": [ASK | {"role": "customer"}, REPLY | {"role": "agent"}]}
    assert read(row, roles_by_name={"customer": "user", "agent": "assistant"})[1] == CHAT
    with pytest.raises(ValueError, match="roles: boss: found 'chief', expected system, user or assistant"):
        RowRules(roles_by_name={"boss": "chief"})
    with pytest.raises(ValueError, match=r"found the role 'customer'.*--roles '\{\"customer\": \"user\"\}'"):
        read(row)


def test_keys_of_messages_that_are_not_read_are_named():
    row = {"conversations": [FROM[0] | {"name": "Ann", "weight": 1}, FROM[1] | {"id": 7, "weight": 1}], "lang": "en"}
    assert read(row)[2] == ["lang", "conversations[].name", "conversations[].weight of human", "conversations[].id"]


@pytest.mark.parametrize("cell", ["[" * 100_000, "[" + "1," * 600_000 + "]", "[__import__('os')]", "[{'a': }]"])
def test_a_hostile_cell_is_refused(cell):
    with pytest.raises(ValueError, match=r"column 'messages': found a text|messages\[0\]: found a int"):
        read({"messages": cell})


NAMES = [
    "messages",
    "conversation",
    "text",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "answers",
    "system",
    "history",
    "tools",
    "role",
    "from",
    "value",
    "content",
    "weight",
    "train",
    "label",
    "chosen",
    "rejected",
    "tool_calls",
    "type",
]
CELLS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2)
    | st.floats()
    | st.sampled_from(["user", "gpt", "system", "tool", "", " ", "a b", "[]", '[{"role": 1}]', "[{'from': 'gpt'}]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(NAMES), CELLS, min_size=1, max_size=5),
    st.sampled_from([None, "messages", "prompt+output", "text.content", "messages.0.content"]),
    st.sampled_from(["auto", "rendered"]),
)
def test_any_row_is_read_or_refused(row, text_column, text_format):
    rules = RowRules(text_column, {"tool": "user"}, text_format)
    try:
        columns, _ = find_columns([row], rules)
        found = read_columns(row, columns, rules)
    except ValueError:
        return
    assert isinstance(found, str) or any(message.role == "assistant" and message.learned for message in found)
    assert len(list(unused_columns(row, columns))) < 100
