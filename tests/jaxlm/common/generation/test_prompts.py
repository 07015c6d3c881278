import json

import pytest

from jaxlm.common.generation.prompts import read_prompts
from jaxlm.common.sampling import check_prompt
from shared_tokenizer.chat.formats import named_chat_format
from shared_tokenizer.chat.messages import Message, encode_generation_prompt

CONTEXT = 120


@pytest.fixture
def read(tokenizer, tmp_path):
    def check(ids):
        check_prompt(ids, tokenizer.vocab_size, CONTEXT)

    def of(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_prompts(path, tokenizer, lambda: named_chat_format("alpaca"), check)

    return of


def test_lines_of_a_text_are_prompts_and_blank_ones_are_not(read, tokenizer):
    found = read("prompts.txt", "def f\r\n\n  x = 1\nlast")
    assert [(each.line, each.row) for each in found] == [
        (1, {"prompt": "def f"}),
        (3, {"prompt": "  x = 1"}),
        (4, {"prompt": "last"}),
    ]
    assert [each.ids for each in found] == [tokenizer.encode_to_continue(each.row["prompt"]) for each in found]


def test_rows_are_texts_or_conversations_and_keep_their_keys(read, tokenizer):
    rows = [{"prompt": "", "id": 7}, {"messages": [{"role": "user", "content": "hi"}], "of": {"a": [1]}}]
    found = read("prompts.jsonl", "\n".join(map(json.dumps, rows)))
    assert [each.row for each in found] == rows and all(each.error is None for each in found)
    assert found[0].ids == tokenizer.encode_to_continue("")
    expected = encode_generation_prompt([Message("user", "hi")], tokenizer, named_chat_format("alpaca"))
    assert found[1].ids == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not JSON"),
        ('"a text alone"', "found a JSON str, expected an object"),
        ('{"prompt": 5}', "prompt: found 5, expected a text"),
        ('{"text": "a"}', "found the keys [\"text\"], expected either 'prompt' or 'messages'"),
        ('{"prompt": "a", "messages": []}', "found 'prompt' and 'messages', expected either"),
        ('{"prompt": "a", "seed": 1}', "found the key 'seed', which completions add; rename it"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "found assistant as the role of the last message"),
        ('{"messages": "hi"}', "messages: found a str"),
        ('{"prompt": "%s"}' % ("word " * 90), "expected fewer than the model's context of 120"),
    ],
)
def test_a_row_that_cannot_be_continued_is_named_by_its_line_and_loses_no_other(read, row, message):
    found = read("prompts.jsonl", f'{{"prompt": "first"}}\n\n{row}\n{{"prompt": "last"}}\n')
    assert [each.line for each in found] == [1, 3, 4]
    assert [each.error is None for each in found] == [True, False, True]
    assert message in str(found[1].error)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("prompts.txt", "\n \n", "found no prompt in .*, expected one per line"),
        ("prompts.jsonl", '{"a": 1}\n', r"found none in .* that can be continued; line 1: found the keys"),
        ("prompts.txt", b"\xff\xfe\xfa", "not utf-16 near byte 3"),
        ("prompts.bin", b"abc", r"expected jsonl with a prompt per line, or lines of text in a \.txt"),
    ],
)
def test_a_file_without_prompts_is_refused(read, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(name, text)
