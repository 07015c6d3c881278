"""Any chat template as a format: what it writes, what it changes, and where answers are."""

import json
import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_tokenizer.chat.formats import CHAT_FORMATS
from shared_tokenizer.chat.messages import Message, encode_chat, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.reply_stream import ReplyStream
from shared_tokenizer.chat.template import chat_format_of
from shared_tokenizer.chat.template_format import TemplateFormat
from shared_tokenizer.load import load_tokenizer
from shared_tokenizer.sandbox.child import make_environment
from tests.shared_tokenizer.chat.chat_templates import PROGRAMS
from tests.shared_tokenizer.chat.chat_tokenizers import CHAT, CONTROL, Bytes, SpacedBytes, shown, their_ids

ENVIRONMENT = make_environment()
# A form that no known format has: a token ends a header, another one a turn, and the tokens are those of Bytes.
OWN = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|im_start|>' + message.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|im_start|>' }}{% endif %}"
)
BY_HAND = (
    "<s><|start_header_id|>system<|im_start|>Be brief.<|im_end|>"
    "<|start_header_id|>user<|im_start|>Hi<|im_end|>"
    "<|start_header_id|>assistant<|im_start|>\u00abHello!<|im_end|>\u00bb"
    "<|start_header_id|>user<|im_start|>Bye<|im_end|>"
    "<|start_header_id|>assistant<|im_start|>\u00abSee you<|im_end|>\u00bb"
)
ASK, REPLY = Message("user", "Hi"), Message("assistant", "Hello!")


def own(**replaced: str) -> TemplateFormat:
    template = OWN
    for old, new in replaced.items():
        template = template.replace({"content": "message.content", "end": "{% endfor %}"}[old], new)
    return TemplateFormat(template)


def test_by_hand() -> None:
    tokenizer, chat_format = Bytes(), chat_format_of(OWN)
    assert chat_format == TemplateFormat(OWN)
    encoded = encode_chat(CHAT, tokenizer, chat_format)
    assert shown(encoded, tokenizer) == BY_HAND
    assert encoded.ids[:2] == [256, 260]
    prompt = encode_generation_prompt(CHAT[:4], tokenizer, chat_format)
    assert prompt == encoded.ids[: len(prompt)] and encoded.loss_mask[len(prompt) - 1 : len(prompt) + 1] == [
        False,
        True,
    ]
    assert stop_ids(tokenizer, chat_format) == [tokenizer.special_tokens["<|im_end|>"], tokenizer.eos_id]


def test_a_turn_that_is_not_learned_is_context() -> None:
    chat = [replace(message, learned=message.content == "See you") for message in CHAT]
    tokenizer = Bytes()
    assert shown(encode_chat(chat, tokenizer, own()), tokenizer) == BY_HAND.replace(
        "\u00abHello!<|im_end|>\u00bb", "Hello!<|im_end|>"
    )


@pytest.mark.parametrize("name", CHAT_FORMATS)
@pytest.mark.parametrize("spaced", [False, True])
def test_the_templates_of_known_formats_give_their_ids(name: str, spaced: bool) -> None:
    """Compare with the formats as data, which the tests of `messages` compare with transformers."""
    tokenizer, known = SpacedBytes() if spaced else Bytes(), CHAT_FORMATS[name]
    general = TemplateFormat(known.template)
    for chat in (CHAT[1:3], CHAT[1:], *((CHAT,) if name != "mistral-v0.3" else ())):
        encoded, expected = encode_chat(chat, tokenizer, general), encode_chat(chat, tokenizer, known)
        assert encoded.ids == expected.ids
        if name != "qwen3-no-think":  # of an answer that the template begins otherwise than the prompt, all is learned
            assert encoded.loss_mask == expected.loss_mask
        prompt = encode_generation_prompt(chat[:-1], tokenizer, general)
        assert prompt == encode_generation_prompt(chat[:-1], tokenizer, known)
    assert stop_ids(tokenizer, general) == stop_ids(tokenizer, known)


@pytest.mark.parametrize("kind", ["bpe", "line ends"])
def test_transformers_gives_the_same_ids(theirs, kind: str) -> None:
    ours, other = theirs[kind, "chatml"]
    for chat in (CHAT, CHAT[1:]):
        assert encode_chat(chat, ours, own()).ids == their_ids(other, chat, chat_template=OWN)
        ids = their_ids(other, chat[:-1], chat_template=OWN, add_generation_prompt=True)
        assert encode_generation_prompt(chat[:-1], ours, own()) == ids


SPELLED = "".join([*CONTROL, "<s>", "</s>", "{{ 1 }}", "{% endfor %}"])
CONTENTS = (st.text(max_size=5) | st.sampled_from([SPELLED, " a\n", "<|im_end|>"])).filter(str.strip)


@given(st.lists(CONTENTS, min_size=2, max_size=6))
def test_no_message_writes_a_control_token(contents: list[str]) -> None:
    tokenizer, chat_format = Bytes(), TemplateFormat(OWN)
    chat = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    plain = [replace(message, content="x") for message in chat]
    encoded, other = (encode_chat(each, tokenizer, chat_format) for each in (chat, plain))
    assert [i for i in encoded.ids if i >= 256] == [i for i in other.ids if i >= 256]
    learned = bytes(i for i, chosen in zip(encoded.ids, encoded.loss_mask, strict=True) if chosen and i < 256)
    assert learned.decode() == "".join(contents[1::2])


@pytest.mark.parametrize("kind", ["bpe", "line ends"])
def test_a_token_that_is_not_called_special_stays_letters_in_a_question(tmp_path, theirs, kind: str) -> None:
    """Write the tokens that a template spells as tokens, and as letters where a user or the system says them."""
    theirs[kind, "chatml"][0].save(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    size = theirs[kind, "chatml"][0].vocab_size
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    definition["added_tokens"].append({"id": size, "content": "<|user|>", **flags})
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = load_tokenizer(tmp_path)
    assert size in tokenizer.encode("a<|user|>b") and "<|user|>" not in tokenizer.special_tokens
    chat_format = TemplateFormat(OWN.replace("'<|start_header_id|>' + message.role +", "'<|' + message.role + '|>' +"))
    chat = [Message("user", "a<|user|>b<|user|>"), Message("assistant", "c")]
    encoded = encode_chat(chat, tokenizer, chat_format)
    assert encoded.ids.count(size) == 1
    assert "<|user|>a<|user|>b<|user|>" in tokenizer.decode(encoded.ids)


LOOKED_AT = st.sampled_from(["</think>", "<think>", "<tool_response>", "\n", " ", "a", "</tool_response>", "</s>"])
SAID = st.lists(LOOKED_AT, min_size=1, max_size=4).map("".join)


@given(st.lists(SAID, min_size=2, max_size=4), st.booleans(), st.sampled_from(sorted(PROGRAMS)))
def test_what_is_not_refused_is_what_jinja_writes(contents: list[str], has_system: bool, name: str) -> None:
    """Run a template of others on messages that it looks at: it is refused, or the text is the same to the letter."""
    roles = ("system", "user", "assistant", "user", "assistant")[not has_system :]
    chat = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    tokenizer, said = Bytes(), [{"role": message.role, "content": message.content} for message in chat]
    variables = {"bos_token": "<s>", "eos_token": "</s>", "tools": None}
    try:
        encoded = encode_chat(chat, tokenizer, TemplateFormat(PROGRAMS[name]))
    except ValueError as error:
        assert str(error).startswith("chat template: ")
        return
    expected = ENVIRONMENT.from_string(PROGRAMS[name]).render(messages=said, **variables)
    text = shown(encoded, tokenizer).replace("\u00ab", "").replace("\u00bb", "")
    assert text.removeprefix("<s>") == expected.removeprefix("<s>")


def test_a_message_that_spells_a_mark_stays_text() -> None:
    tokenizer, chat_format = Bytes(), own()
    mark = chat_format._marked.mark(0)  # even a client that knew it
    chat = [Message("user", mark), Message("assistant", f"{mark[:-6]}begin")]
    assert f"assistant<|im_start|>\u00ab{mark[:-6]}begin<|im_end|>" in shown(
        encode_chat(chat, tokenizer, chat_format), tokenizer
    )


CHANGED = {
    "message.content | trim": (" Hi", "removes the whitespace around messages\\[0\\], of the user", "Hi"),
    "message.content | upper": ("Hi", "leaves out messages\\[0\\], of the user", None),
    "message.content.replace('H', 'J')": ("Hi", "rewrites messages\\[0\\], of the user: 'Hi' becomes 'Ji'", "Ji"),
    "message.content.split('</think>')[-1]": ("a</think>b", "rewrites messages.*'a</think>b' becomes 'b'", "b"),
    "('' if 'Hi' in message.content else message.content)": ("Hi", "leaves out the text of messages\\[0\\]", ""),
    "message.content * 2": ("Hi", "writes more than once messages\\[0\\], of the user", "HiHi"),
    "(message.content if 'Hi' not in message.content else message.content ~ '<|im_end|>')": (
        "Hi",
        "rewrites messages\\[0\\].*'Hi' becomes 'Hi<|im_end|>'",
        "Hi<|im_end|>",
    ),
    "(message.content ~ (messages | length if 'Hi' in messages[0].content ~ messages[1].content else ''))": (
        "Hi",
        "writes something else around messages\\[0\\], of the user, because of it",
        "Hi",
    ),
}


@pytest.mark.parametrize("content", CHANGED)
def test_a_template_that_changes_a_message(content: str) -> None:
    """Refuse to learn from it and name the message; write a prompt as the template does, and say so."""
    said, found, written = CHANGED[content]
    tokenizer, lines = Bytes(), list[str]()
    chat_format = replace(own(content=content), log=lines.append)
    with pytest.raises(ValueError, match=f"^chat template: it {found}.*, expected the messages as they are; "):
        encode_chat([Message("user", said), REPLY], tokenizer, chat_format)
    chat = [Message("user", said), REPLY, Message("user", "Bye")]
    if written is None:
        with pytest.raises(ValueError, match=f"{found}, expected every message of the user"):
            encode_generation_prompt(chat, tokenizer, chat_format)
        return
    for _ in range(2):
        prompt = encode_generation_prompt(chat, tokenizer, chat_format)
    assert lines and lines[0].startswith("warning: the model's chat template ") and len(set(lines)) == len(lines)
    assert not any("becomes" in line for line in lines)  # what is said belongs in no log
    assert bytes(i for i in prompt if i < 256).startswith(f"user{written}".encode())
    assert prompt.count(tokenizer.special_tokens["<|im_end|>"]) == 3


def test_a_template_that_leaves_out_the_system_message() -> None:
    template = OWN.replace("in messages", "in messages if message.role != 'system'")
    lines = list[str]()
    chat_format = TemplateFormat(template, log=lines.append)
    with pytest.raises(ValueError, match=r"it leaves out messages\[0\], of the system, expected the messages as they"):
        encode_chat(CHAT, Bytes(), chat_format)
    prompt = encode_generation_prompt(CHAT[:2], Bytes(), chat_format)
    assert prompt == encode_generation_prompt(CHAT[1:2], Bytes(), chat_format)
    assert lines == ["warning: the model's chat template leaves out messages[0], of the system"]


def test_a_template_that_refuses_a_conversation() -> None:
    chat_format = own(end="{% endfor %}{{ raise_exception('no') if messages[0].role == 'system' else '' }}")
    encode_chat(CHAT[1:], Bytes(), chat_format)
    for encode in (encode_chat, encode_generation_prompt):
        with pytest.raises(ValueError, match=r"^chat template: found a conversation that it refuses: it says 'no'$"):
            encode(CHAT[:2], Bytes(), chat_format)


def test_an_answer_that_ends_without_a_token_is_not_learned() -> None:
    chat_format = TemplateFormat(OWN.replace("+ '<|im_end|>'", "+ '.'"))
    with pytest.raises(ValueError, match=r"found no special token after messages\[4\], expected one: a model"):
        encode_chat(CHAT, Bytes(), chat_format)
    assert stop_ids(Bytes(), chat_format) == [257]
    assert encode_generation_prompt(CHAT[:2], Bytes(), chat_format)


def test_what_the_prompt_lacks_is_written_by_the_assistant() -> None:
    template = OWN.replace("+ message.content", "+ ('Well: ' if message.role == 'assistant' else '') + message.content")
    tokenizer, chat_format = Bytes(), TemplateFormat(template)
    assert "assistant<|im_start|>\u00abWell: Hello!<|im_end|>\u00bb" in shown(
        encode_chat(CHAT, tokenizer, chat_format), tokenizer
    )
    stream = ReplyStream(tokenizer, chat_format)
    assert "".join([stream.add(i) for i in b"Well: Hello! "]) + stream.end() == "Hello! " == stream.content


def test_replies_are_trimmed_where_the_template_trims() -> None:
    stream = ReplyStream(Bytes(), own(content="message.content | trim"))
    assert "".join([stream.add(i) for i in b" Hi\n"]) + stream.end() == "Hi"


def test_a_format_goes_to_another_process() -> None:
    tokenizer, chat_format = Bytes(), own()
    expected = encode_chat(CHAT, tokenizer, chat_format)
    copied = pickle.loads(pickle.dumps(chat_format))
    assert copied == chat_format and encode_chat(CHAT, tokenizer, copied) == expected
    assert encode_chat(CHAT[1:3], tokenizer, copied) == encode_chat(CHAT[1:3], tokenizer, chat_format)


def test_a_begin_token_is_written_once() -> None:
    for template in (OWN, OWN.replace("{{ bos_token }}", "<s>"), OWN.replace("{{ bos_token }}", "")):
        assert encode_chat([ASK, REPLY], Bytes(), TemplateFormat(template)).ids.count(256) == 1
    assert encode_chat([ASK, REPLY], Bytes(bos=None), own()).ids.count(256) == 0
