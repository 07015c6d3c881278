"""Chats that are written out as texts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.messages import Message, encode_chat
from shared_tokenizer.chat.rendered import FORMS, Spellings, encode_rendered, find_plain_form, parse_rendered
from tests.shared_tokenizer.chat.chat_tokenizers import CHAT, Bytes, SpacedBytes, shown

ASK, REPLY = Message("user", "Two and two?"), Message("assistant", "Four.")
SYSTEM = Message("system", "Be brief.")
WRITTEN = {
    "chatml": "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n",
    "llama-3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTwo and two?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nFour.<|eot_id|>"
    ),
    "gemma": "<bos><start_of_turn>user\nTwo and two?<end_of_turn>\n<start_of_turn>model\nFour.<end_of_turn>",
    "llama-2": "<s>[INST] Two and two? [/INST]Four.</s>",
    "zephyr": "<|user|>\nTwo and two?</s>\n<|assistant|>\nFour.</s>",
    "bitnet": "<|begin_of_text|>User: Two and two?<|eot_id|>Assistant: Four.<|eot_id|>",
    "alpaca": "### Instruction:\nTwo and two?\n\n### Response:\nFour.",
    "guanaco": "### Human: Two and two?### Assistant: Four.",
    "human and assistant": "\n\nHuman: Two and two?\n\nAssistant: Four.",
    "vicuna": "USER: Two and two? ASSISTANT: Four.</s>",
}


def test_every_form_has_a_case():
    assert list(WRITTEN) == [form.name for form in FORMS]
    assert {form.chat_format for form in FORMS} - {None} <= set(CHAT_FORMATS)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_chat_that_is_written_out_becomes_turns(name):
    form, turns = parse_rendered(WRITTEN[name]) or (None, None)
    assert form is not None and (form.name, turns) == (name, (ASK, REPLY))
    assert (find_plain_form(WRITTEN[name]) == name) == form.is_letters


MORE = {
    "a system message": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nTwo and two? [/INST] Four. </s>", [SYSTEM]),
    "two turns": ("<s>[INST] Hi [/INST] Hello. </s><s>[INST] Two and two? [/INST] Four. </s>", ["Hi", "Hello."]),
    "mistral": ("<s> [INST] Hi [/INST] Hello.</s> [INST] Two and two? [/INST] Four.</s>", ["Hi", "Hello."]),
    "phi": ("<|system|>\nBe brief.<|end|>\n<|user|>\nTwo and two?<|end|>\n<|assistant|>\nFour.<|end|>", [SYSTEM]),
    "tulu": ("<|user|>\nTwo and two?\n<|assistant|>\nFour.", []),
    "open assistant": ("<|prompter|>Two and two?<|endoftext|><|assistant|>Four.<|endoftext|>", []),
    "a preamble": ("Be brief.\n\n### Instruction:\nTwo and two?\n\n### Response:\nFour.</s>", [SYSTEM]),
    "no last end": ("<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nFour.", []),
}


@pytest.mark.parametrize("name", MORE)
def test_what_forms_have_besides_a_question(name):
    text, before = MORE[name]
    expected = [
        Message(role, said) if isinstance(said, str) else said
        for role, said in zip(("user", "assistant"), before, strict=False)
    ]
    found = parse_rendered(text)
    assert found is not None and found[1] == (*expected, ASK, REPLY)


VARIANTS = {
    "llama-3.1": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 01 May 2025\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nTwo and two?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nFour.<|eot_id|>",
        (SYSTEM, ASK, REPLY),
    ),
    "mistral-v0.3": ("<s>[INST] Two and two?[/INST] Four.</s>", (ASK, REPLY)),
    "falcon3": ("<|system|>\nBe brief.\n<|user|>\nTwo and two?\n<|assistant|>\nFour.</s>", (SYSTEM, ASK, REPLY)),
    "qwen3": (
        "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n<think>\nSum.\n</think>\n\nFour.<|im_end|>\n",
        (ASK, Message("assistant", "<think>\nSum.\n</think>\n\nFour.")),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_formats_that_differ_in_details_from_the_one_of_their_form(name):
    text, turns = VARIANTS[name]
    found = parse_rendered(text)
    assert found is not None and (found[0].chat_format, found[1]) == (name, turns)


def test_a_preamble_without_a_system_message_is_none():
    text = VARIANTS["llama-3.1"][0].replace("\n\nBe brief.", "\n\n")
    found = parse_rendered(text)
    assert found is not None and (found[0].chat_format, found[1]) == ("llama-3.1", (ASK, REPLY))


@pytest.mark.parametrize("name", ["gemma", "llama-3.1", "mistral-v0.3", "falcon3", "qwen3", "qwen2.5", "bitnet"])
def test_what_a_format_writes_is_read_as_its_turns(name):
    chat_format = CHAT_FORMATS[name]
    chat = CHAT[1:] if chat_format.folds_system else CHAT
    text = chat_format.written(chat, as_prompt=False, begin="<s>", end="</s>")
    found = parse_rendered(text)
    assert found is not None
    assert encode_chat(found[1], Bytes(), chat_format) == encode_chat(chat, Bytes(), chat_format)
    assert found[0].chat_format == {"qwen2.5": "chatml"}.get(name, name)


def test_mistral_begins_a_conversation_once():
    for name, chat_format in (("two turns", "llama-2"), ("mistral", "mistral"), ("a system message", "llama-2")):
        found = parse_rendered(MORE[name][0])
        assert found is not None and found[0].chat_format == chat_format


def test_an_input_belongs_to_its_instruction():
    found = parse_rendered("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3")
    assert found is not None and found[1] == (Message("user", "Add.\n\n1 2"), Message("assistant", "3"))


@pytest.mark.parametrize(
    "text",
    [
        "just a text",
        "[INST] a question alone [/INST]",
        "words before <|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nq<|im_end|>\nlost words\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nq<|im_start|>assistant\na<|im_end|>",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<|im_end|>",
        "<s>[INST] q [/INST] a </s> lost words",
        "[INST] q [/INST] a <|im_end|> b",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na <|secret|><|im_end|>",
    ],
)
def test_a_text_that_is_no_whole_chat_is_left_as_it_is(text):
    assert parse_rendered(text) is None


PIECES = ["[INST]", "[/INST]", "</s>", "<s>", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>", "\n"]


@given(st.lists(st.sampled_from([*PIECES, "### Instruction:\n", "\n### Response:\n", "zq "])).map("".join))
def test_no_word_is_lost(text):
    found = parse_rendered(text)
    if found is not None:
        said = "".join(message.content for message in found[1])
        assert said.count("zq") == text.count("zq")
        assert not any(piece in said for piece in PIECES if piece not in ("\n", "<s>", "</s>"))


@pytest.mark.parametrize("piece", ["</s>", "<s>", " ", "\n", "[INST]", "### Response:", "<|im_start|>user\n", "USER: "])
def test_no_text_takes_long(piece):
    assert parse_rendered(piece * (1_000_000 // len(piece))) is None  # no chat, and not after minutes


def test_special_tokens_are_encoded_with_one_begin_and_one_end():
    tokenizer = Bytes()
    for text in ("<s>a<|im_end|>b</s>", "a<|im_end|>b", "<s>a<|im_end|>b</s>\n"):
        assert encode_rendered(text, tokenizer) == [256, *b"a", 259, *b"b", 257]
    assert encode_rendered("a</s>\nb", tokenizer) == [256, *b"a", 257, *b"\nb", 257]
    spaced = SpacedBytes()
    assert encode_rendered("<s> a</s>", spaced) == [256, *b" a", 257]
    for text, found in (("[INST] a", "[INST]"), ("<s>a<|secret|>b", "<|secret|>")):
        message = f"text_format rendered: found '{found}', no special token of this tokenizer, expected a whole chat"
        with pytest.raises(ValueError, match=re.escape(message)):
            encode_rendered(text, tokenizer)


def test_a_chat_of_the_tokenizers_own_form_keeps_its_ids():
    tokenizer = Bytes()
    for name in ("chatml", "llama-3"):
        chat_format = CHAT_FORMATS[name]
        ids = encode_chat(CHAT, tokenizer, chat_format)
        text = shown(ids, tokenizer).replace("\u00ab", "").replace("\u00bb", "")
        found = parse_rendered(text)
        assert found is not None and encode_chat(found[1], tokenizer, chat_format) == ids


def test_spellings_are_the_tokenizers_own_and_the_markers_of_chats():
    spellings = Spellings(["<s>", "</s>", "<|mine|>", "the", "\n\n\n"])
    assert spellings.find("a <|mine|> and [INST], the <b>") == {"<|mine|>", "[INST]"}
    assert spellings.find("<s>struck</s> words") == {"<s>", "</s>"}
    other = Spellings([])
    assert other.find("words <s>struck</s> words") == set()
    assert other.find("<s>a row</s>\n") == {"<s>", "</s>"}
