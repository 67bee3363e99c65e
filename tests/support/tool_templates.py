"""Chat templates that take tools, of the shapes that published families have."""

from functools import reduce
from typing import Any

HERMES = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\n\\nCall one as\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
QWEN3_CODER = """\
{%- for tool in tools or [] %}
    {{- '<function>\\n<name>' ~ tool.function.name ~ '</name>\\n' ~ tool.function.parameters | tojson ~ '\\n</function>\\n' }}
    {%- if loop.last %}
        {{- '<tool_call>\\n<function=name>\\n<parameter=one>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>\\n' }}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
        {%- for name, value in call.function.arguments | items %}
            {{- '<parameter=' + name + '>\\n' }}
            {{- (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def _respelled(*pairs: tuple[str, str]) -> str:
    """The last one, whose calls have other texts around them."""
    source = QWEN3_CODER
    for old, new in pairs:
        assert old in source
        source = source.replace(old, new)
    return source


GLM = _respelled(
    (r"\n<function=name>\n<parameter=one>\nvalue\n</parameter>\n</function>", r"name\n<arg_key>one</arg_key>\n<arg_value>1"),
    (r"\n<function=' + call.function.name + '>", "' + call.function.name + '"),
    (r"'<parameter=' + name + '>\n'", r"'<arg_key>' + name + '</arg_key>\n<arg_value>'"),
    (r"\n</parameter>", "</arg_value>"), (r"</function>\n</tool_call>", "</tool_call>"),
)  # fmt: skip
MINIMAX = _respelled(
    ("tool_call>", "minimax:tool_call>"), ("<function=name>", '<invoke name="name">'),
    ("<function=' + call.function.name + '>", "<invoke name=\"' + call.function.name + '\">"),
    (r"<parameter=' + name + '>\n", "<parameter name=\"' + name + '\">"),
    (r"'\n</parameter>", "'</parameter>"), (r"</function>\n</minimax", r"</invoke>\n</minimax"),
)  # fmt: skip
LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}
    {{- '<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n' }}
    {{- 'Answer with {"name": function name, "parameters": dictionary of argument name and its value}.\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n' }}{%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('ipython', 'tool') and 'tool_calls' not in message %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
GPT_OSS = """\
{{- '<|start|>system<|message|># Valid channels: analysis, commentary, final.<|end|>' }}
{%- if tools %}
    {{- '<|start|>developer<|message|># Tools\\n\\nnamespace functions {\\n' }}
    {%- for tool in tools %}
        {{- '// ' + tool.function.description + '\\ntype ' + tool.function.name + ' = (_: ' }}
        {{- tool.function.parameters | tojson + ') => any;\\n' }}
    {%- endfor %}
    {{- '}<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and 'tool_calls' in message %}
        {%- if message.content %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.content + '<|end|>' }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {%- set last.name = call.name %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson }}{{- '<|call|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content | tojson }}{{- '<|end|>' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
PANGU = """\
{{- '[unused9]系统：' + (messages[0].content if messages[0].role == 'system' else '') }}
{%- if tools %}
    {{- '\\n<tools>\\n' + tools | tojson + '\\n</tools>\\n[unused11][{"name": <name>, "arguments": <object>}][unused12]' }}
{%- endif %}
{{- '[unused10]' }}
{%- for message in messages if message.role != 'system' %}
    {%- set name = {'user': '用户', 'assistant': '助手', 'tool': '工具'}[message.role] %}
    {{- '[unused9]' + name + '：' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '[unused11][' if loop.first else ', ' }}
        {{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
        {{- '][unused12]' if loop.last }}
    {%- endfor %}
    {{- '[unused10]' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[unused9]助手：' }}{%- endif %}
"""
MARKS = {"[unused9]": "<|message_start|>", "[unused10]": "<|message_end|>"}
MARKS |= {"[unused11]": r"<|tool_call_start|>\n", "[unused12]": r"\n<|tool_call_end|>"}
OPENPANGU = "<|pangu_text_start|>" + reduce(lambda source, mark: source.replace(*mark), MARKS.items(), PANGU)
DEEPSEEK = """\
{{- bos_token }}{{ tools | length if tools else '' }}
{%- for message in messages %}
    {{- '<|User|>' + message.content if message.role == 'user' else message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' + call['function']['name'] + '\\n' + call['function']['arguments'] + '</call>' }}
    {%- endfor %}
{%- endfor %}
{{- '<|Assistant|>' }}
"""
MISTRAL = """\
{{- bos_token }}
{%- if tools is not none and tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
            {%- if call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}
            {{- ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
MINISTRAL = """\
{{- bos_token }}
{%- if tools is not none and tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- message.content or '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
"""
HUNYUAN = """\
{%- if tools %}{{- 'Write <tool_calls>[{"name": "x", "arguments": {}}]</tool_calls>. ' + tools | tojson }}{% endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_calls>[' if loop.first else ', ' }}
        {{- '{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}' }}
        {{- ']</tool_calls>' if loop.last }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}
"""
GRANITE = """\
{%- if tools %}{{- 'Write <|tool_call|> and a JSON list of tools used. ' + tools | tojson + '<|end_of_text|>' }}{% endif %}
{%- for message in messages %}
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<|tool_call|>[{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}]' }}
    {%- endfor %}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}
"""
TOOL_TEMPLATES = {
    "hermes": HERMES, "qwen3-coder": QWEN3_CODER, "glm": GLM, "minimax": MINIMAX, "llama3": LLAMA3, "harmony": GPT_OSS, "pangu": PANGU,
    "openpangu": OPENPANGU,
    "mistral": MISTRAL, "ministral": MINISTRAL, "hunyuan": HUNYUAN, "granite": GRANITE, "generic": DEEPSEEK,
}  # fmt: skip
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "What the weather is like.",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"], "additionalProperties": False,
        },
    },
}  # fmt: skip
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "What time it is.",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
CALL: dict[str, Any] = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'},
}
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call12345", "content": "dry"},
]
