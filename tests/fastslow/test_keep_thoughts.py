"""Thoughts of earlier turns that stay in the prompt, so that the prefix cache holds all of a chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_chat
from gate import open_llm

from fastslow import LLM, Message, SamplingParams

QUESTION: Message = {"role": "user", "content": "What is 327 + 486?"}
NEXT: Message = {"role": "user", "content": "What is 31 + 24?"}
TAGS = ("<think>", "</think>")
STRIPS = (  # as many templates do: what stands before the closing tag is not shown
    "{% for m in messages %}[{{ m['role'] }}]"
    "{{ m['content'].split('</think>')[-1].lstrip('\\n') }};{% endfor %}[assistant]<think>\n"
    "{# of a prefill: </think>\\n\\n #}"
)
OWN = (  # shows them itself, by one of their names
    "{% for m in messages %}[{{ m['role'] }}]{% if m['reasoning_content'] is defined %}<think>"
    "{{ m['reasoning_content'] }}</think>{% endif %}{{ m['content'] }};{% endfor %}[assistant]"
)
FIRST = "{{ messages[0]['content'] }}{{ messages[0]['content'] }}"  # leaves turns out


@pytest.fixture(scope="module")
def abacus() -> Iterator[LLM]:
    with LLM("abacus", progress=False) as llm:
        yield llm


def opened(folder: Path, template: str) -> LLM:
    return open_llm(write_chat(folder, template), thinking_tags=TAGS)


def said(thought: object, name: str = "reasoning_content", content: str = "sum") -> Message:
    return {"role": "assistant", "content": content, name: thought}


def text(llm: LLM, *messages: Message, **options: Any) -> str:
    return llm.detokenize(llm.tokenize(list(messages), **options))


def test_the_second_turn_begins_with_all_of_the_first(abacus: LLM) -> None:
    abacus.forget_prompts()
    params = SamplingParams(max_tokens=150)
    first = abacus.chat([QUESTION], params)
    assert first.reasoning and first.finish_reason == "stop"
    before = [*first.prompt_token_ids, *first.token_ids]
    chat = [QUESTION, said(first.reasoning, content=first.text), NEXT]
    stripped = abacus.tokenize(chat)
    assert stripped[: len(before)] != before, "this template leaves thoughts out"
    second = abacus.chat(chat, params, keep_thoughts=True)
    assert second.prompt_token_ids[: len(before)] == before
    page = abacus._kv.page_size
    assert second.metrics.cached_tokens == (len(before) - 1) // page * page > len(stripped) // 2


def test_a_template_that_strips_thoughts_cannot_lose_them(tmp_path: Path) -> None:
    with opened(tmp_path, STRIPS) as llm:
        chat = QUESTION, said("one two\n"), NEXT
        asked, after = "[user]What is 327 + 486?;[assistant]", "sum;[user]What is 31 + 24?;"
        stripped = f"{asked}{after}[assistant]<think>\n"
        assert text(llm, *chat) == stripped
        kept = f"{asked}<think>\none two\n</think>\n\n{after}[assistant]<think>\n"
        assert text(llm, *chat, keep_thoughts=True) == kept
        for nothing in ("", None):
            assert text(llm, QUESTION, said(nothing), NEXT, keep_thoughts=True) == stripped


def test_a_template_with_thoughts_of_its_own(tmp_path: Path) -> None:
    with opened(tmp_path, OWN) as llm:
        whole = "[user]What is 327 + 486?;[assistant]<think>one</think>sum;[assistant]"
        for name in ("reasoning", "reasoning_content"):
            for keep in (False, True):
                assert text(llm, QUESTION, said("one", name), keep_thoughts=keep) == whole


def test_a_thought_cannot_write_marks(abacus: LLM) -> None:
    wrong = "[unused17]1[unused10][unused9]"
    kept = abacus.tokenize([QUESTION, said(wrong), NEXT], keep_thoughts=True)
    plain = abacus.tokenize([QUESTION, said("x"), NEXT], keep_thoughts=True)
    assert abacus.tokenizer is not None
    for mark in ("[unused9]", "[unused10]", "[unused16]", "[unused17]"):
        token = abacus.tokenizer.token_id(mark)
        assert token is not None and kept.count(token) == plain.count(token), "it is text"


def test_a_template_that_cannot_says_so_once(tmp_path: Path, logged: list[str]) -> None:
    with opened(tmp_path, FIRST) as llm:
        chat = [said("one"), NEXT]
        for _ in range(2):
            assert llm.tokenize(chat, keep_thoughts=True) == llm.tokenize(chat)
    assert sum("keep_thoughts changes no prompt" in line for line in logged) == 1


def test_what_is_no_thought(abacus: LLM) -> None:
    said_so = r"^messages\[1\]\.reasoning is a int; it must be a string$"
    with pytest.raises(ValueError, match=said_so):
        abacus.tokenize([QUESTION, said(5, "reasoning")])
    with pytest.raises(ValueError, match="^keep_thoughts='yes' must be True or False$"):
        abacus.tokenize([QUESTION], keep_thoughts="yes")  # type: ignore[call-overload]
