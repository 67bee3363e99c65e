"""Thinking budgets as a function of the text: what is forced, what is lifted, what counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thoughts import THINK, Bound, told

from fastslow.engine.sampling.thinking import Thought
from fastslow.engine.text.thought import TagTokens, ThoughtSplitter, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import LogitBoost, OneHot
from fastslow.policies.thinking_budget import ThinkingBudget

OPEN, CLOSE = 3, 4  # <think>, </think> of the byte-level tokenizer
A, B, C = 60, 61, 62  # ordinary tokens
REASON = ThoughtTags("<reason>", "</reason>")  # several tokens each
PROMPT = (7, 8, 9)


def forced(rules: Sequence[object]) -> list[int | None]:
    return [rule.token if isinstance(rule, OneHot) else None for rule in rules]


def outcome(bound: Bound, tokenizer: Tokenizer, answer: Sequence[int]) -> tuple[int, str | None]:
    spent, ended, _ = bound.of(tokenizer, len(PROMPT)).outcome([*PROMPT, *answer])
    return spent, ended


NOW = "\nI must answer now.\n"
WHOLE = "\nTime is up.\n</think>\n\nThe answer is"  # with the tag and the beginning of the answer
# A budget, an answer whose parts in lists are forced, and how much of it was thought and why it ended.
ANSWERS: list[tuple[Bound, list[Any], tuple[int, str | None]]] = [
    *((Bound(n, opened=True), [*[A] * n, [CLOSE], B, B], (n, "budget")) for n in (0, 1, 3)),
    *((Bound(n), [A, OPEN, *[A] * n, [CLOSE], B, B], (n, "budget")) for n in (0, 1, 3)),
    (Bound(3, opened=True, closing="done"), [A, A, CLOSE, B, B, B], (2, "model")),
    (Bound(3, opened=True, closing="done"), [A, A], (2, None)),
    (Bound(3), [A, A], (0, None)),
    (Bound(2, opened=True, closing=NOW), [A, B, [NOW, CLOSE], C, OPEN, [CLOSE]], (2, "budget")),
    (Bound(1, closing=WHOLE, opened=True), [A, [WHOLE], B], (1, "budget")),
    (Bound(3), [OPEN, A, A, CLOSE, B, OPEN, A, [CLOSE], B, OPEN, [CLOSE]], (3, "budget")),
    (Bound(2, tags=REASON, closing="s"), ["<reason>", A, B, ["s", "</reason>"], C], (2, "budget")),
    (Bound(9), [*"<think>", A, A, A, CLOSE], (3, "model")),  # not the special token
    (Bound(90, early_exit=True, opened=True), [*[A] * 40, [CLOSE]], (40, "loop")),
    (Bound(40, early_exit=True, opened=True), [*[A] * 40, [CLOSE]], (40, "budget")),
]


@pytest.mark.parametrize(("bound", "parts", "expected"), ANSWERS)
def test_what_is_forced_and_what_counts(
    bpe: Tokenizer, bound: Bound, parts: list[Any], expected: tuple[int, str | None]
) -> None:
    answer: list[int] = []
    rules: list[int | None] = []
    for part in parts:
        for some in part if isinstance(part, list) else [part]:
            ids = [some] if isinstance(some, int) else bpe.encode(some, add_special=False)
            answer += ids
            rules += ids if isinstance(part, list) else [None] * len(ids)
    assert forced(told(bound.of(bpe, len(PROMPT)), PROMPT, answer)) == [*rules, None]
    assert outcome(bound, bpe, answer) == expected


def test_a_phrase_is_known_ahead(bpe: Tokenizer) -> None:
    ends = [*bpe.encode(NOW, add_special=False), CLOSE]
    bound = Bound(2, closing=NOW, opened=True)
    assert bound.of(bpe, 3).ahead([*PROMPT, A]) == ()
    assert list(bound.of(bpe, 3).ahead([*PROMPT, A, B])) == ends
    assert list(bound.of(bpe, 3).ahead([*PROMPT, A, B, *ends[:2]])) == ends[2:]


def test_a_tag_that_the_model_has_begun_is_finished(bpe: Tokenizer) -> None:
    closed = bpe.encode("</reason>", add_special=False)
    bound = Bound(4, tags=REASON, closing="so", opened=True)
    answer = [A, B, *closed, C]
    rules = told(bound.of(bpe, 3), PROMPT, answer)
    assert forced(rules) == [None] * 4 + [*closed[2:], None, None]
    assert outcome(bound, bpe, answer) == (2, "budget"), "a tag is no thought"
    free = Bound(4 + len(closed), tags=REASON, opened=True)
    assert outcome(free, bpe, answer) == (2, "model")


def test_a_soft_budget_lifts_the_closing_tag_towards_its_end(bpe: Tokenizer) -> None:
    bound = Bound(6, soft=4, opened=True)
    rules = told(bound.of(bpe, 3), PROMPT, [A] * 6)
    assert rules[:2] == [None, None] and rules[6] == OneHot(CLOSE)
    lifts = [rule for rule in rules[2:6] if isinstance(rule, LogitBoost)]
    assert [lift.token for lift in lifts] == [CLOSE] * 4
    steps = [lift.by for lift in lifts]
    assert steps == sorted(steps) and 0 < steps[0] < steps[-1] == 12.0
    thinking = bound.of(bpe, 3)
    assert thinking.lifts([*PROMPT, A]), "a step may add as many tokens as a draft has"
    assert not Bound(6, opened=True).of(bpe, 3).lifts([*PROMPT, A])
    far = Bound(900, soft=4, opened=True).of(bpe, 3)
    assert not far.lifts([*PROMPT, A]) and far.lifts([*PROMPT, *[A] * 840])
    assert not thinking.lifts([*PROMPT, *[A] * 6]), "all is forced or free after this"
    begun = bpe.encode("</reason>", add_special=False)
    tagged = Bound(9, soft=9, tags=REASON, opened=True).of(bpe, 3)
    lift = tagged.at([*PROMPT, A, *begun[:2]], [])
    assert isinstance(lift, LogitBoost) and lift.token == begun[2]


def test_a_text_that_went_on_otherwise_is_closed_where_it_stands(bpe: Tokenizer) -> None:
    """As after a switch to a mode with less of a budget."""
    bound = Bound(2, closing="so", opened=True)
    so = bpe.encode("so", add_special=False)
    thinking = bound.of(bpe, 3)
    assert thinking.at([*PROMPT, A, A, B, B], []) == OneHot(so[0])
    assert list(thinking.ahead([*PROMPT, A, A, B, B])) == [*so, CLOSE]


@given(
    parts=st.lists(st.sampled_from([OPEN, CLOSE, A, B, C, 20, 21, 22, 23]), max_size=30),
    cut=st.integers(0, 30),
    most=st.sampled_from([None, 0, 1, 4]),
    soft=st.integers(0, 3),
    early=st.booleans(),
    opened=st.booleans(),
    reason=st.booleans(),
)
def test_drafted_tokens_are_as_good_as_committed_ones(
    bpe: Tokenizer,
    parts: list[int],
    cut: int,
    most: int | None,
    soft: int,
    early: bool,
    opened: bool,
    reason: bool,
) -> None:
    bound = Bound(most, soft, early, "so", opened, REASON if reason else THINK)
    at_once = bound.of(bpe, 3)
    step_by_step = bound.of(bpe, 3)
    committed = [*PROMPT, *parts[:cut]]
    for i in range(len(parts[cut:]) + 1):
        drafted = parts[cut : cut + i]
        alone = bound.of(bpe, 3).at([*committed, *drafted], [])
        assert at_once.at(committed, drafted) == alone
        assert step_by_step.at([*committed, *drafted], []) == alone


@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", "word ", "\n", "你"]),
        max_size=12,
    ),
    opened=st.booleans(),
)
def test_thoughts_are_where_the_splitter_sees_them(
    bpe: Tokenizer, pieces: list[str], opened: bool
) -> None:
    text = "".join(pieces)
    ids = bpe.encode(text, add_special=False)
    *_, still_open = Bound(opened=opened).of(bpe, 0).outcome(ids)
    splitter = ThoughtSplitter(THINK, opened)
    splitter.push(text)
    splitter.finish()
    assert still_open == splitter._thinking


def test_loops() -> None:
    policy = ThinkingBudget(None, early_exit=True)

    def judge(tokens: Sequence[int]) -> str | None:
        return policy.judge(Thought(len(tokens), tuple(tokens)[-policy.reads :]))

    for span in (1, 2, 7, 13, 64):
        circle = list(range(100, 100 + span))
        size = max(4 * span, 40)
        going_on = (circle * 40)[:size]
        assert judge([*range(20), *going_on]) == "loop", span
        assert judge([*range(20), *going_on[1:]]) is None, span
    assert judge([5] * 39) is None and judge([5] * 40) == "loop"
    assert judge(list(range(65)) * 9) is None, "wider than is looked at"
    shuffled = random.Random(0).choices(range(30), k=900)
    assert all(judge(shuffled[:i]) is None for i in range(0, 900, 7))
    assert ThinkingBudget(5000).judge(Thought(900, tuple([5] * 900))) is None


def test_a_thought_settles_on_a_line_that_comes_the_third_time(bpe: Tokenizer) -> None:
    bound = Bound(early_exit=True, opened=True)

    def ends(text: str) -> str | None:
        ids = bpe.encode(text, add_special=False)
        rule = bound.of(bpe, 0).at(ids, [])
        assert rule in (None, OneHot(CLOSE))
        told = bound.of(bpe, 0).outcome([*ids, CLOSE])[1] if rule else None
        return told

    line = "So the answer is 42."
    assert ends(f"{line}\nWait.\n{line}\nOr 41? No.\n  {line} \n") == "settled"
    assert ends(f"{line}\nWait.\n{line}\nOr 41? No.\n{line}") is None, "the line is not over"
    assert ends(f"{line}\n{line}\n") is None
    assert ends(f"{line}\n{line}\n{line}\nAnd then") is None, "only where the line ends"
    assert ends("---\n" * 3) is None, "too short to say anything"
    assert Bound(opened=True).of(bpe, 0).at(bpe.encode(f"{line}\n" * 5), []) is None


def test_a_sentencepiece_ending_has_no_space_of_the_tokenizers_own(spm: Tokenizer) -> None:
    tags = TagTokens(spm, ThoughtTags("[unused16]", "[unused17]"))
    assert tags.close_ids == (spm.token_id("[unused17]"),)
    for phrase in ("The answer", " The answer", "\nThe answer is: ", "回答。"):
        ids = tags.closing(phrase)
        assert b"".join(map(tags.spell, ids)).decode() == f"{phrase}[unused17]"
    spaced = TagTokens(spm, ThoughtTags("<r>", "</r>"))
    assert b"".join(map(spaced.spell, spaced.close_ids)) == b"</r>"


def test_marks_that_the_text_does_not_show_have_no_bytes(bpe: Tokenizer) -> None:
    tags = TagTokens(bpe, THINK)
    assert tags.spell(OPEN) == b"<think>" and tags.spell(2) == b""
    assert TagTokens(bpe, REASON).spell(OPEN) == b""
