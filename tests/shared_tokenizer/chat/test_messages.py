"""Conversations as ids: exact by hand, by properties, and against transformers; recognising formats."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHAT_FORMATS, CHATML, ChatFormat, ChatFormatChoice, named_chat_format
from shared_tokenizer.chat.messages import (
    EncodedChat,
    Message,
    encode_chat,
    encode_generation_prompt,
    reply_content,
    stop_ids,
)
from shared_tokenizer.chat.template import (
    chat_format_of,
    chat_template,
    disagreement,
    read_chat_format,
    write_chat_template,
    write_stop_ids,
)
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.tokenizers.tokenizer import Tokenizer
from shared_tokenizer.tokenizers.train import train_tokenizer

IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
FORMATS = list(CHAT_FORMATS.values())
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Bytes(Tokenizer):
    """A tokenizer with one token per byte and per special token, so that ids can be written by hand."""

    def __init__(self, special: Iterable[str] = ("<s>", "</s>", *IM, *HEADERS), bos: str | None = "<s>"):
        self._special = {text: 256 + i for i, text in enumerate(special)}
        self._bos = bos

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def save(self, directory: Path) -> None:
        raise AssertionError("chats are rendered without any file")

    @property
    def vocab_size(self) -> int:
        return 256 + len(self._special)

    @property
    def bos_id(self) -> int | None:
        return None if self._bos is None else self._special[self._bos]

    @property
    def eos_id(self) -> int:
        return self._special["</s>"]

    @property
    def pad_id(self) -> int | None:
        return None

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    @cached_property
    def fingerprint(self) -> str:
        return "bytes"

    @cached_property
    def pieces(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), *(b"" for _ in self._special)]


class SpacedBytes(Bytes):
    """The same tokenizer with a space before every text, like those of Llama 2 and Mistral."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f" {text}") if text else []

    @property
    def strips_first_space(self) -> bool:
        return True


def shown(encoded: EncodedChat, tokenizer: Tokenizer) -> str:
    """Return the ids as text, with special tokens spelled out and the loss mask between guillemets."""
    written = {token: text.encode() for text, token in tokenizer.special_tokens.items()}
    text, before = b"", False
    for token, in_loss in zip([*encoded.ids, None], [*encoded.loss_mask, False], strict=True):
        if in_loss != before:
            text += ("\u00ab" if in_loss else "\u00bb").encode()
        text += b"" if token is None else written.get(token, tokenizer.pieces[token])
        before = in_loss
    return text.decode()


CHAT = (
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("user", "Bye"),
    Message("assistant", "See you"),
)
BY_HAND = {
    "chatml": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\u00abHello!<|im_end|>\u00bb\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n\u00abSee you<|im_end|>\u00bb\n"
    ),
    "llama-2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]\u00ab Hello! </s>\u00bb"
        "<s>[INST] Bye [/INST]\u00ab See you </s>\u00bb"
    ),
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\u00abHello!<|eot_id|>\u00bb"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n\u00abSee you<|eot_id|>\u00bb"
    ),
    "mistral": ("<s> [INST] Be brief.\n\nHi [/INST]\u00ab Hello!</s>\u00bb [INST] Bye [/INST]\u00ab See you</s>\u00bb"),
    "zephyr": (
        "<s><|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\n\u00abHello!</s>\u00bb\n"
        "<|user|>\nBye</s>\n<|assistant|>\n\u00abSee you</s>\u00bb\n"
    ),
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\n\u00abHello!</s>\u00bb\n\n"
        "### Instruction:\nBye\n\n### Response:\n\u00abSee you</s>\u00bb\n\n"
    ),
}
BY_HAND["smollm2"] = BY_HAND["chatml"]
BY_HAND["bitnet"] = (
    "<s>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: \u00abHello!<|eot_id|>\u00bb"
    "User: Bye<|eot_id|>Assistant: \u00abSee you<|eot_id|>\u00bb"
)


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_by_hand(chat_format: ChatFormat) -> None:
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


@pytest.mark.parametrize("name", ["chatml", "llama-3"])
def test_a_marker_that_has_to_be_special_is_missed(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*'<\|.*whose special tokens are <s>, </s>"):
        encode_chat(CHAT, Bytes(["<s>", "</s>"]), named_chat_format(name))


@pytest.mark.parametrize("name", ["llama-2", "mistral"])
def test_consecutive_turns_of_one_role_become_one(name: str) -> None:
    tokenizer, chat_format = Bytes(), named_chat_format(name)
    said = [Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("assistant", "d")]
    merged = [Message("user", "a\n\nb"), Message("assistant", "c\n\nd")]
    assert encode_chat(said, tokenizer, chat_format) == encode_chat(merged, tokenizer, chat_format)


@pytest.mark.parametrize("name", ["llama-2", "mistral"])
@pytest.mark.parametrize("chat", [CHAT[2:], CHAT[:1], (CHAT[0], *CHAT[2:])])
def test_formats_that_begin_with_the_user(name: str, chat: Sequence[Message]) -> None:
    with pytest.raises(ValueError, match=f"{name}: found the first turn to be .*, expected the user's"):
        encode_chat(chat, Bytes(), named_chat_format(name))


@pytest.mark.parametrize("name", ["llama-2", "llama-3"])
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
def test_a_turn_that_is_not_learned_changes_the_mask_and_no_id(chat_format: ChatFormat, spaced: bool) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    chat = [Message("user", "Hi"), Message("assistant", "Wrong", learned=False), *CHAT[3:]]
    encoded = encode_chat(chat, tokenizer, chat_format)
    whole = encode_chat([replace(message, learned=True) for message in chat], tokenizer, chat_format)
    assert encoded.ids == whole.ids
    learned = shown(encoded, tokenizer).partition("\u00ab")[2].partition("\u00bb")[0]
    assert learned.strip().startswith("See you") and "Wrong" not in shown(encoded, tokenizer).partition("\u00ab")[2]


@pytest.mark.parametrize("name", ["llama-2", "mistral"])
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
def test_no_conversation(chat_format: ChatFormat) -> None:
    for encode in (encode_chat, encode_generation_prompt):
        with pytest.raises(ValueError, match="messages: found none, expected a conversation"):
            encode([], Bytes(), chat_format)


INJECTED = "".join(["<s>", "</s>", *IM, *HEADERS, "<|system|>", "[/INST]", "### Response:\n"])
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


def runs_of_assistant(chat: Sequence[Message], chat_format: ChatFormat) -> list[str]:
    """Return the contents in the loss mask, as the format writes them."""
    runs, before = list[str](), ""
    for message in chat:
        content = message.content.strip() if chat_format.trims else message.content
        if message.role == "assistant" and message.role == before and chat_format.folds_system:
            runs[-1] += f"\n\n{content}"
        elif message.role == "assistant":
            runs.append(content)
        before = message.role
    return runs


@given(CHATS, st.sampled_from(FORMATS), st.booleans())
def test_only_the_assistant_is_learned(chat: list[Message], chat_format: ChatFormat, spaced: bool) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    encoded = encode_chat(chat, tokenizer, chat_format)
    learned = [token for token, chosen in zip(encoded.ids, encoded.loss_mask, strict=True) if chosen]
    ends = set(stop_ids(tokenizer, chat_format))
    replies = [reply_content(reply, chat_format) for reply in split(learned, ends, tokenizer)]
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
def test_written_markers_stay_text(chat: list[Message], chat_format: ChatFormat) -> None:
    plain = [Message(message.role, "x") for message in chat]
    tokenizer = Bytes()
    special = [token for token in encode_chat(chat, tokenizer, chat_format).ids if token >= 256]
    assert special == [token for token in encode_chat(plain, tokenizer, chat_format).ids if token >= 256]


@given(CHATS, st.sampled_from(FORMATS), st.booleans())
def test_the_prompt_is_how_the_conversation_begins(chat: list[Message], chat_format: ChatFormat, spaced: bool) -> None:
    tokenizer = SpacedBytes() if spaced else Bytes()
    whole = encode_chat(chat, tokenizer, chat_format)
    for i, (before, after) in enumerate(pairwise(chat)):
        if (before.role, after.role) == ("user", "assistant"):
            prompt = encode_generation_prompt(chat[: i + 1], tokenizer, chat_format)
            assert whole.ids[: len(prompt)] == prompt
            assert not whole.loss_mask[len(prompt) - 1]
            assert whole.loss_mask[len(prompt)]


# Against transformers.


TRAINED_ON = [*BY_HAND.values(), Path(__file__).read_text("utf-8")]


def save_byte_level(directory: Path, pattern: str | None) -> None:
    """Save a small byte-level BPE with the special tokens of all formats."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")] if pattern else []
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*split, byte_level])
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", *IM, *HEADERS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TRAINED_ON, trainer)
    model.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


# Where words end: as GPT-2 has it, and with line ends in one as Llama 3 has it.
PATTERNS = {"gpt-2": None, "line ends": r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}
# GPT-2 cuts the two line ends in the headers of llama-3 by what follows. The header of bitnet ends with a space, which
# every tokenizer joins to the word after it.
KINDS = ("bpe", "unigram", *PATTERNS)
PAIRS = [
    (kind, name) for kind in KINDS for name in CHAT_FORMATS if (kind, name) != ("gpt-2", "llama-3") and name != "bitnet"
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory):
    """Return the tokenizers of this project and the same ones opened by transformers, by kind and format."""
    ours: dict[str, Tokenizer] = {
        kind: train_tokenizer(TRAINED_ON, 600, model_type=kind, special_tokens=HEADERS) for kind in ("bpe", "unigram")
    }
    for kind, pattern in PATTERNS.items():
        directory = tmp_path_factory.mktemp("tokenizer")
        save_byte_level(directory, pattern)
        ours[kind] = load_tokenizer(directory)
    opened = {}
    for kind, name in PAIRS:
        directory = tmp_path_factory.mktemp("chat")
        ours[kind].save(directory)
        write_chat_template(directory, named_chat_format(name), ours[kind])
        opened[kind, name] = ours[kind], transformers.AutoTokenizer.from_pretrained(directory)
    return opened


def their_ids(other, chat: Sequence[Message], **options: object) -> list[int]:
    said = [{"role": message.role, "content": message.content} for message in chat]
    return other.apply_chat_template(said, tokenize=True, return_dict=False, **options)


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


# Recognising formats.


@pytest.mark.parametrize("bos", ["<s>", None])
@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_our_templates_are_recognised(tmp_path: Path, chat_format: ChatFormat, bos: str | None) -> None:
    write_chat_template(tmp_path, chat_format, Bytes(bos=bos))
    assert read_chat_format(tmp_path) is chat_format
    assert chat_format_of(chat_template(chat_format, Bytes(bos=bos))) is chat_format


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_other_programs_are_told_where_an_answer_ends(tmp_path: Path, chat_format: ChatFormat) -> None:
    tokenizer = Bytes(bos="<s>")
    write_stop_ids(tmp_path, chat_format, tokenizer)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert set(content["eos_token_id"]) == set(stop_ids(tokenizer, chat_format))
    assert content["eos_token_id"][0] == tokenizer.eos_id  # the first stands for all where there is room for one
    assert content["bos_token_id"] == tokenizer.bos_id


ROLE, CONTENT = "message['role']", "message['content']"
TURN = f"{{% for message in messages %}}{{{{ '<|im_start|>' + {ROLE} + '\\n' + {CONTENT} + '<|im_end|>\\n' }}}}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML_TEXT = f"{TURN}{{% endfor %}}{PROMPT}"
SMOLLM2 = CHATML_TEXT.replace(
    "{{",
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SMOLLM2_SYSTEM + "<|im_end|>\n'"
    " }}{% endif %}{{",
    1,
)
CHATML_IN_LINES = """{# ChatML #}
{%- for message in messages %}
    {%- if message.role == "user" -%}
        <|im_start|>user
{{ message.content }}<|im_end|>
    {% elif message['role'] == 'assistant' -%}
        {{ "<|im_start|>assistant\\n" ~ message.content ~ "<|im_end|>" }}
    {% else -%}
        {{ "<|im_start|>system" }}
{{ message["content"] + '<|im_end|>\\n' -}}
    {% endif -%}
{%- endfor -%}
"""
LLAMA_2 = r"""{% if messages[0]['role'] == 'system' %}
{% set system_message = messages[0]['content'] %}
{% set loop_messages = messages[1:] %}
{% else %}
{% set system_message, loop_messages = false, messages %}
{% endif %}
{% for message in loop_messages %}
{% if loop.first and system_message %}
{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}
{% set content = message['content'] %}
{% endif %}
{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
{% elif message['role'] == 'assistant' %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
{% else %}
{{- raise_exception('neither user nor assistant') -}}
{% endif %}
{% endfor %}
"""
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.first %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
MISTRAL = """{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('neither user nor assistant') }}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
ALPACA = r"""{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '### Instruction:\n' + message['content'] + '\n\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '### Response:\n' + message['content'] + eos_token + '\n\n' }}
    {%- else %}
        {{- message['content'] + '\n\n' }}
    {%- endif %}
{%- endfor %}
"""
BITNET = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
OTHERS = {
    "bitnet": BITNET,
    "chatml": CHATML_TEXT,
    "smollm2": SMOLLM2,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "alpaca": ALPACA,
}


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_templates_of_others_are_recognised(name: str) -> None:
    assert chat_format_of(OTHERS[name]).name == name


def test_the_way_a_template_is_laid_out_does_not_matter() -> None:
    assert chat_format_of(CHATML_IN_LINES).name == "chatml"


@pytest.mark.parametrize("kind", ["bpe", *PATTERNS])
@pytest.mark.parametrize(
    "template", [BITNET, chat_template(named_chat_format("bitnet"), Bytes())], ids=["other", "ours"]
)
def test_the_prompt_of_bitnet_is_that_of_transformers(theirs, kind: str, template: str) -> None:
    """Compare a first question, and the text of a conversation, in which the header is encoded alone."""
    ours, other = theirs[kind, "chatml"]
    chat_format = chat_format_of(template)
    assert chat_format.name == "bitnet" and stop_ids(ours, chat_format)[0] == ours.special_tokens["<|eot_id|>"]
    for chat in (CHAT[:2], CHAT[1:2]):
        ids = their_ids(other, chat, chat_template=template, add_generation_prompt=True)
        ids = ids if ids[0] == ours.bos_id else [ours.bos_id, *ids]
        assert encode_generation_prompt(chat, ours, chat_format) == ids
    ids = their_ids(other, CHAT[:4], chat_template=template, add_generation_prompt=True)
    assert ours.decode(encode_generation_prompt(CHAT[:4], ours, chat_format)) == ours.decode(ids)


@pytest.mark.parametrize("name", [name for name in CHAT_FORMATS if name != "bitnet"])
def test_what_is_recognised_writes_the_same(theirs, name: str) -> None:
    """Compare the ids of released templates with those of the recognised format, without the begin token."""
    ours, other = theirs["line ends", name]
    chat = CHAT[1:4] if name == "mistral" else CHAT[:4]
    ids = their_ids(other, chat, chat_template=OTHERS[name], add_generation_prompt=True)
    ids = ids if ids[0] == ours.bos_id else [ours.bos_id, *ids]
    expected = encode_generation_prompt(chat, ours, named_chat_format(name))
    if name == "alpaca":
        expected = encode_chat(chat, ours, named_chat_format(name)).ids
    assert ids == expected


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("", "a template without outputs"),
        ("just text", "'just text'"),
        ("{{ messages", "'{{' that is not closed"),
        (SMOLLM2.replace("SmolLM", "Qwen"), "You are a helpful AI assistant named Qwen"),
        (SMOLLM2.replace(SMOLLM2_SYSTEM, ""), r"'<\|im_start\|>system\\n<\|im_end\|>\\n'"),
        (CHATML_TEXT.replace("<|im_end|>", "<|end|>"), r"<\|end\|>"),
        (
            CHATML_TEXT.replace("{{ '<|im_start|>' +", "{% if tools %}{{ tools }}{% endif %}{{ '<|im_start|>' +"),
            "'tools'",
        ),
        (CHATML_TEXT + "{% if message['role'] == 'tool' %}<tool_call>{% endif %}", "'tool'"),
        (CHATML_TEXT + "<tool_call>", "<tool_call>"),
        (CHATML_TEXT.replace("+ message['content'] +", "+ '{message.content}' +"), "{{message.content}"),
        (CHATML_TEXT.replace("'<|im_end|>\\n'", "'<|im_end|>'"), r"content}<\|im_end\|>'"),
        (CHATML_TEXT.replace("message['content'] +", "message['content'] | trim +"), r"content\|trim"),
        (CHATML_TEXT.replace("{% for", "{%+ for"), r"'\+'"),
        (CHATML_TEXT + "{% include 'other' %}", "'include'"),
        (LLAMA_3.replace(" | trim", ""), "start_header_id"),
        (MISTRAL.replace(" [/INST]", "[/INST]"), r"content}\[/INST\]"),
        (ALPACA.replace(r"\n\n", r"\n"), "### Instruction"),
        (ZEPHYR.replace("<|user|>", "<|human|>"), r"<\|human\|>"),
        (CHATML_TEXT + ALPACA, "### Instruction"),
    ],
)
def test_templates_that_are_refused(template: str, found: str) -> None:
    with pytest.raises(ValueError, match=found) as error:
        chat_format_of(template)
    assert "not closed" in str(error.value) or ", ".join(CHAT_FORMATS) in str(error.value)


def test_a_named_format_is_compared_with_the_own_template() -> None:
    llama_3 = named_chat_format("llama-3")
    assert "llama-3: the model's own chat template is that of bitnet" in (disagreement(BITNET, llama_3) or "")
    for name, template in OTHERS.items():
        for other in FORMATS:
            assert (disagreement(template, other) is None) == (other.name == name)
    qwen = SMOLLM2.replace("SmolLM", "Qwen")
    assert disagreement(qwen, CHATML) is None  # not recognised, but it has the markers
    assert "never writes '<|start_header_id|>'" in (disagreement(qwen, llama_3) or "")
    assert disagreement(LLAMA_3 + "{{ tools }}", llama_3) is None


@given(
    st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "'", '"', "\\", "\n", " ", "-", "set ", "=", "x"])).map("".join)
)
def test_any_text_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="chat template: found"):
        chat_format_of(template)


@pytest.mark.parametrize("piece", ["{{", "{{ ' }}", "{{ '\\", "\\'", "{% set x = '", "[  ", "{%%}", " \n"])
def test_no_template_takes_long(piece: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        chat_format_of("{{ '" + piece * (90_000 // len(piece)))
    with pytest.raises(ValueError, match="chat template"):
        chat_format_of("{{ '" + piece * (90_000 // len(piece)) + " }}")


def test_a_template_in_the_configuration(tmp_path: Path) -> None:
    assert read_chat_format(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": None}))
    assert read_chat_format(tmp_path) is None
    config.write_text(json.dumps({"chat_template": SMOLLM2}))
    assert read_chat_format(tmp_path) is named_chat_format("smollm2")
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML_TEXT}]
    config.write_text(json.dumps({"chat_template": named}))
    assert read_chat_format(tmp_path) is named_chat_format("chatml")
    (tmp_path / "chat_template.jinja").write_text(ZEPHYR)
    assert read_chat_format(tmp_path) is named_chat_format("zephyr")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "tokenizer_config.json: not JSON"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "chat_template: found a int, expected a text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "tools"}]}', "chat_template: found a list"),
        ("tokenizer_config.json", b'{"chat_template": "x"}', "tokenizer_config.json: chat template: found 'x'"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja: not UTF-8 at byte 0"),
        ("chat_template.jinja", b"x" * 100_001, "found a chat template of 100001 bytes, expected at most 100000"),
    ],
)
def test_directories_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_chat_format(tmp_path)


def test_no_other_names() -> None:
    assert get_args(ChatFormatChoice) == ("auto", *CHAT_FORMATS)
    with pytest.raises(ValueError, match="found 'vicuna', expected one of chatml, smollm2, llama-2"):
        named_chat_format("vicuna")
    with pytest.raises(ValueError, match="found a chat template of 100001 bytes"):
        chat_format_of("x" * 100_001)
