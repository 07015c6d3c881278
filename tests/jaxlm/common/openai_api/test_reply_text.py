from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.common.openai_api.reply_text import ReplyText, StopSequences
from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.tokenizers.tokenizer import TextStream


def streamed(pieces, stops):
    stream = StopSequences(stops)
    given_out = "".join([stream.add(piece) for piece in pieces])
    return given_out + stream.end(), stream.found


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["one ST", "O", "P two"], ["STOP"], "one ", True),
        (["one ST", "O"], ["STOP"], "one STO", False),
        (["aab"], ["ab"], "a", True),
        (["a", "a", "b"], ["ab"], "a", True),
        (["xabc"], ["abc", "b"], "xa", True),
        (["xabc"], ["c", "abc"], "x", True),
        (["text"], [], "text", False),
        (["", "a"], ["a"], "", True),
    ],
)
def test_text_ends_before_the_stop_sequence_that_ends_first(pieces, stops, text, found):
    assert streamed(pieces, stops) == (text, found)


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.sets(st.integers(0, 12)),
)
def test_where_tokens_end_does_not_matter(text, stops, cuts):
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in pairwise(edges)]
    assert streamed(pieces, stops) == streamed(list(text), stops)


def test_nothing_is_given_out_twice_or_taken_back():
    stream = StopSequences(["END"])
    assert [stream.add(piece) for piece in ("a", "E", "N", "x", "EN", "D", "b")] == ["a", "", "", "ENx", "", "", ""]


def test_the_spaces_of_a_chat_format_are_no_stop_sequence(tokenizer):
    reply = ReplyText(ReplyStream(tokenizer, CHAT_FORMATS["llama-2"]), [" "])
    assert "".join(reply.add(token) for token in tokenizer.encode(" add(a, b)")) + reply.end() == "add(a,"
    assert reply.stopped


def test_a_character_comes_whole_and_half_a_one_as_a_replacement(tokenizer):
    ids = tokenizer.encode("a\N{SLIGHTLY SMILING FACE}")
    assert len(ids) > 2
    reply = ReplyText(TextStream(tokenizer), [])
    assert [piece for token in ids if (piece := reply.add(token))] == ["a", "\N{SLIGHTLY SMILING FACE}"]
    reply = ReplyText(TextStream(tokenizer), [])
    assert "".join(reply.add(token) for token in ids[:-1]) + reply.end() == "a\N{REPLACEMENT CHARACTER}"
