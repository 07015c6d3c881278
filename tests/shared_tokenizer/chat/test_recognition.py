"""Chat templates of others: recognised by their text, or by what they write."""

import datetime
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from shared_tokenizer.chat.formats import CHAT_FORMATS, CHATML, ChatFormatChoice, named_chat_format
from shared_tokenizer.chat.framed import FramedFormat
from shared_tokenizer.chat.messages import encode_chat, encode_generation_prompt, stop_ids
from shared_tokenizer.chat.recognition import recognise_output, recognise_text
from shared_tokenizer.chat.template import (
    chat_format_of,
    chat_template,
    disagreement,
    read_chat_format,
    write_chat_template,
    write_stop_ids,
)
from shared_tokenizer.chat.template_format import TemplateFormat
from tests.shared_tokenizer.chat.chat_templates import (
    ALL,
    ALPACA,
    BITNET,
    CHATML_IN_LINES,
    CHATML_TEXT,
    GEMMA_2,
    GEMMA_3,
    LLAMA_3,
    LLAMA_3_2,
    MISTRAL,
    MISTRAL_V0_3,
    OTHERS,
    QWEN_2_5,
    QWEN_3,
    SMOLLM2,
    SMOLLM2_SYSTEM,
    ZEPHYR,
)
from tests.shared_tokenizer.chat.chat_tokenizers import CHAT, FORMATS, PATTERNS, Bytes, their_ids


class ThatDay(datetime.datetime):
    """The clock of transformers on the day that stands for every day here."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "ThatDay":
        return cls(2024, 7, 26)


@pytest.mark.parametrize("bos", ["<s>", None])
@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_our_templates_are_recognised(tmp_path: Path, chat_format: FramedFormat, bos: str | None) -> None:
    write_chat_template(tmp_path, chat_format, Bytes(bos=bos))
    assert read_chat_format(tmp_path) is chat_format
    assert chat_format_of(chat_template(chat_format, Bytes(bos=bos))) is chat_format


@pytest.mark.parametrize("chat_format", FORMATS, ids=CHAT_FORMATS)
def test_other_programs_are_told_where_an_answer_ends(tmp_path: Path, chat_format: FramedFormat) -> None:
    tokenizer = Bytes(bos="<s>")
    write_stop_ids(tmp_path, chat_format, tokenizer)
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert set(content["eos_token_id"]) == set(stop_ids(tokenizer, chat_format))
    assert content["eos_token_id"][0] == tokenizer.eos_id  # the first stands for all where there is room for one
    assert content["bos_token_id"] == tokenizer.bos_id


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_templates_of_others_are_recognised(name: str) -> None:
    found = recognise_text(ALL[name])
    assert found is (named_chat_format(name) if name in OTHERS else None)
    assert chat_format_of(ALL[name]).name == name


def test_a_program_is_kept_for_other_programs() -> None:
    found = chat_format_of(QWEN_3)
    assert found == replace(named_chat_format("qwen3"), template=QWEN_3)
    assert chat_template(found, Bytes()) == QWEN_3
    without_begin = chat_template(found, Bytes(bos=None))
    assert without_begin.endswith(QWEN_3) and chat_format_of(without_begin).name == "qwen3"
    assert chat_template(chat_format_of(without_begin), Bytes()) == QWEN_3


def test_a_template_may_refuse_a_system_message_that_the_format_folds() -> None:
    assert chat_format_of(GEMMA_2).name == "gemma"
    refusing = QWEN_3.replace("{%-", "{%- if messages[0].role == 'system' %}{{ raise_exception('') }}{% endif %}{%-", 1)
    assert isinstance(chat_format_of(refusing), TemplateFormat)


def test_what_our_templates_write_is_what_the_formats_write() -> None:
    for known in FORMATS:
        found = recognise_output(known.template)
        assert found is not None and found.name == known.name


def test_the_way_a_template_is_laid_out_does_not_matter() -> None:
    assert recognise_text(CHATML_IN_LINES) is CHATML


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
def test_what_is_recognised_writes_the_same(theirs, name: str, monkeypatch) -> None:
    """Compare the ids of released templates with those of the recognised format, without the begin token."""
    ours, other = theirs["line ends", name]
    chat = CHAT[1:4] if name == "mistral" else CHAT[:4]
    monkeypatch.setattr(chat_template_utils, "datetime", ThatDay)
    ids = their_ids(other, chat, chat_template=ALL[name], add_generation_prompt=True)
    ids = ids if ids[0] == ours.bos_id else [ours.bos_id, *ids]
    expected = encode_generation_prompt(chat, ours, named_chat_format(name))
    if name == "alpaca":
        expected = encode_chat(chat, ours, named_chat_format(name)).ids
    assert ids == expected


@pytest.mark.parametrize(
    "template",
    [
        SMOLLM2.replace("SmolLM", "Qwen"),
        SMOLLM2.replace(SMOLLM2_SYSTEM, ""),
        CHATML_TEXT.replace("<|im_end|>", "<|end|>"),
        CHATML_TEXT.replace("'<|im_end|>\\n'", "'<|im_end|>'"),
        CHATML_TEXT.replace("message['content'] +", "message['content'] | trim +"),
        LLAMA_3.replace(" | trim", ""),
        MISTRAL.replace(" [/INST]", "[/INST]"),
        ALPACA.replace(r"\n\n", r"\n"),
        ZEPHYR.replace("<|user|>", "<|human|>"),
        CHATML_TEXT + "<tool_call>",
        QWEN_3.replace("loop.index0 > ns.last", "true"),
        QWEN_3.replace("(loop.last or thought)", "true"),
        LLAMA_3_2.replace("December 2023", "May 2024"),
        GEMMA_3.replace("prefix if loop.first", "prefix if loop.last"),
        MISTRAL_V0_3.replace("| trim", ""),
        QWEN_3.replace("said.endswith('</tool_response>')", "true"),
        QWEN_2_5.replace("message['content']", "message['content'].replace('colour', 'color')"),
        GEMMA_3.replace("| trim", "| trim if 'secret' not in message['content'] else ''"),
    ],
)
def test_what_writes_something_else_is_no_known_format(template: str) -> None:
    assert recognise_text(template) is None and recognise_output(template) is None
    assert chat_format_of(template) == TemplateFormat(template)


@pytest.mark.parametrize(
    "template",
    [
        CHATML_TEXT.replace("{{ '<|im_start|>' +", "{% if tools %}{{ tools }}{% endif %}{{ '<|im_start|>' +"),
        CHATML_TEXT + "{% if messages[0]['role'] == 'tool' %}<tool_call>{% endif %}",
        CHATML_TEXT.replace("{% for", "{%+ for"),
    ],
)
def test_what_writes_the_same_in_other_words_is_known_by_its_output(template: str) -> None:
    found = chat_format_of(template)
    assert recognise_text(template) is None and found == replace(CHATML, template=template)


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ messages", "found no Jinja template: line 1: unexpected end of template"),
        (CHATML_TEXT + "{% include 'other' %", "found no Jinja template"),
        (
            CHATML_TEXT.replace("+ message['content'] +", "+ '{message.content}' +"),
            r"it leaves out messages\[0\], of the",
        ),
        (
            CHATML_TEXT + ALPACA,
            r"it writes more than once messages\[0\], of the user, expected the messages once and in their",
        ),
        ("just text", r"it leaves out messages\[0\], of the user"),
        ("x" * 100_001, "found a chat template of 100001 bytes"),
    ],
)
def test_templates_that_are_refused(template: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"chat template.*{found}"):
        chat_format_of(template)


def test_a_named_format_is_compared_with_the_own_template() -> None:
    llama_3 = named_chat_format("llama-3")
    assert "llama-3: the model's own chat template is that of bitnet; give that name only" in (
        disagreement(BITNET, llama_3) or ""
    )
    for name, template in ALL.items():
        for other in FORMATS:
            same = other.name == name or {name, other.name} <= {"qwen3", "qwen3-no-think"}
            assert (disagreement(template, other) is None) == same
    phi = SMOLLM2.replace("SmolLM", "Phi")
    assert disagreement(phi, CHATML) is None  # not recognised, but it has the markers
    assert "never writes '<|start_header_id|>'" in (disagreement(phi, llama_3) or "")
    assert "never writes '<|start_header_id|>'" in (disagreement("{{ wrong", llama_3) or "")


@given(
    st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "'", '"', "\\", "\n", " ", "-", "set ", "=", "x"])).map("".join)
)
def test_no_other_text_is_known(template: str) -> None:
    assert recognise_text(template) is None


@pytest.mark.parametrize("piece", ["{{", "{{ ' }}", "{{ '\\", "\\'", "{% set x = '", "[  ", "{%%}", " \n"])
def test_no_template_takes_long_to_read(piece: str) -> None:
    assert recognise_text("{{ '" + piece * (90_000 // len(piece))) is None
    assert recognise_text("{{ '" + piece * (90_000 // len(piece)) + " }}") is None


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
        ("tokenizer_config.json", b'{"chat_template": "{{ x"}', "tokenizer_config.json: chat template: found no Jinja"),
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
    with pytest.raises(ValueError, match=r"found .vicuna., expected one of chatml, smollm2, qwen2\.5"):
        named_chat_format("vicuna")
