"""ChatML and the formats made from it, as data: `<|im_start|>ROLE`, a line end, the content, `<|im_end|>`."""

from dataclasses import replace

from shared_tokenizer.chat.chat_format import Marker, Role
from shared_tokenizer.chat.framed import Frame, FramedFormat, Thinking

_IM_START, _IM_END = Marker("<|im_start|>"), Marker("<|im_end|>")


def _chatml_frame(role: Role) -> Frame:
    if role == "assistant":
        return Frame(header=(_IM_START, "assistant\n"), end=(_IM_END,), footer=("\n",))
    return Frame(header=(_IM_START, f"{role}\n"), footer=(_IM_END, "\n"))


CHATML = FramedFormat(
    name="chatml",
    system=_chatml_frame("system"),
    user=_chatml_frame("user"),
    assistant=_chatml_frame("assistant"),
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    published=(
        frozenset({"<|im_start|>{message.role}\n{message.content}<|im_end|>\n"}),
        frozenset(
            {
                "<|im_start|>system\n{message.content}<|im_end|>\n",
                "<|im_start|>user\n{message.content}<|im_end|>\n",
                "<|im_start|>assistant\n{message.content}<|im_end|>\n",
            }
        ),
    ),
)


def _with_default_system(name: str, system: str) -> FramedFormat:
    """Return ChatML with a system message for conversations that have none."""
    begin = "{%- if messages[0].role != 'system' %}\n    {{- '<|im_start|>system\\n"
    end = "<|im_end|>\\n' }}\n{%- endif %}\n{%- for"
    outputs = {
        f"<|im_start|>system\n{system}<|im_end|>\n",
        "<|im_start|>{message.role}\n{message.content}<|im_end|>\n",
    }
    return replace(
        CHATML,
        name=name,
        default_system=system,
        template=CHATML.template.replace("{%- for", f"{begin}{system}{end}", 1),
        published=(frozenset(outputs),),
    )


SMOLLM2 = _with_default_system("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
# Of Qwen2.5 Instruct.
QWEN_2_5 = _with_default_system("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")

_QWEN_3_TEMPLATE = r"""
{{- bos_token }}
{%- set turns = namespace(last_question=messages | length) %}
{%- for message in messages %}
    {%- set of_tool = message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>') %}
    {%- if message.role == 'user' and not of_tool %}
        {%- set turns.last_question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set thought, answer = '', message.content %}
    {%- if message.role == 'assistant' and '</think>' in answer %}
        {%- set thought = answer.partition('</think>')[0].rpartition('<think>')[2].strip('\n') %}
        {%- set answer = answer.rpartition('</think>')[2].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > turns.last_question and (loop.last or thought) %}
        {%- set answer = '<think>\n' + thought + '\n</think>\n\n' + answer.lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + answer + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
# Of Qwen3, and of models made from it, with enable_thinking as it is by default.
QWEN_3 = replace(CHATML, name="qwen3", template=_QWEN_3_TEMPLATE, published=(), thinking=Thinking(is_on=True))
# With enable_thinking false: an empty thought ends the header of an answer, which has no other.
QWEN_3_NO_THINK = replace(
    QWEN_3,
    name="qwen3-no-think",
    template=_QWEN_3_TEMPLATE.replace("(loop.last or thought)", "loop.last")
    .replace(" + thought + ", " + ")
    .replace(r"assistant\n' }}", r"assistant\n<think>\n\n</think>\n\n' }}"),
    thinking=Thinking(is_on=False),
)
