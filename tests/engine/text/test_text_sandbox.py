"""A chat template may do what templates do, and takes no more time and memory than that."""

import subprocess
import sys
import time
from typing import Any

import jinja2
import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastslow.engine.text import sandbox
from fastslow.engine.text.templates import LONGEST, ChatTemplate

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": " <b>a</b>\nb ", "data": {"k": [1, 2.5, None, {"x": "y"}]}},
    {"role": "assistant", "content": "<think>hm</think>\n\nso"},
    {"role": "user", "content": "last"},
]

HONEST = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role ~ ': ' ~ m.content }}\n{% endfor %}",
    "{% for m in messages[::-1] if m.role != 'system' %}{{ m.content[1:3] }}{{ loop.last }}{% endfor %}",
    (
        "{% set ns = namespace(n=0, all=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.all = ns.all + [m.role, (m.content, ns.n)] %}{% endfor %}{{ ns.n }}{{ ns.all }}"
    ),
    "{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}{{ '</think>' in messages[2].content }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ messages[1].data | tojson }}{{ messages[1] | tojson(indent=2) }}{{ messages | length }}",
    (
        "{% macro turn(m, end='.') %}[{{ m.role | upper }}{{ caller() if caller }}{{ end }}]{% endmacro %}"
        "{{ turn(messages[0]) }}{% call turn(messages[1], end='!') %}x{% endcall %}"
    ),
    "{% set text %}a{{ messages[0].role }}{% endset %}{{ text | trim }}{% filter upper %}b{{ text }}{% endfilter %}",
    "{% for k, v in messages[1].data.items() %}{{ k }}={{ v }}{% endfor %}{{ messages[1].keys() | list }}",
    (
        "{% if messages[0].role == 'system' and messages | length > 1 %}{% set messages = messages[1:] %}{% endif %}"
        "{{ messages[0].content.strip().replace('\\n', ' ') | indent(2, true) }}"
    ),
    "{{ '%s-%05d' % ('a', 7) }}{{ '{0}{x!r}'.format(1, x='é') }}{{ '%s' | format(3) }}{{ 'x' * 3 ~ 2 ** 5 }}",
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 7 / 2 }}{{ -3 + 1 - 2 }}{{ [1, 2] + [3] }}{{ (1, 2) }}{{ {'a': messages[0].role} }}",
    "{{ messages[0].missing }}{{ messages[0].missing is defined }}{{ messages[0].missing | default('d') }}",
    "{% for i in range(9) %}{% if i is odd %}{% continue %}{% endif %}{% if i > 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
    "{{ [3, 1, 2] | sort | join('-') }}{{ 'a b' | title }}{{ '<' | e }}{{ [1, 2, 3] | batch(2) | list }}{{ ['a'] | first }}",
    "{{ 1 if messages else 2 }}{{ not true }}{{ 1 < 2 <= 2 }}{{ 'a' not in 'b' }}{{ true }}{{ none }}",
    "{% for m in messages %}{{- loop.cycle('a', 'b') }}{% else %}none{% endfor %}{{ dict(a=1).a }}{{ joiner(',')() }}",
]


@pytest.mark.parametrize("source", HONEST)
def test_templates_say_what_they_say_to_everybody(source: str) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = sandbox._tojson
    ours = ChatTemplate(source, "t", None, None).render(CHAT)
    assert ours == plain.from_string(source).render(messages=CHAT) != ""


def doubled(start: str, step: str, end: str = "") -> str:
    """A value that doubles sixty times."""
    rounds = "{% for i in range(60) %}" + step + "{% endfor %}"
    return "{% set ns = namespace(x=" + start + ") %}" + rounds + end


GREEDY = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r if false %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) | map('abs') %}{% for j in range(9999) | map('abs') %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(9999)" + " | select" * 50 + " | first }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "{% for i in range(600) %}{{ 'x' | center(100000) }}{% endfor %}",
    "{{ 1 | round(2 * 10 ** 6, 'ceil') }}",
    "{{ ('a' * 9000) | replace(new='x' * 9000, old='a') }}",
    "{{ ('a' * 9000) | join(attribute='real', d='x' * 9000) }}",
    "{{ ('a\n' * 9000) | indent(('x' * 9000) | e, true, true) }}",
    "{{ '%(a)9000000d' | format(a=1) }}{{ (1).to_bytes(10 ** 9, 'big') }}",
    "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "{{ [['x']] | map('list') | sum(start=[]) }}",
    doubled("'ab'", "{% set ns.x = ns.x ~ ns.x %}"),
    doubled("'ab'", "{% set ns.x = ns.x + ns.x %}"),
    doubled("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    doubled("['a']", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}"),
    doubled("['a']", "{% set ns.x = (ns.x, ns.x) %}", "{{ {ns.x: 1} }}"),
    doubled("{}", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{{ ns.x | tojson }}"),
    doubled("{}", "{% set ns.x = dict(a=ns.x, b=ns.x) %}", "{{ ns.x | string }}"),
    doubled("[]", "{% set ns.x = cycler(ns.x, ns.x).items %}", "{{ ns.x }}"),
    "{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
    + doubled("[]", "{% set _ = f(ns.x, ns.x) %}", "{{ ns.x }}").replace("ns.x", "x.x").replace("ns =", "x ="),
    doubled("3", "{% set ns.x = ns.x * ns.x %}"),
    *("{{ 'x' * 10 ** 9 }}", "{{ 10 ** 9 * 'x' }}", "{{ ['x'] * 10 ** 9 }}"),
    *("{{ 2 ** (10 ** 9) }}", "{{ ('f' * 5000) | int(base=16) is divisibleby 3 }}"),
    *("{{ 'x' | center(10 ** 9) }}", "{{ 'x'.ljust(10 ** 9) }}", "{{ 'x'.zfill(10 ** 9) }}"),
    *("{{ '\t'.expandtabs(10 ** 9) }}", "{{ '%1000000000d' % 1 }}", "{{ '%*d' % (10 ** 9, 1) }}"),
    *("{{ '%*d' | format(10 ** 9, 1) }}", "{{ '%.1000000000f' % 1.5 }}"),
    *("{{ '{:1000000000}'.format(1) }}", "{{ '{:{w}}'.format(1, w=10 ** 9) }}"),
    "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "{{ ('{0}' * 100000).format('x' * 100000) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 100000} }}",
    "{{ ('x' * 100000).replace('', 'y' * 100000) }}",
    "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "{{ ('y' * 100000).join('x' * 100000) }}",
    "{{ ('y' * 100000).join(range(100000) | map('string')) }}",
    "{{ range(100000) | map('string') | join('y' * 100000) }}",
    "{{ ('x\n' * 100000) | indent(100000) }}",
    "{{ range(9999) | list | tojson(indent=100000) }}",
    *("{{ 'x' | batch(10 ** 9, 'y') | list }}", "{{ ('x' * 10 ** 6) | list }}"),
    "{% set x = 'x' * 10 ** 6 %}{% set y = 'x' * 9999 ~ 'y' %}" + "{% if y in x %}{% endif %}" * 500,
    "{% set x = 'x' * 10 ** 6 %}" + "{% if x is lower and 0 %}{% endif %}" * 500,
    "{% set x = 'x' * 10 ** 6 %}" + "{% set y = x[1:] %}" * 300,
    "{% set t = range(9999) | list | batch(9999) | list %}" + "{% set y = t | sort %}" * 500,
    "{% set big %}{% for i in range(99999) %}" + "y" * 99999 + "{% endfor %}{% endset %}",
    "{% set s = 'x' * 10 ** 6 %}{% set big %}{% for i in range(9999) %}{{ s }}{% endfor %}{% endset %}",
    *("{{ lipsum(10 ** 9) }}", "{{ 'x'.encode('punycode') }}", "{{ 'x'.translate({120: 'y'}) }}"),
    *("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "{% if 1 %}" * 9999 + "{% endif %}" * 9999),
    *("{% for i in [1] %}" * 60 + "{% endfor %}" * 60, "{{ 1" + " | abs" * 9999 + " }}"),
    "x" * (LONGEST + 1),
]


@pytest.mark.parametrize("source", GREEDY, ids=lambda source: source[:60])
def test_templates_that_take_too_much_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHARACTERS", 2**22)
    monkeypatch.setattr(sandbox, "SECONDS", 0.05)
    begun = time.thread_time()
    with pytest.raises(ValueError, match=r"^t( line \d+|): .|^t has \d+ characters") as caught:
        ChatTemplate(source, "t", None, None).render([{"role": "user", "content": "hi"}])
    spent, begun = time.thread_time() - begun, time.thread_time()
    sum(range(10**6))  # how fast this machine is
    assert spent < 1 + 50 * (time.thread_time() - begun) and "\n" not in str(caught.value)


DEEP = (
    "{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [1] | batch(2, ns.x) | first %}{% endfor %}"
)


def test_what_a_template_raises_may_nest_and_namespaces_hide_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHARACTERS", 2**30)
    with pytest.raises(ValueError, match="^t: maximum recursion depth"):
        ChatTemplate(DEEP + "{{ raise_exception(ns.x) }}", "t", None, None).render(CHAT)
    made = "".join(f"{{% set a{i} = namespace() %}}" for i in range(60))
    held = "".join(f"{{% set a{i}.x = a{i + 1} %}}{{% set a{i}.y = a{i + 1} %}}" for i in range(59))
    text = ChatTemplate(made + held + "{{ a0 }}{{ a0.x.y | string }}", "t", None, None).render(CHAT)
    assert text == "<Namespace>" * 2


@pytest.mark.slow
def test_no_template_takes_the_machines_memory() -> None:
    """All of them once more with the usual limits, where a single one of them would break this one."""
    code = (
        "import resource, sys; sys.path[:0] = ['tests/engine/text']\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "import test_text_sandbox as t\n"
        "for source in t.GREEDY[7:]:\n"
        "    try: t.ChatTemplate(source, 't', None, None).render(t.CHAT)\n"
        "    except ValueError as error: assert 'MemoryError' not in str(error), source\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_long_chats_have_more_work() -> None:
    source = HONEST[0] + HONEST[3] + "{% for m in messages %}{% for x in messages %}{% endfor %}{% endfor %}"
    template = ChatTemplate(source, "t", None, None)
    assert len(template.render(CHAT * 75)) > 75 * 40
    long = [{"role": "user", "content": "x" * 3_000_000}] * 3
    assert len(template.render([*long, CHAT[2]])) > 9_000_000


def test_what_is_stopped_in_one_thread_stops_in_no_other() -> None:
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}ok", "t", None, None)
    for _ in range(5):
        assert template.render(CHAT) == "ok"
    with pytest.raises(jinja2.TemplateError), sandbox.limited():
        sandbox._charge(10**9)
    assert template.render(CHAT) == "ok"
