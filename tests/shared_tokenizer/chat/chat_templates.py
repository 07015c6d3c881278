"""Chat templates as released models have them, by the format that they write."""

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
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
QWEN_3 = r"""{%- set ns = namespace(last=messages | length) %}
{%- for message in messages %}
    {%- set said = message.content %}
    {%- if message.role == 'user' and not (said.startswith('<tool_response>') and said.endswith('</tool_response>')) %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content, thought = message.content, '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
        {%- set content = '<think>\n' + thought + '\n</think>\n\n' + content.lstrip('\n') %}
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
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('not alternating') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
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
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('not alternating') }}
    {%- endif -%}
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
