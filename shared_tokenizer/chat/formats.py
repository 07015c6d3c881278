"""The known chat formats, as data."""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant"]
ChatFormatName: TypeAlias = Literal["chatml", "smollm2", "llama-2", "llama-3", "mistral", "zephyr", "alpaca", "bitnet"]
# The choices of the commands; auto follows the chat template of the tokenizer.
ChatFormatChoice: TypeAlias = Literal["auto", ChatFormatName]


class Edge(Enum):
    """The begin-of-text and end-of-text tokens of the tokenizer, whatever their spelling."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True)
class Marker:
    """The spelling of one special token.

    Where the tokenizer has no such token, `text_will_do` allows the spelling as text; otherwise encoding raises an
    error.
    """

    text: str
    text_will_do: bool = False


Part: TypeAlias = str | Marker | Edge


@dataclass(frozen=True)
class Frame:
    """The parts around the content of a turn, in the order header, lead, content, end, footer.

    In a turn of the assistant, lead, content and end are in the loss mask: the model has to write them itself.
    """

    header: tuple[Part, ...] = ()
    lead: str = ""
    end: tuple[Part, ...] = ()
    footer: tuple[Part, ...] = ()


@dataclass(frozen=True)
class ChatFormat:
    """A format that writes a conversation as tokens.

    name: its name in commands.
    user, assistant, system: the frames of the turns.
    folds_system: True if the system message, in its frame, begins the first user turn. The turns of such a format
        alternate, from a user turn on: consecutive turns of one role are joined by a blank line.
    default_system: system message of conversations that have none.
    trims: True if whitespace around contents is removed.
    template: the format in Jinja, for other programs; `chat_template` adapts it to a tokenizer.
    published: the outputs of the templates of released models in this format, one set per template.
    """

    name: ChatFormatName
    user: Frame
    assistant: Frame
    system: Frame
    template: str
    published: tuple[frozenset[str], ...]
    folds_system: bool = False
    default_system: str | None = None
    trims: bool = False

    @property
    def generation_prompt(self) -> str:
        """Return the header of an assistant's turn as text."""
        header = (part for part in self.assistant.header if not isinstance(part, Edge))
        return "".join(part.text if isinstance(part, Marker) else part for part in header)


_IM_START, _IM_END = Marker("<|im_start|>"), Marker("<|im_end|>")
_EOT = Marker("<|eot_id|>")
_INST, _INST_END = Marker("[INST]", text_will_do=True), Marker("[/INST]", text_will_do=True)
_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def _chatml_frame(role: Role) -> Frame:
    if role == "assistant":
        return Frame(header=(_IM_START, "assistant\n"), end=(_IM_END,), footer=("\n",))
    return Frame(header=(_IM_START, f"{role}\n"), footer=(_IM_END, "\n"))


def _llama_3_frame(role: Role) -> Frame:
    header = (Marker("<|start_header_id|>"), role, Marker("<|end_header_id|>"), "\n\n")
    return Frame(header=header, end=(_EOT,)) if role == "assistant" else Frame(header=header, footer=(_EOT,))


def _zephyr_frame(role: Role) -> Frame:
    header = (Marker(f"<|{role}|>", text_will_do=True), "\n")
    if role == "assistant":
        return Frame(header=header, end=(Edge.END,), footer=("\n",))
    return Frame(header=header, footer=(Edge.END, "\n"))


def _bitnet_frame(role: str) -> Frame:
    return Frame(header=(f"{role}: ",), footer=(_EOT,))


CHATML = ChatFormat(
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

_WITH_DEFAULT_SYSTEM = r"""
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}
{%- endif %}
{%- for"""
SMOLLM2 = replace(
    CHATML,
    name="smollm2",
    default_system=_SMOLLM2_SYSTEM,
    template=CHATML.template.replace("\n{%- for", _WITH_DEFAULT_SYSTEM, 1),
    published=(
        frozenset(
            {
                f"<|im_start|>system\n{_SMOLLM2_SYSTEM}<|im_end|>\n",
                "<|im_start|>{message.role}\n{message.content}<|im_end|>\n",
            }
        ),
    ),
)

LLAMA_2 = ChatFormat(
    name="llama-2",
    system=Frame(header=("<<SYS>>\n",), footer=("\n<</SYS>>\n\n",)),
    user=Frame(header=(Edge.BEGIN, _INST, " "), footer=(" ", _INST_END)),
    assistant=Frame(lead=" ", end=(" ", Edge.END)),
    folds_system=True,
    trims=True,
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

LLAMA_3 = ChatFormat(
    name="llama-3",
    system=_llama_3_frame("system"),
    user=_llama_3_frame("user"),
    assistant=_llama_3_frame("assistant"),
    trims=True,
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

MISTRAL = ChatFormat(
    name="mistral",
    system=Frame(footer=("\n\n",)),
    user=Frame(header=(" ", _INST, " "), footer=(" ", _INST_END)),
    assistant=Frame(lead=" ", end=(Edge.END,)),
    folds_system=True,
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

ZEPHYR = ChatFormat(
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

ALPACA = ChatFormat(
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
BITNET = ChatFormat(
    name="bitnet",
    system=_bitnet_frame("System"),
    user=_bitnet_frame("User"),
    assistant=Frame(header=("Assistant: ",), end=(_EOT,)),
    trims=True,
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

CHAT_FORMATS: dict[str, ChatFormat] = {
    known.name: known for known in (CHATML, SMOLLM2, LLAMA_2, LLAMA_3, MISTRAL, ZEPHYR, ALPACA, BITNET)
}


def named_chat_format(name: str) -> ChatFormat:
    """Return the format of a name. Raises ValueError with the known names."""
    if name not in CHAT_FORMATS:
        raise ValueError(f"chat format: found {name!r}, expected one of {', '.join(CHAT_FORMATS)}")
    return CHAT_FORMATS[name]
