"""The formats of Llama and Mistral, as data."""

from dataclasses import replace

from shared_tokenizer.chat.chat_format import Edge, Marker, Role
from shared_tokenizer.chat.framed import Frame, FramedFormat

_EOT = Marker("<|eot_id|>")
_INST, _INST_END = Marker("[INST]", text_will_do=True), Marker("[/INST]", text_will_do=True)
# What Llama 3.1 and 3.2 write before every system message. The date is the one that their templates fall back to: ids
# are the same on every day.
LLAMA_3_1_PREAMBLE = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _llama_3_frame(role: Role, preamble: str = "") -> Frame:
    header = (Marker("<|start_header_id|>"), role, Marker("<|end_header_id|>"), f"\n\n{preamble}")
    return Frame(header=header, end=(_EOT,)) if role == "assistant" else Frame(header=header, footer=(_EOT,))


LLAMA_2 = FramedFormat(
    name="llama-2",
    system=Frame(header=("<<SYS>>\n",), footer=("\n<</SYS>>\n\n",)),
    user=Frame(header=(Edge.BEGIN, _INST, " "), footer=(" ", _INST_END)),
    assistant=Frame(lead=" ", end=(" ", Edge.END)),
    folds_system_into="first",
    trims="turns",
    template=r"""
{%- set system, turns = '', messages %}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n', messages[1:] %}
{%- endif %}
{%- if not turns or turns[0].role != 'user' %}
    {{- raise_exception('llama-2: expected the first turn to be the user\'s') }}
{%- endif %}
{%- for message in turns %}
    {%- set content = (system + message.content if loop.first else message.content) | trim %}
    {%- if not loop.first and loop.previtem.role == message.role %}
        {{- '\n\n' + content }}
    {%- elif message.role == 'user' %}
        {{- bos_token + '[INST] ' + content }}
    {%- else %}
        {{- ' ' + content }}
    {%- endif %}
    {%- if loop.last or loop.nextitem.role != message.role %}
        {{- ' [/INST]' if message.role == 'user' else ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    published=(
        frozenset(
            {
                "<<SYS>>\n{system_message}\n<</SYS>>\n\n{message.content}",
                "{bos_token}[INST] {content|trim} [/INST]",
                " {content|trim} {eos_token}",
            }
        ),
    ),
)

LLAMA_3 = FramedFormat(
    name="llama-3",
    system=_llama_3_frame("system"),
    user=_llama_3_frame("user"),
    assistant=_llama_3_frame("assistant"),
    trims="turns",
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    published=(
        frozenset({"<|start_header_id|>{message.role}<|end_header_id|>\n\n{message.content|trim}<|eot_id|>"}),
        frozenset(
            {"<|start_header_id|>{message.role}<|end_header_id|>\n\n{message.content|trim}<|eot_id|>", "{content}"}
        ),
    ),
)

# Of Llama 3.1 and 3.2 Instruct. There is always a system message, possibly with the preamble alone.
LLAMA_3_1 = replace(
    LLAMA_3,
    name="llama-3.1",
    system=_llama_3_frame("system", LLAMA_3_1_PREAMBLE),
    default_system="",
    template=r"""
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content | trim, messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nPREAMBLE' + system + '<|eot_id|>' }}
{%- for message in turns %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""".replace("PREAMBLE", LLAMA_3_1_PREAMBLE.replace("\n", r"\n")),
    published=(),
)

MISTRAL = FramedFormat(
    name="mistral",
    system=Frame(footer=("\n\n",)),
    user=Frame(header=(" ", _INST, " "), footer=(" ", _INST_END)),
    assistant=Frame(lead=" ", end=(Edge.END,)),
    folds_system_into="first",
    template=r"""
{%- set system, turns = '', messages %}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content + '\n\n', messages[1:] %}
{%- endif %}
{%- if not turns or turns[0].role != 'user' %}
    {{- raise_exception('mistral: expected the first turn to be the user\'s') }}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- set content = system + message.content if loop.first else message.content %}
    {%- if not loop.first and loop.previtem.role == message.role %}
        {{- '\n\n' + content }}
    {%- else %}
        {{- (' [INST] ' if message.role == 'user' else ' ') + content }}
    {%- endif %}
    {%- if loop.last or loop.nextitem.role != message.role %}
        {{- ' [/INST]' if message.role == 'user' else eos_token }}
    {%- endif %}
{%- endfor %}
""",
    published=(
        frozenset({" [INST] {message.content} [/INST]", " {message.content}{eos_token}"}),
        frozenset(
            {
                " [INST] {system_message}\n\n{message.content} [/INST]",
                " [INST] {message.content} [/INST]",
                " {message.content}{eos_token}",
            }
        ),
    ),
)

# Of Mistral 7B Instruct v0.3: no space stands before markers, and the system message moves to the last question.
MISTRAL_V0_3 = replace(
    MISTRAL,
    name="mistral-v0.3",
    user=Frame(header=(_INST, " "), footer=(_INST_END,)),
    folds_system_into="last",
    trims="answers",
    template=r"""
{%- set system, turns = '', messages %}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content + '\n\n', messages[1:] %}
{%- endif %}
{%- if not turns or turns[0].role != 'user' %}
    {{- raise_exception('mistral-v0.3: expected the first turn to be the user\'s') }}
{%- endif %}
{%- set questions = turns | selectattr('role', 'equalto', 'user') | list | length %}
{%- set asked = namespace(count=0) %}
{{- bos_token }}
{%- for message in turns %}
    {%- if loop.first or loop.previtem.role != message.role %}
        {{- '[INST] ' if message.role == 'user' else ' ' }}
    {%- else %}
        {{- '\n\n' }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- set asked.count = asked.count + 1 %}
        {{- system if asked.count == questions else '' }}
    {%- endif %}
    {{- message.content if message.role == 'user' else message.content | trim }}
    {%- if loop.last or loop.nextitem.role != message.role %}
        {{- '[/INST]' if message.role == 'user' else eos_token }}
    {%- endif %}
{%- endfor %}
""",
    published=(),
)
