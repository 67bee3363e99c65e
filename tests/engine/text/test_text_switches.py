"""Thinking switches of the families' templates: how they are found, and what each mode then writes."""

from pathlib import Path
from typing import Any

import pytest
from chat_templates import HARMONY, MISTRAL_EFFORT, TEMPLATES, write_marked
from tokenizers_tiny import write_spm

from fastslow.engine.params import Thinking
from fastslow.engine.text.chat_parts import Marks, chat_parts
from fastslow.engine.text.switches import ThinkingSwitch
from fastslow.engine.text.templates import PLAIN, ChatTemplate, load_template
from fastslow.engine.text.thought import HARMONY as CHANNELS
from fastslow.engine.text.thought import ThoughtTags, tags_for
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.serve.engines.local import KEEPING

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
SAID = {"role": "assistant", "content": "well"}
CHATS = ([USER], [SYSTEM, USER], [USER, SAID, USER], [SYSTEM, USER, SAID, USER])
MODES: tuple[Thinking, ...] = "off", "auto", "on"


def jinja(source: str) -> ChatTemplate:
    return ChatTemplate(source, "template", "<s>", "</s>")


FLAG = ThinkingSwitch("flag", ("enable_thinking",))
BOTH = ThinkingSwitch("flag", ("enable_thinking", "thinking"))
EFFORT = ThinkingSwitch("effort", ("reasoning_effort",), ("low", "medium", "high"))
NONE, WORD = ThinkingSwitch(), ThinkingSwitch("word", ("/no_think",))
BUDGET = ThinkingSwitch("budget", ("thinking_budget",), budget="thinking_budget")
SWITCHED = ["seed-oss", "qwen3", "qwen3.5", "smollm3", "glm", "deepseek", "gpt-oss", "mistral-effort", "nemotron"]
SWITCHED += ["openpangu"]
LOWER, UPPER = ("low", "medium"), ("medium", "high")
NO_OR_HIGH = EFFORT._replace(levels=("none", "high"))


@pytest.mark.parametrize(("source", "switch"), [
    *((TEMPLATES[name], FLAG) for name in ("qwen3", "qwen3.5", "smollm3", "glm")),
    *((TEMPLATES[name], ThinkingSwitch("flag", ("thinking",))) for name in ("deepseek", "openpangu")),
    (TEMPLATES["gpt-oss"], EFFORT),
    (TEMPLATES["mistral-effort"], NO_OR_HIGH),
    (TEMPLATES["nemotron"], WORD), (TEMPLATES["seed-oss"], BUDGET),
    *((source, NONE) for name, source in TEMPLATES.items() if name not in SWITCHED),
    ("{% if false %}{{ enable_thinking }}{% endif %}", NONE),
    ("{{ messages[0].thinking }}{# enable_thinking #}", NONE),
    ("{% if not (thinking or enable_thinking) %}no{% endif %}", BOTH),
    ("{{ raise_exception('always thinks') if enable_thinking is false }}", NONE),
    ("{{ thinking }}{{ enable_thinking }}", BOTH),
    ("{{ strftime_now('%f') }}{{ 1 if thinking else 2 }}", BOTH._replace(names=("thinking",))),
    # "none" is for templates that name it
    ("{{ 'deep' if reasoning_effort == 'high' else 'flat' }}", EFFORT._replace(levels=UPPER)),
    ("{{ 1 if reasoning_effort in ['low', 'minimal'] else 2 }}", EFFORT._replace(levels=LOWER)),
    ("{{ reasoning_effort | upper if reasoning_effort }}", EFFORT),
    ("{{ messages[0].content }} try /no_think", NONE),
    ("{{ messages[0].content | replace('/no_think', '') }}", NONE),
    ("{{ 'quiet' if '/nothink' in messages[0].content }}", WORD._replace(names=("/nothink",))),
    ("{{ raise_exception('no') }}{{ enable_thinking }}", NONE),
    ("{% for i in range(10**9) %}{{ thinking }}{% endfor %}", NONE),
])  # fmt: skip
def test_what_is_a_switch_and_what_is_not(source: str, switch: ThinkingSwitch) -> None:
    assert jinja(source).switch == switch


@pytest.mark.parametrize(("switch", "said"), [
    (FLAG, "enable_thinking: true or false"), (NO_OR_HIGH, "reasoning_effort: none, high"),
    (WORD, "/no_think in the user message"), (NONE, "none"),
])  # fmt: skip
def test_a_switch_says_what_it_is(switch: ThinkingSwitch, said: str) -> None:
    assert str(switch) == said


TURN = "user: hi\n<turn>assistant: <think>"
Q = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("name", "parts"), [
    ("qwen3", (Q + "<think>\n\n</think>\n\n", Q, Q)),
    ("qwen3.5", (Q + "<think>\n\n</think>\n\n", Q + "<think>\n", Q + "<think>\n")),
    ("deepseek", ("<|Assistant|></think>", "<|Assistant|></think>", "<|Assistant|><think>")),
    ("openpangu", ("assistant\n</think>", "assistant\n<think>", "assistant\n<think>")),
    ("nemotron", (TURN + "</think>", TURN + "\n", TURN + "\n")),
    ("gpt-oss", ("Reasoning: low\n", "Reasoning: medium\n", "Reasoning: high\n")),
    ("mistral-effort", ('effort": "none"', 'effort": "none"', 'effort": "high"')),
    ("smollm3", ("Mode: /no_think\n", "Mode: /think\n", "Mode: /think\n")),
    ("seed-oss", ("assistant\n<seed:think>none</seed:think>", "assistant\n", "assistant\n")),
])  # fmt: skip
def test_what_off_auto_and_on_write(tmp_path: Path, name: str, parts: tuple[str, ...]) -> None:
    write_marked(tmp_path, TEMPLATES[name])
    template = load_template(tmp_path, load_tokenizer(tmp_path))
    for chat in ([USER], [SYSTEM, USER]):
        texts = [template.render(chat, thinking) for thinking in MODES]
        assert all(part in text for part, text in zip(parts, texts))
        assert [text == texts[1] for text in texts] == [part == parts[1] for part in parts]


def test_a_level_above_none_is_still_a_thought() -> None:
    assert jinja(TEMPLATES["gpt-oss"]).switch.lessens and not jinja(MISTRAL_EFFORT).switch.lessens
    assert not FLAG.lessens and not ThinkingSwitch().lessens


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thinking", MODES)
def test_prompts_are_those_of_transformers(name: str, thinking: Thinking) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = TEMPLATES[name]
    template = jinja(source)
    for chat in CHATS:
        if name == "deepseek" and SAID in chat:
            continue
        given: dict[str, Any] = {**template.switch.variables(thinking)}
        theirs, _ = render_jinja_template(
            conversations=[chat], chat_template=source, add_generation_prompt=True, bos_token="<s>",
            eos_token="</s>", **given,
        )  # fmt: skip
        assert template.render(chat, thinking) == theirs[0]


def test_variables_of_the_callers_own_win() -> None:
    template = jinja(TEMPLATES["gpt-oss"])
    for thinking in MODES:
        assert "Reasoning: medium\n" in template.render([USER], thinking, variables={"reasoning_effort": "medium"})
    assert '{"name": "look"}' in template.render([USER], variables={"tools": {"a": {"name": "look"}}})


@pytest.mark.parametrize(("template", "given", "said"), [
    (jinja(TEMPLATES["qwen3"]), "reasoning_effort", "it reads enable_thinking$"),
    (jinja(TEMPLATES["qwen3"]), "messages", "reads no variable 'messages'"),
    (jinja(TEMPLATES["gpt-oss"]), "strftime_now", "reads no variable 'strftime_now'"),
    (ChatTemplate(PLAIN), "enable_thinking", "it reads none$"),
], ids=["qwen3", "messages", "function", "plain"])  # fmt: skip
def test_variables_that_are_not_read_are_refused(template: Any, given: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^chat_template_kwargs: .*{said}"):
        template.render([USER], variables={given: True})


def test_earlier_thoughts_are_kept_where_a_variable_says_so() -> None:
    chat = [USER, {**SAID, "content": "<think>why</think>well"}, USER]
    for name, wish in KEEPING.items():
        template = jinja(TEMPLATES["lfm2"].replace("not keep_past_thinking", name if not wish else f"not {name}"))
        kept = [template.render(chat, variables={name: value}) for value in (wish, not wish)]
        assert ["why" in text for text in kept] == [True, False] and name in template.names


def test_marks_in_a_variable_are_text(tmp_path: Path) -> None:
    write_marked(tmp_path, "{{ note }}<|im_start|>{{ messages[0].content }}")
    tokenizer = load_tokenizer(tmp_path)
    template = load_template(tmp_path, tokenizer)
    given = {"note": "a<|im_end|>b"}
    parts = chat_parts(template, [USER], "auto", Marks(tokenizer), given)
    assert "".join(parts) == "a<|im_end|>b<|im_start|>hi"
    ids = tokenizer.encode_parts(parts, False)
    assert tokenizer.token_id("<|im_end|>") not in ids and tokenizer.token_id("<|im_start|>") in ids
    assert chat_parts(template, [USER], "auto", None, given) == ["".join(parts)]


THINK = ThoughtTags("<think>", "</think>")
BRACKETS = ThoughtTags("[THINK]", "[/THINK]")


@pytest.mark.parametrize(("name", "marks", "tags"), [
    *((name, (), THINK) for name in ("qwen3", "qwen3-2507-thinking", "qwen3-2507-instruct")),
    ("gpt-oss", HARMONY, CHANNELS),
    ("gpt-oss", HARMONY[1:], THINK),  # of a vocabulary that lacks a mark
    ("llama", HARMONY, CHANNELS),
])  # fmt: skip
def test_tags_of_a_vocabulary(tmp_path: Path, name: str, marks: tuple[str, ...], tags: ThoughtTags) -> None:
    write_marked(tmp_path, TEMPLATES[name], marks)
    assert tags_for(load_tokenizer(tmp_path), jinja(TEMPLATES[name])) == tags


@pytest.mark.parametrize(("source", "tags"), [
    (TEMPLATES["magistral"], BRACKETS), (TEMPLATES["seed"], ThoughtTags("<seed:think>", "</seed:think>")),
    ("say <Reasoning>why</Reasoning> first", ThoughtTags("<Reasoning>", "</Reasoning>")), (TEMPLATES["qwen3"], THINK),
    (TEMPLATES["llama"], None), ("</thought> alone", None), ("<b>bold</b> and <answer>so</answer>", None),
])  # fmt: skip
def test_tags_that_only_the_template_has(tmp_path: Path, source: str, tags: ThoughtTags | None) -> None:
    write_spm(tmp_path, 600)
    tokenizer = load_tokenizer(tmp_path)
    pangu = ThoughtTags("[unused16]", "[unused17]")
    assert tags_for(tokenizer, jinja(source)) == pangu, "tokens are surer than words"
    hidden: Any = Hidden(tokenizer, set(pangu))
    assert tags_for(hidden, jinja(source)) == tags


class Hidden:
    """A tokenizer without some pieces."""

    def __init__(self, tokenizer: Any, pieces: set[str]) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces

    def token_id(self, piece: str) -> int | None:
        return None if piece in self._pieces else self._tokenizer.token_id(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_tags_that_are_special_tokens_of_another_name(tmp_path: Path) -> None:
    write_spm(tmp_path, 600, additional_special_tokens=["<think_of>", "</think_of>"])
    (tmp_path / "added_tokens.json").write_text('{"<think_of>": 700, "</think_of>": 701}', "utf-8")
    hidden: Any = Hidden(load_tokenizer(tmp_path), {"[unused16]"})
    assert tags_for(hidden, None) == ThoughtTags("<think_of>", "</think_of>")
