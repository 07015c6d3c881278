import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.reply_stream import ReplyStream

FORMATS = list(CHAT_FORMATS.values())


@settings(max_examples=40)
@given(st.sampled_from(FORMATS), st.text(st.sampled_from(" \nab\u00e9\u2713\U0001f600"), max_size=12))
def test_the_pieces_are_the_content_of_the_whole(tokenizer, chat_format, text):
    stream = ReplyStream(tokenizer, chat_format)
    pieces = [stream.add(token) for token in tokenizer.encode(text)]
    pieces.append(stream.end())
    assert "".join(pieces) == stream.content == chat_format.reply_content(text)


@pytest.mark.parametrize("character", ["\u00e9", "\u2713", "\U0001f600"])
def test_half_a_character_is_never_given(tokenizer, character):
    tokens = tokenizer.encode(character)
    assert len(tokens) == len(character.encode())
    stream = ReplyStream(tokenizer, CHAT_FORMATS["chatml"])
    assert [stream.add(token) for token in tokens] == [""] * (len(tokens) - 1) + [character]
    assert [stream.add(token) for token in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert stream.end() == "\ufffd"
