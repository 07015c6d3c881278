"""The formats of other released models, as data."""

from shared_tokenizer.chat.chat_format import Edge, Marker, Role
from shared_tokenizer.chat.framed import Frame, FramedFormat

_EOT = Marker("<|eot_id|>")


def _zephyr_frame(role: Role) -> Frame:
    header = (Marker(f"<|{role}|>", text_will_do=True), "\n")
    if role == "assistant":
        return Frame(header=header, end=(Edge.END,), footer=("\n",))
    return Frame(header=header, footer=(Edge.END, "\n"))


def _bitnet_frame(role: str) -> Frame:
    return Frame(header=(f"{role}: ",), footer=(_EOT,))


def _gemma_frame(role: str) -> Frame:
    header, end = (Marker("<start_of_turn>"), f"{role}\n"), Marker("<end_of_turn>")
    return Frame(header=header, end=(end,), footer=("\n",)) if role == "model" else Frame(header, footer=(end, "\n"))


ZEPHYR = FramedFormat(
    name="zephyr",
    system=_zephyr_frame("system"),
    user=_zephyr_frame("user"),
    assistant=_zephyr_frame("assistant"),
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}
""",
    published=(
        frozenset(
            {
                "<|system|>\n{message.content}{eos_token}\n",
                "<|user|>\n{message.content}{eos_token}\n",
                "<|assistant|>\n{message.content}{eos_token}\n",
            }
        ),
    ),
)

# Of Falcon3 Instruct, and of Tulu 3 and OLMo 2: no token ends a question.
FALCON_3 = FramedFormat(
    name="falcon3",
    system=Frame(header=ZEPHYR.system.header, footer=("\n",)),
    user=Frame(header=ZEPHYR.user.header, footer=("\n",)),
    assistant=ZEPHYR.assistant,
    ends_bare=True,
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content }}
    {%- if message.role == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
    {%- if message.role != 'assistant' or not loop.last %}
        {{- '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- endif %}
""",
    published=(
        frozenset(
            {
                "<|system|>\n{message.content}\n",
                "<|user|>\n{message.content}\n",
                "<|assistant|>\n{message.content}{eos_token}\n",
                "<|assistant|>\n{message.content}{eos_token}",
            }
        ),
    ),
)

ALPACA = FramedFormat(
    name="alpaca",
    system=Frame(footer=("\n\n",)),
    user=Frame(header=("### Instruction:\n",), footer=("\n\n",)),
    assistant=Frame(header=("### Response:\n",), end=(Edge.END,), footer=("\n\n",)),
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '### Instruction:\n' + message.content + '\n\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '### Response:\n' + message.content + eos_token + '\n\n' }}
    {%- else %}
        {{- message.content + '\n\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\n' }}
{%- endif %}
""",
    published=(
        frozenset(
            {
                "{messages[0].content}\n\n",
                "### Instruction:\n{message.content}\n\n",
                "### Response:\n{message.content}{eos_token}\n\n",
            }
        ),
        frozenset(
            {
                "{message.content}\n\n",
                "### Instruction:\n{message.content}\n\n",
                "### Response:\n{message.content}{eos_token}\n\n",
            }
        ),
    ),
)

# Of microsoft/bitnet-b1.58-2B-4T.
BITNET = FramedFormat(
    name="bitnet",
    system=_bitnet_frame("System"),
    user=_bitnet_frame("User"),
    assistant=Frame(header=("Assistant: ",), end=(_EOT,)),
    trims="turns",
    template=r"""
{{- bos_token }}
{%- for message in messages %}
    {{- message.role | capitalize + ': ' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant: ' }}
{%- endif %}
""",
    published=(
        frozenset({"{message.role|capitalize}: {message.content|trim}<|eot_id|>", "{content}"}),
        frozenset({"{message.role|capitalize}: {message.content|trim}<|eot_id|>"}),
    ),
)

# Of Gemma 1 to 3. Gemma 1 and 2 have no system message of their own: here it begins the first question, as in Gemma 3.
GEMMA = FramedFormat(
    name="gemma",
    system=Frame(footer=("\n\n",)),
    user=_gemma_frame("user"),
    assistant=_gemma_frame("model"),
    folds_system_into="first",
    trims="contents",
    template=r"""
{%- set system, turns = '', messages %}
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content | trim + '\n\n', messages[1:] %}
{%- endif %}
{%- if not turns or turns[0].role != 'user' %}
    {{- raise_exception('gemma: expected the first turn to be the user\'s') }}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if loop.first or loop.previtem.role != message.role %}
        {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}
        {{- system if loop.first else '' }}
    {%- else %}
        {{- '\n\n' }}
    {%- endif %}
    {{- message.content | trim }}
    {%- if loop.last or loop.nextitem.role != message.role %}
        {{- '<end_of_turn>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
""",
)
