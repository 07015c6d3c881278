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
from tests.shared_tokenizer.chat.chat_tokenizers import CHAT, FORMATS, PATTERNS, Bytes, their_ids

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


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
# With the parts for tools that released templates have; none is given here.
FALCON_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
QWEN_2_5 = SMOLLM2.replace(
    SMOLLM2_SYSTEM, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
).replace("{%", "{% if tools %}{{ '# Tools' + tools | tojson }}{% endif %}{%", 1)
LLAMA_3_2 = r"""{{- bos_token }}
{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}
{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, messages = messages[0]['content'] | trim, messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + ('Environment: ipython\n' if tools is not none else '') }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: ' + day + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN_3 = r"""{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content, thought = message.content, '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last %}
        {%- set content = '<think>\n' + thought + '\n</think>\n\n' + content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content }}
    {%- for call in message.tool_calls or [] %}
        {{- call | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL_V0_3 = r"""{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, turns = messages[0]['content'], messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[AVAILABLE_TOOLS]' + tools | tojson if tools is not none else '' }}
        {{- '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA_2 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_3 = r"""{{ bos_token }}
{%- set prefix = '' -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix, messages = messages[0]['content'] + '\n\n', messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {{ raise_exception('Invalid content type') }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""
OTHERS = {
    "bitnet": BITNET,
    "chatml": CHATML_TEXT,
    "smollm2": SMOLLM2,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    "alpaca": ALPACA,
    "falcon3": FALCON_3,
}
# These are known by what they write alone.
PROGRAMS = {
    "qwen2.5": QWEN_2_5,
    "qwen3": QWEN_3,
    "qwen3-no-think": QWEN_3.replace("enable_thinking is defined and enable_thinking is false", "true"),
    "llama-3.1": LLAMA_3_2,
    "mistral-v0.3": MISTRAL_V0_3,
    "gemma": GEMMA_3,
}
ALL = OTHERS | PROGRAMS


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
        LLAMA_3_2.replace("December 2023", "May 2024"),
        GEMMA_3.replace("prefix if loop.first", "prefix if loop.last"),
        MISTRAL_V0_3.replace("| trim", ""),
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
            r"it writes messages\[0\], of the user, 2 times, expected the messages once and in their",
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
