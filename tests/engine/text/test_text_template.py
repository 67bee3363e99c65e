"""Chat templates: openPangu's, Jinja files, the plain one; and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tokenizers_tiny import edit, write_bpe, write_spm

from fastslow.engine.params import Thinking
from fastslow.engine.text.templates import ChatTemplate, load_template
from fastslow.engine.text.tokenizer import load_tokenizer

CHAT = [
    {"role": "system", "content": "S"}, {"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]  # fmt: skip
USER = [{"role": "user", "content": "hi"}]
TOOL = {"role": "tool", "content": "42"}
CHATML = (
    "{% for m in messages %}\n"
    "    {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def jinja(folder: Path, source: object) -> ChatTemplate:
    write_bpe(folder)
    edit(folder / "tokenizer_config.json", chat_template=source)
    return load_template(folder, load_tokenizer(folder))


def pangu(folder: Path, architecture: str = "PanguProMoEForCausalLM", **config: Any) -> ChatTemplate:
    write_spm(folder, **config)
    return load_template(folder, load_tokenizer(folder), architecture)


def test_pangu(tmp_path: Path) -> None:
    template = pangu(tmp_path)
    assert template.render(CHAT) == (
        "[unused9]系统：S[unused10][unused9]用户：U1[unused10][unused9]助手：A1[unused10]"
        "[unused9]用户：U2[unused10][unused9]助手："
    )
    assert template.render(USER, add_generation_prompt=False) == "[unused9]系统：[unused10][unused9]用户：hi[unused10]"
    assert template.render([*USER, TOOL]).endswith("[unused9]工具：42[unused10][unused9]助手：")
    spm = load_tokenizer(tmp_path)
    ids = spm.encode(template.render(USER), template.add_special)
    marks = [spm.bos_id, *map(spm.token_id, ("[unused9]", "[unused10]"))]
    assert ids[0] == spm.bos_id and [ids.count(mark or -1) for mark in marks] == [1, 3, 2]


PRO, EMBEDDED = "PanguProMoEForCausalLM", "PanguEmbeddedForCausalLM"
QUIET = {"role": "user", "content": "hi /no_think"}


@pytest.mark.parametrize(("architecture", "chat", "thinking", "written"), [
    (PRO, CHAT, "off", "用户：U2 /no_think[unused10][unused9]助手："),
    (PRO, CHAT, "on", "用户：U2[unused10][unused9]助手："),
    (PRO, CHAT, "auto", "用户：U2[unused10][unused9]助手："),
    (EMBEDDED, CHAT, "off", "用户：U2 /no_think[unused10][unused9]助手："),
    (EMBEDDED, CHAT, "on", "用户：U2[unused10][unused9]助手："),
    (EMBEDDED, CHAT, "auto", "用户：U2 /auto_think[unused10][unused9]助手："),
    # to the user's turn even before a tool's, and not doubled
    (PRO, [*USER, TOOL], "off", "用户：hi /no_think[unused10][unused9]工具：42[unused10]"),
    (EMBEDDED, [QUIET], "off", "用户：hi /no_think[unused10]"),
    (EMBEDDED, [QUIET], "auto", "用户：hi /no_think[unused10]"),
    (PRO, CHAT[:1], "off", "系统：S[unused10][unused9]助手："),
])  # fmt: skip
def test_pangu_switches(tmp_path: Path, architecture: str, chat: Any, thinking: Thinking, written: str) -> None:
    text = pangu(tmp_path, architecture).render(chat, thinking)
    assert text.count("_think") == written.count("_think") and written in text
    assert CHAT[3]["content"] == "U2" and (chat is not CHAT or "用户：U1[unused10]" in text)


def test_a_template_file_still_switches_wherever_it_lies(tmp_path: Path) -> None:
    source = "{% for m in messages %}<{{ m.role }}:{{ m.content }}>{% endfor %}"
    template = pangu(tmp_path, chat_template=source)
    assert template.render(USER, "off") == "<user:hi /no_think>"
    assert template.source == source and not template.add_special
    own = "{{ messages[-1].content }}{% if not enable_thinking %} /no_think{% endif %}"
    assert pangu(tmp_path, chat_template=own).render(USER, "off") == "hi /no_think"
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    assert jinja(tmp_path, CHATML).render(USER) == jinja(tmp_path, named).render(USER) == text
    (tmp_path / "chat_template.jinja").write_text("file 你", "utf-8")
    template = jinja(tmp_path, "config")
    assert template.render(USER) == template.source == "file 你"


@pytest.mark.parametrize("source, text", [
    ("{{ enable_thinking if enable_thinking is defined }}", ("False", "True", "")),
    ("{{ '</' if thinking is false else '<' }}", ("</", "<", "<")),
    ("{{ 'x' if tools is none and not documents else 'y' }}", ("x",) * 3),
    ("{{ {'a': '<é>'} | tojson }}", ('{"a": "<é>"}',) * 3),
    ("{% generation %}{{ messages[0].content }}{% endgeneration %}", ("hi",) * 3),
    ("{% for i in [0, 1] %}{{ i }}{% break %}{% endfor %}", ("0",) * 3),
    ("{{ strftime_now('%Y') | length }}{{ bos_token }}", ("4<|endoftext|>",) * 3),
])  # fmt: skip
def test_jinja_dialect(tmp_path: Path, source: str, text: tuple[str, str, str]) -> None:
    template = jinja(tmp_path, source)
    assert tuple(template.render(USER, thinking) for thinking in ("off", "on", "auto")) == text


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ strftime_now.__globals__.json }}",
    "{{ messages.__class__.__init__.__globals__ }}", "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'x'}) }}", "{% for i in range(10**9) %}{% endfor %}",
    "{% include '/etc/passwd' %}", "{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ nothing.at.all }}",
])  # fmt: skip
def test_jinja_sandbox_and_errors(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="^tokenizer_config.json: chat_template: "):
        jinja(tmp_path, source).render(USER)


def test_a_template_refuses_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat_template: no tools$"):
        jinja(tmp_path, CHATML).render([{"role": "tool", "content": ""}])


@pytest.mark.parametrize("source, message", [
    ("a\n{% if %}", "chat_template line 2: "),
    (7, "chat_template must be a string"),
    ([{"name": "rag", "template": ""}], "has no template named 'default'"),
    ([{"name": ["default"], "template": ""}], "has no template named 'default'"),
])  # fmt: skip
def test_broken_templates(tmp_path: Path, source: object, message: str) -> None:
    refused(message, jinja, tmp_path, source)


def test_a_template_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    refused("is not UTF-8 text", jinja, tmp_path, None)


def test_plain_template_with_one_warning(tmp_path: Path, logged: list[str]) -> None:
    template = jinja(tmp_path, None)
    assert template.render(CHAT) == "System: S\nUser: U1\nAssistant: A1\nUser: U2\nAssistant:"
    assert template.render(USER, add_generation_prompt=False) == "User: hi"
    assert len(logged) == 1 and "no chat template" in logged[0]


def test_every_kind_of_template_checks_the_messages(tmp_path: Path, logged: list[str]) -> None:
    kinds = pangu(tmp_path / "a"), jinja(tmp_path / "b", CHATML)
    assert logged == []
    for template in (*kinds, jinja(tmp_path / "c", None)):
        refused(r"messages\[0\] is a str", template.render, ["hi"], "off")
