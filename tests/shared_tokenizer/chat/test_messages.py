"""Conversations as ids: exact by hand, by properties, and against transformers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHAT_FORMATS, CHATML, named_chat_format
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.messages import Message, encode_chat, encode_generation_prompt, stop_ids
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from tests.shared_tokenizer.chat.chat_tokenizers import (
    BY_HAND,
    CHAT,
    CONTROL,
    EMPTY_THOUGHT,
    FORMATS,
    IM,
    PAIRS,
    PATTERNS,
    Bytes,
    SpacedBytes,
    shown,
    their_ids,
)

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_by_hand(chat_format: FramedFormat) -> None:
    tokenizer = Bytes()
    assert shown(encode_chat(CHAT, tokenizer, chat_format), tokenizer) == BY_HAND[chat_format.name]


def test_ids_by_hand() -> None:
    tokenizer = Bytes(["</s>", *IM], bos=None)
    chat = [Message("user", "a"), Message("assistant", "b")]
    encoded = encode_chat(chat, tokenizer, CHATML)
    assert encoded.ids == [257, *b"user\na", 258, *b"\n", 257, *b"assistant\nb", 258, *b"\n"]
    assert encoded.loss_mask == [False] * 20 + [True] * 2 + [False]


def test_default_system_message_is_smollm2s() -> None:
    tokenizer = Bytes(["</s>", *IM], bos=None)
    text = shown(encode_chat(CHAT[1:], tokenizer, named_chat_format("smollm2")), tokenizer)
    assert text.startswith(f"<|im_start|>system\n{SMOLLM2_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n")


def test_markers_that_are_special_tokens_are_inserted_by_id() -> None:
    tokenizer = Bytes(["<s>", "</s>", "[INST]", "[/INST]", "<|user|>"])
    mistral = encode_chat(CHAT, tokenizer, named_chat_format("mistral"))
    assert shown(mistral, tokenizer) == BY_HAND["mistral"]
    assert mistral.ids[:4] == [256, ord(" "), 258, ord(" ")]
    zephyr = encode_chat(CHAT[1:], tokenizer, named_chat_format("zephyr"))
    assert zephyr.ids[:2] == [256, 260]
    assert shown(zephyr, tokenizer) == BY_HAND["zephyr"].replace("<|system|>\nBe brief.</s>\n", "")


THOUGHTS = (
    Message("user", "Hi"),
    Message("assistant", "<think>\nA greeting.\n</think>\n\nHello!"),
    Message("user", "Bye"),
    Message("assistant", "<think>\nGone.\n</think>\n\nSee you"),
)


def test_only_the_last_answer_keeps_its_thought() -> None:
    tokenizer = Bytes()
    plain = [replace(turn, content=turn.content.rpartition("</think>\n\n")[2]) for turn in THOUGHTS]
    text = shown(encode_chat(THOUGHTS, tokenizer, named_chat_format("qwen3")), tokenizer)
    assert "assistant\n\u00abHello!<|im_end|>" in text
    assert "assistant\n\u00ab<think>\nGone.\n</think>\n\nSee you<|im_end|>\u00bb" in text
    for encode, count in ((encode_chat, 4), (encode_generation_prompt, 3)):
        chat_format = named_chat_format("qwen3-no-think")
        assert encode(THOUGHTS[:count], tokenizer, chat_format) == encode(plain[:count], tokenizer, chat_format)
    prompt = encode_generation_prompt(THOUGHTS[:3], tokenizer, named_chat_format("qwen3-no-think"))
    assert bytes(prompt[-29:]).endswith(b"assistant\n<think>\n\n</think>\n\n")


def test_thoughts_are_marked_by_special_tokens_where_there_are_such() -> None:
    tokenizer = Bytes(["</s>", *IM, "<think>", "</think>"], bos=None)
    encoded = encode_chat(THOUGHTS[2:], tokenizer, named_chat_format("qwen3"))
    assert [i for i in encoded.ids if i >= 256] == [257, 258, 257, 259, 260, 258]


@pytest.mark.parametrize("kind", ["bpe", *PATTERNS])
def test_transformers_gives_the_same_thoughts(theirs, kind: str) -> None:
    ours, other = theirs[kind, "qwen3"]
    for count in (2, 4):
        assert encode_chat(THOUGHTS[:count], ours, named_chat_format("qwen3")).ids == their_ids(other, THOUGHTS[:count])
    prompt = their_ids(other, THOUGHTS[:3], add_generation_prompt=True)
    assert encode_generation_prompt(THOUGHTS[:3], ours, named_chat_format("qwen3")) == prompt


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_a_marker_that_has_to_be_special_is_missed(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*'<\|.*whose special tokens are <s>, </s>"):
        encode_chat(CHAT, Bytes(["<s>", "</s>"]), named_chat_format(name))


FOLDING = [known.name for known in FORMATS if known.folds_system]


@pytest.mark.parametrize("name", FOLDING)
def test_consecutive_turns_of_one_role_become_one(name: str) -> None:
    tokenizer, chat_format = Bytes(), named_chat_format(name)
    said = [Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("assistant", "d")]
    merged = [Message("user", "a\n\nb"), Message("assistant", "c\n\nd")]
    assert encode_chat(said, tokenizer, chat_format) == encode_chat(merged, tokenizer, chat_format)


@pytest.mark.parametrize("name", FOLDING)
@pytest.mark.parametrize("chat", [CHAT[2:], CHAT[:1], (CHAT[0], *CHAT[2:])])
def test_formats_that_begin_with_the_user(name: str, chat: Sequence[Message]) -> None:
    with pytest.raises(ValueError, match=f"{name}: found the first turn to be .*, expected the user's"):
        encode_chat(chat, Bytes(), named_chat_format(name))


@pytest.mark.parametrize("name", [known.name for known in FORMATS if known.trims in ("turns", "contents")])
def test_formats_that_trim(name: str) -> None:
    spaced = [Message(message.role, f" \n{message.content}\n ") for message in CHAT[1:]]
    tokenizer, chat_format = Bytes(), named_chat_format(name)
    assert encode_chat(spaced, tokenizer, chat_format) == encode_chat(CHAT[1:], tokenizer, chat_format)


SPACED = {
    "chatml": "<s><|im_start|> user\nHi<|im_end|> \n<|im_start|> assistant\n\u00abHello!<|im_end|>\u00bb \n",
    "llama-2": "<s> [INST] Hi [/INST]\u00ab Hello! </s>\u00bb",
    "mistral": "<s> [INST] Hi [/INST]\u00ab Hello!</s>\u00bb",
    "zephyr": "<s> <|user|>\nHi</s> \n<|assistant|>\n\u00abHello!</s>\u00bb \n",
    "alpaca": "<s> ### Instruction:\nHi\n\n### Response:\n\u00abHello!</s>\u00bb \n\n",
}


@pytest.mark.parametrize("name", SPACED)
def test_a_tokenizer_that_puts_spaces_before_texts(name: str) -> None:
    """Put one space after a special token and none into a text."""
    tokenizer = SpacedBytes()
    assert shown(encode_chat(CHAT[1:3], tokenizer, named_chat_format(name)), tokenizer) == SPACED[name]


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
@pytest.mark.parametrize("spaced", [False, True])
def test_a_turn_that_is_not_learned_changes_the_mask_and_no_id(chat_format: FramedFormat, spaced: bool) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    chat = [Message("user", "Hi"), Message("assistant", "Wrong", learned=False), *CHAT[3:]]
    encoded = encode_chat(chat, tokenizer, chat_format)
    whole = encode_chat([replace(message, learned=True) for message in chat], tokenizer, chat_format)
    assert encoded.ids == whole.ids
    learned = shown(encoded, tokenizer).partition("\u00ab")[2].partition("\u00bb")[0]
    assert (
        learned.strip().removeprefix(EMPTY_THOUGHT).startswith("See you")
        and "Wrong" not in shown(encoded, tokenizer).partition("\u00ab")[2]
    )


@pytest.mark.parametrize("name", FOLDING)
def test_turns_of_which_one_is_learned_are_not_joined(name: str) -> None:
    chat = [Message("user", "a"), Message("assistant", "b", learned=False), Message("assistant", "c")]
    with pytest.raises(ValueError, match="two turns of the assistant in a row of which only one is learned"):
        encode_chat(chat, Bytes(), named_chat_format(name))


def test_stop_ids() -> None:
    tokenizer = Bytes()
    special = tokenizer.special_tokens
    assert stop_ids(tokenizer, named_chat_format("chatml")) == [special["<|im_end|>"], special["</s>"]]
    assert stop_ids(tokenizer, named_chat_format("llama-3")) == [special["<|eot_id|>"], special["</s>"]]
    assert stop_ids(tokenizer, named_chat_format("llama-2")) == [special["</s>"]]


def test_a_prompt_answers_a_user() -> None:
    for chat, role in ((CHAT, "assistant"), (CHAT[:1], "system")):
        with pytest.raises(ValueError, match=f"found {role} as the role of the last message, expected user"):
            encode_generation_prompt(chat, Bytes(), CHATML)


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_no_conversation(chat_format: FramedFormat) -> None:
    for encode in (encode_chat, encode_generation_prompt):
        with pytest.raises(ValueError, match="messages: found none, expected a conversation"):
            encode([], Bytes(), chat_format)


INJECTED = "".join(["<s>", "</s>", *CONTROL, "<|system|>", "[/INST]", "### Response:\n"])
CONTENTS = st.lists(st.text(max_size=8) | st.sampled_from([INJECTED, *IM, "\n", "  ", "Hello"]), max_size=4).map(
    "".join
)
TURNS = st.builds(Message, st.sampled_from(["user", "assistant"]), CONTENTS.filter(str.strip))
CHATS = st.tuples(
    st.lists(st.builds(Message, st.just("system"), CONTENTS), max_size=1),
    st.builds(Message, st.just("user"), CONTENTS.filter(str.strip)),
    st.lists(TURNS, max_size=5),
    st.builds(Message, st.just("assistant"), CONTENTS.filter(str.strip)),
).map(lambda parts: [*parts[0], parts[1], *parts[2], parts[3]])


def runs_of_assistant(chat: Sequence[Message], chat_format: FramedFormat) -> list[str]:
    """Return the contents in the loss mask, as the format writes them."""
    runs, before = list[str](), ""
    for message in chat:
        content = message.content.strip() if chat_format.trims else message.content
        if message.role == "assistant" and message.role == before and chat_format.folds_system:
            runs[-1] += f"\n\n{content}"
        elif message.role == "assistant":
            runs.append(content)
        before = message.role
    if chat_format.thinking is not None and before == "assistant":
        runs[-1] = (EMPTY_THOUGHT if chat_format.thinking.is_on else "") + runs[-1].lstrip("\n")
    return runs


@given(CHATS, st.sampled_from(FORMATS), st.booleans())
def test_only_the_assistant_is_learned(chat: list[Message], chat_format: FramedFormat, spaced: bool) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    encoded = encode_chat(chat, tokenizer, chat_format)
    learned = [token for token, chosen in zip(encoded.ids, encoded.loss_mask, strict=True) if chosen]
    ends = set(stop_ids(tokenizer, chat_format))
    replies = [chat_format.reply_content(reply) for reply in split(learned, ends, tokenizer)]
    expected = runs_of_assistant(chat, chat_format)
    assert replies == [reply.strip() if chat_format.trims else reply for reply in expected]


def split(ids: Iterable[int], ends: set[int], tokenizer: Tokenizer) -> list[str]:
    """Return the texts before each end marker; no text follows the last one."""
    texts, current = list[str](), b""
    for token in ids:
        if token in ends:
            texts.append(current.decode())
            current = b""
        else:
            current += tokenizer.pieces[token]
    # A tokenizer that puts spaces before texts does so after a special token, and here too little was said for one.
    assert not current
    return texts


@given(CHATS, st.sampled_from(FORMATS))
def test_written_markers_stay_text(chat: list[Message], chat_format: FramedFormat) -> None:
    plain = [Message(message.role, "x") for message in chat]
    tokenizer = Bytes()
    special = [token for token in encode_chat(chat, tokenizer, chat_format).ids if token >= 256]
    assert special == [token for token in encode_chat(plain, tokenizer, chat_format).ids if token >= 256]


@given(CHATS, st.sampled_from(FORMATS), st.booleans())
def test_the_prompt_is_how_the_conversation_begins(
    chat: list[Message], chat_format: FramedFormat, spaced: bool
) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    last_turns_differ = chat_format.name in ("qwen3-no-think", "mistral-v0.3")
    for i, (before, after) in enumerate(pairwise(chat)):
        if (before.role, after.role) == ("user", "assistant"):
            whole = encode_chat(chat[: i + 2] if last_turns_differ else chat, tokenizer, chat_format)
            prompt = encode_generation_prompt(chat[: i + 1], tokenizer, chat_format)
            assert whole.ids[: len(prompt)] == prompt
            assert not whole.loss_mask[len(prompt) - 1]
            assert whole.loss_mask[len(prompt)]


# Against transformers.


def assert_same(theirs, pair: tuple[str, str], chat: Sequence[Message]) -> None:
    (ours, other), chat_format = theirs[pair], named_chat_format(pair[1])
    assert encode_chat(chat, ours, chat_format).ids == their_ids(other, chat)
    last_user = max(i for i, message in enumerate(chat) if message.role == "user") + 1
    prompt = their_ids(other, chat[:last_user], add_generation_prompt=True)
    assert encode_generation_prompt(chat[:last_user], ours, chat_format) == prompt


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_transformers_gives_the_same_ids(theirs, pair: tuple[str, str]) -> None:
    for chat in (CHAT, CHAT[1:], CHAT[:4], (*CHAT, CHAT[1], CHAT[1]), (*CHAT, CHAT[2])):
        assert_same(theirs, pair, chat)


@settings(max_examples=200)
@given(chat=CHATS, pair=st.sampled_from(PAIRS))
def test_transformers_gives_the_same_ids_for_any_content(theirs, chat: list[Message], pair: tuple[str, str]) -> None:
    def plain(content: str) -> str:
        """transformers reads special tokens in texts, and tokenizers from elsewhere join whitespace."""
        content = content.replace("<", "").replace("|", "")
        return (content.lstrip() if pair[0] in PATTERNS else content) or "x"

    assert_same(theirs, pair, [Message(message.role, plain(message.content)) for message in chat])


@pytest.mark.parametrize("kind", PATTERNS)
def test_where_whitespace_would_join_the_header(theirs, kind: str) -> None:
    """Find the same text, but the header encoded alone, as before an answer is generated."""
    ours, other = theirs[kind, "chatml"]
    chat = [Message("user", "Hi"), Message("assistant", "\n\nHello")]
    ids = encode_chat(chat, ours, CHATML).ids
    assert ids != their_ids(other, chat)
    assert ours.decode(ids) == ours.decode(their_ids(other, chat))
    prompt = their_ids(other, chat[:1], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt != their_ids(other, chat)[: len(prompt)]
