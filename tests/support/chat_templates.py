"""Chat templates of the shapes that published families have: small, with the same switches and marks."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers_tiny import edit, write_bpe

CHATML = """\
{%- for message in messages %}
    {%- set said = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in said %}
        {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
"""
QWEN3 = (
    """\
{%- set last = namespace(user=messages|length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if last.looking and message.role == 'user' and not (message.content.startswith('<tool>')
        and message.content.endswith('</tool>')) %}
        {%- set last.looking = false %}
        {%- set last.user = index %}
    {%- endif %}
{%- endfor %}
"""
    + CHATML
    + """\
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
)
QWEN3_THINKING = CHATML + "{{- '<think>\\n' }}\n{%- endif %}\n"
# thinks unless told not to; calls have an element for each argument, results stand in a user's turn
GEMMA4 = """\
{%- macro text(value) %}{{- '<|"|>' ~ value ~ '<|"|>' if value is string else value | tojson }}{%- endmacro %}
{%- set think = enable_thinking | default(false) %}
{{- bos_token }}
{%- if think or tools or messages[0].role == 'system' %}
    {{- '<|turn>system\\n' ~ ('<|think|>' if think else '') }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- set messages = messages[1:] %}{%- endif %}
    {%- for tool in tools or [] %}{{- '<|tool>declaration:' ~ tool.function.name ~ '<tool|>' }}{%- endfor %}
    {{- '<turn|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\\n' }}
    {%- for call in message.tool_calls or [] %}
        {{- '<|tool_call>call:' ~ call.function.name ~ '{' }}
        {%- for key, value in call.function.arguments | dictsort %}
            {{- key ~ ':' ~ text(value) ~ ('' if loop.last else ',') }}
        {%- endfor %}
        {{- '}<tool_call|>' }}
    {%- endfor %}
    {%- for result in message.tool_responses or [] %}
        {{- '<|tool_response>response:' ~ result.name ~ '{' }}
        {%- for key, value in result.response | dictsort %}{{- key ~ ':' ~ text(value) }}{%- endfor %}
        {{- '}<tool_response|>' }}
    {%- endfor %}
    {{- message.content if message.role != 'assistant' else message.content.split('<channel|>')[-1] }}
    {%- if message.content or not message.tool_responses %}{{- '<turn|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- if not messages[-1].tool_responses %}{{- '<|turn>model\\n' }}{%- endif %}
    {%- if not think %}{{- '<|channel>thought\\n<channel|>' }}{%- endif %}
{%- endif %}
"""
QWEN3_5 = """\
{%- if not messages | selectattr('role', 'equalto', 'user') | list %}{{- raise_exception('nobody asked') }}{%- endif %}
{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{ '\\n' ~ tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\n<tool_call>\\n<function=name>\\n<parameter=one>\\nvalue\\n</parameter>\\n' }}
    {{- '</function>\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') | trim }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n<function=' + call.function.name + '>\\n' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>\\n' ~ (value if value is string else value | tojson) ~ '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
# says nothing of thoughts, though its vocabulary has the tags of its family
INSTRUCT = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
SMOLLM3 = """\
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- if messages[0].role == 'system' %}
    {%- set told = messages[0].content %}
    {%- if '/no_think' in told %}
        {%- set mode = '/no_think' %}
    {%- elif '/think' in told %}
        {%- set mode = '/think' %}
    {%- endif %}
    {%- set told = told.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- endif %}
{{- '<|im_start|>system\\nToday: ' ~ strftime_now('%d %B %Y') ~ '\\nReasoning Mode: ' ~ mode ~ '\\n\\n' }}
{{- (told if told else 'You are helpful.') ~ '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {% generation %}
        {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n')
            + message.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if mode == '/no_think' else '') }}
{%- endif %}
"""
# looks for words in messages, and has no variable
NEMOTRON = """\
{%- set ns = namespace(think=true) %}
{%- for message in messages %}
    {%- if message.role in ('user', 'system') %}
        {%- if '/no_think' in message.content %}
            {%- set ns.think = false %}
        {%- elif '/think' in message.content %}
            {%- set ns.think = true %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<turn>' ~ message.role ~ ': ' ~ message.content.replace('/no_think', '').strip() ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<turn>assistant: <think>' ~ ('\\n' if ns.think else '</think>') }}
{%- endif %}
"""
GPT_OSS = """\
{%- macro header() -%}
    {{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\n\\n' }}
    {%- if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}
    {{- 'Reasoning: ' + reasoning_effort + '\\n\\n# Valid channels: analysis, commentary, final.' }}
    {%- for name, each in (tools or {}) | items if each is mapping %}{{ each | tojson }}{% endfor %}
{%- endmacro -%}
{{- '<|start|>system<|message|>' }}{{ header() }}{{ '<|end|>' }}
{%- if messages[0].role in ['developer', 'system'] %}
    {{- '<|start|>developer<|message|># Instructions\\n\\n' + messages[0].content + '<|end|>' }}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if message.role == 'assistant' %}
        {%- if '<|channel|>analysis<|message|>' in message.content %}
            {{- raise_exception('a message with channels belongs into the field thinking') }}
        {%- endif %}
        {#- the thought of an earlier turn is dropped #}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'user' %}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {{- raise_exception('no role ' + message.role) }}
    {%- endif %}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
R1_DISTILL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<|User|>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + content }}
    {%- else %}
        {{- message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}
"""
MAGISTRAL = """\
{{- bos_token }}
{%- set first = 'Draft your thinking as [THINK]a thought[/THINK], then answer.' %}
{%- if messages[0].role == 'system' %}
    {%- set first, messages = messages[0].content, messages[1:] %}
{%- endif %}
{{- '[SYSTEM_PROMPT]' + first + '[/SYSTEM_PROMPT]' }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {{- '[INST]' + message.content + '[/INST]' if message.role == 'user' else message.content + eos_token }}
{%- endfor %}
"""
MISTRAL_EFFORT = (
    """\
{%- set reasoning_effort = reasoning_effort if reasoning_effort is defined else 'none' %}
{%- if reasoning_effort not in ['none', 'high'] %}
    {{- raise_exception('reasoning_effort must be none or high') }}
{%- endif %}
{{- '[MODEL_SETTINGS]' + {'reasoning_effort': reasoning_effort} | tojson + '[/MODEL_SETTINGS]' }}
"""
    + MAGISTRAL
)
SEED = """\
{%- for message in messages %}{{ message.role }}: {{ message.content }}
{% if message.role == 'assistant' %}{{ '<seed:think>' ~ (message.thought or '') ~ '</seed:think>' }}{% endif %}
{%- endfor %}assistant:"""
GLM = """\
[gMASK]<sop>
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|user|>\\n' + message.content }}
        {{- '/nothink' if (enable_thinking is defined and not enable_thinking
            and not message.content.endswith('/nothink')) else '' }}
    {%- else %}
        {{- '<|' ~ message.role ~ '|>\\n' ~ message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' ~ ('\\n<think></think>' if enable_thinking is defined and not enable_thinking else '') }}
{%- endif %}
"""
DEEPSEEK = """\
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{{- bos_token }}
{%- for message in messages %}{{ '<|User|>' + message.content }}{% endfor %}
{{- '<|Assistant|>' + ('<think>' if thinking else '</think>') }}
"""
LLAMA = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
LFM2 = """\
{{- bos_token }}
{%- set keep_past_thinking = keep_past_thinking | default(false) %}
{%- for message in messages %}
    {%- set said = message.content %}
    {%- if message.role == 'assistant' and '</think>' in said and not keep_past_thinking %}
        {%- set said = said.split('</think>')[-1] | trim %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
SEED_OSS = """\
{%- for message in messages %}{{ message.role ~ '\\n' ~ message.content ~ '<seed:eos>' }}{% endfor %}
{%- if thinking_budget is defined and thinking_budget > 0 %}
    {{- 'system\\nThink in at most ' ~ thinking_budget ~ ' tokens.<seed:eos>' }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- 'assistant\\n' }}
    {%- if thinking_budget is defined and thinking_budget == 0 %}{{- '<seed:think>none</seed:think>' }}{% endif %}
{%- endif %}
"""
OPENPANGU = """\
{%- set thinking = thinking if thinking is defined else true %}
{{- '<|pangu_text_start|><|message_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{% endif %}
{{- '<|message_end|>' }}
{%- for message in messages if message.role != 'system' %}
    {{- '<|message_start|>' + message.role + '\\n' + message.content + '<|message_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|message_start|>assistant\\n' + ('<think>' if thinking else '</think>') }}{% endif %}
"""
TEMPLATES = {
    "qwen3": QWEN3, "qwen3.5": QWEN3_5, "qwen3-2507-thinking": QWEN3_THINKING, "qwen3-2507-instruct": INSTRUCT, "smollm3": SMOLLM3,
    "nemotron": NEMOTRON, "gpt-oss": GPT_OSS, "r1-distill": R1_DISTILL, "magistral": MAGISTRAL,
    "mistral-effort": MISTRAL_EFFORT, "seed": SEED, "glm": GLM, "deepseek": DEEPSEEK, "llama": LLAMA,
    "lfm2": LFM2, "seed-oss": SEED_OSS, "openpangu": OPENPANGU,
}  # fmt: skip

PARTS = ("start", "end", "message", "channel", "constrain", "return", "call")
HARMONY = tuple(f"<|{part}|>" for part in PARTS)


def write_marked(folder: Path, template: str, marks: tuple[str, ...] = (), eos: str = "") -> int:
    """`write_bpe` with further special tokens, from id 320 on; returns the number of ids."""
    write_bpe(folder, template)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(list(marks))
    tokenizer.save(str(path))
    if eos:
        edit(folder / "tokenizer_config.json", eos_token=eos)
    return int(tokenizer.get_vocab_size())
