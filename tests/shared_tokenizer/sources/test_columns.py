import pytest

from shared_tokenizer.chat.messages import Message
from shared_tokenizer.sources.columns import Columns, choose_columns, find_columns, read_columns
from shared_tokenizer.sources.row_rules import RowRules


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "messages"], Columns(content="messages")),
        (["conversations", "text"], Columns(content="conversations")),
        (["TEXT", "content", "text"], Columns(content="text")),
        (["body", "message"], Columns(content="message")),
        (["output", "input", "instruction"], Columns(instruction="instruction", input="input", answer="output")),
        (["prompt", "completion"], Columns(instruction="prompt", answer="completion")),
        (["question", "answer", "context"], Columns(instruction="question", input="context", answer="answer")),
        (["output", "id"], Columns(content="output")),
        (["id", "url"], None),
    ],
)
def test_the_first_known_column_is_chosen(names, expected):
    assert choose_columns(dict.fromkeys(names, "x")) == expected


def test_a_row_becomes_a_text_or_a_chat():
    assert read_columns({"body": "b"}, Columns(content="body")) == "b"
    chat = (Message("user", "q"), Message("assistant", "a"))
    pairs = Columns(instruction="q", input="c", answer="a")
    assert read_columns({"q": "q", "c": None, "a": "a"}, pairs) == chat
    assert read_columns({"q": "q", "c": "", "a": "a"}, pairs) == chat
    assert read_columns({"q": "q", "c": "x", "a": "a"}, pairs)[0].content == "q\n\nx"
    messages = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert read_columns({"conversations": messages}, Columns(content="conversations")) == chat


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"id": 1}, Columns(content="text"), "no column 'text', found 'id'"),
        ({"text": None}, Columns(content="text"), "column 'text': found a NoneType, expected a string"),
        ({"q": "x"}, Columns(instruction="q", answer="a"), "no column 'a'"),
        ({"q": "x", "c": 3, "a": "y"}, Columns(instruction="q", input="c", answer="a"), "column 'c': found a int"),
        ({"messages": []}, Columns(content="messages"), "messages"),
    ],
)
def test_a_row_without_its_columns_says_so(row, columns, message):
    with pytest.raises(ValueError, match=message):
        read_columns(row, columns)


def test_the_columns_are_those_of_the_first_row_that_has_known_ones():
    assert find_columns([{"id": 1}, {"text": "a"}], RowRules()) == (Columns(content="text"), False)
    assert find_columns([{"talk": [], "text": "a"}], RowRules("talk")) == (Columns(content="talk"), True)
    with pytest.raises(ValueError, match="found the columns id, url, expected a known name; set text_column"):
        find_columns([{"id": 1, "url": 2}], RowRules())
    with pytest.raises(ValueError, match=r"found the columns id, expected 'talk'"):
        find_columns([{"id": 1}], RowRules("talk"))


def test_messages_may_be_written_as_json():
    text = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    assert find_columns([{"messages": text}], RowRules()) == (Columns(content="messages"), True)
    assert read_columns({"messages": text}, Columns(content="messages"))[1] == Message("assistant", "a")
    with pytest.raises(ValueError, match=r"column 'messages': found a text that is neither JSON.*'\[plain'"):
        read_columns({"messages": "[plain"}, Columns(content="messages"))


@pytest.mark.parametrize(
    "row",
    [{"prompt": "a", "completion": "b", "label": False}, {"prompt": "a", "completion": "b", "label": "true"}],
)
def test_a_rated_answer_is_refused_in_any_row(row):
    columns = Columns(instruction="prompt", answer="completion")
    with pytest.raises(ValueError, match="prompt, completion and a label of true or false"):
        read_columns(row, columns)
    assert len(read_columns(row, columns, RowRules(text_column="prompt+completion"))) == 2
