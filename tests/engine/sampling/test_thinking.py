"""Thinking budgets as a function of the text: what is forced, what is lifted, what counts."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thoughts import THINK, Bound, told

from fastslow.engine.params import Loop
from fastslow.engine.sampling.repeats import RepeatFinder, Repeats
from fastslow.engine.sampling.thinking_limits import ThinkingLimits
from fastslow.engine.text.thought import TagTokens, ThoughtSplitter, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import LogitBoost, OneHot

OPEN, CLOSE = 3, 4  # <think>, </think> of the byte-level tokenizer
A, B, C = 60, 61, 62  # ordinary tokens
REASON = ThoughtTags("<reason>", "</reason>")  # several tokens each
PROMPT = (7, 8, 9)


def forced(rules: Sequence[object]) -> list[int | None]:
    return [rule.token if isinstance(rule, OneHot) else None for rule in rules]


def outcome(bound: Bound, tokenizer: Tokenizer, answer: Sequence[int]) -> tuple[int, str | None]:
    return bound.of(tokenizer, len(PROMPT)).outcome([*PROMPT, *answer])[:2]


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
    (Bound(90, loop=Loop(), opened=True), [*[A] * 40, [CLOSE]], (40, "loop")),
    (Bound(40, loop=Loop(), opened=True), [*[A] * 40, [CLOSE]], (40, "budget")),
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


def test_a_phrase_is_known_ahead_and_a_begun_tag_is_finished(bpe: Tokenizer) -> None:
    ends = [*bpe.encode(NOW, add_special=False), CLOSE]
    bound = Bound(2, closing=NOW, opened=True)
    assert bound.of(bpe, 3).ahead([*PROMPT, A]) == () and list(bound.of(bpe, 3).ahead([*PROMPT, A, B])) == ends
    assert list(bound.of(bpe, 3).ahead([*PROMPT, A, B, *ends[:2]])) == ends[2:]
    closed = bpe.encode("</reason>", add_special=False)
    bound = Bound(4, tags=REASON, closing="so", opened=True)
    answer = [A, B, *closed, C]
    assert forced(told(bound.of(bpe, 3), PROMPT, answer)) == [None] * 4 + [*closed[2:], None, None]
    assert outcome(bound, bpe, answer) == (2, "budget"), "a tag is no thought"
    assert outcome(Bound(4 + len(closed), tags=REASON, opened=True), bpe, answer) == (2, "model")


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
    lift = Bound(9, soft=9, tags=REASON, opened=True).of(bpe, 3).at([*PROMPT, A, *begun[:2]], [])
    assert isinstance(lift, LogitBoost) and lift.token == begun[2]


def test_a_text_that_went_on_otherwise_is_closed_where_it_stands(bpe: Tokenizer) -> None:
    """As after a switch to a mode with less of a budget."""
    bound = Bound(2, closing="so", opened=True)
    so = bpe.encode("so", add_special=False)
    thinking = bound.of(bpe, 3)
    assert thinking.at([*PROMPT, A, A, B, B], []) == OneHot(so[0])
    assert list(thinking.ahead([*PROMPT, A, A, B, B])) == [*so, CLOSE]


@given(
    parts=st.lists(st.sampled_from([OPEN, CLOSE, A, B, C, 20, 21, 22, 23]), max_size=30), cut=st.integers(0, 30),
    most=st.sampled_from([None, 0, 1, 4]), soft=st.integers(0, 3), early=st.booleans(), opened=st.booleans(),
    reason=st.booleans(),
)  # fmt: skip
def test_drafted_tokens_are_as_good_as_committed_ones(
    bpe: Tokenizer, parts: list[int], cut: int, most: int | None, soft: int, early: bool, opened: bool, reason: bool
) -> None:
    loop = Loop(times=2, least=16, stale=20) if early else None
    bound = Bound(most, soft, loop, "so", opened, REASON if reason else THINK)
    at_once = bound.of(bpe, 3)
    step_by_step = bound.of(bpe, 3)
    committed = [*PROMPT, *parts[:cut]]
    for i in range(len(parts[cut:]) + 1):
        drafted = parts[cut : cut + i]
        alone = bound.of(bpe, 3).at([*committed, *drafted], [])
        assert at_once.at(committed, drafted) == alone and step_by_step.at([*committed, *drafted], []) == alone


@given(
    pieces=st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", "ink>", "word ", "\n", "你"]), max_size=12),
    opened=st.booleans(),
)
def test_thoughts_are_where_the_splitter_sees_them(bpe: Tokenizer, pieces: list[str], opened: bool) -> None:
    text = "".join(pieces)
    ids = bpe.encode(text, add_special=False)
    still_open = Bound(opened=opened).of(bpe, 0).outcome(ids).open
    splitter = ThoughtSplitter(THINK, opened)
    splitter.push(text)
    splitter.finish()
    assert still_open == splitter._thinking


def judged(loop: Loop, tokens: Sequence[int]) -> str | None:
    finder, repeats = RepeatFinder(), Repeats()
    for place, token in enumerate(tokens):
        repeats = finder.after(repeats, token, place)
        if place % 3 == 0:
            repeats = finder.commit(repeats)
    return ThinkingLimits(loop=loop).judge(len(tokens), 1, repeats)


def test_circles() -> None:
    usual = Loop()
    for span in (1, 2, 7, 13, 64, 300):
        going_on = (list(range(100, 100 + span)) * 40)[: max(4 * span, 40)]
        assert judged(usual, [*range(20), *going_on]) == "loop", span
        assert judged(usual, [*range(20), *going_on[1:]]) is None or span == 300, "those are stale before"
    assert judged(usual, [5] * 39) is None and judged(usual, [5] * 40) == "loop"
    assert judged(Loop(times=2, least=16), [*range(30), *range(30)]) == "loop"
    assert judged(Loop(times=3), [*range(30), *range(30)]) is None
    shuffled = random.Random(0).choices(range(30), k=900)
    assert all(judged(usual, shuffled[:i]) is None for i in range(0, 900, 7))
    assert ThinkingLimits(5000).judge(900, 1, Repeats(899, 1, 899)) is None


def test_nothing_new_over_many_tokens_is_a_circle() -> None:
    """The order of what is said again differs, so that nothing comes several times in a row."""
    blocks = [list(range(20 * n, 20 * n + 20)) for n in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(4)]
    said = [x for a, b in pairs for x in (*blocks[a], *blocks[b])]  # all pairs that may come
    again = [x for n in (0, 2, 1, 3, 3, 0, 1, 2, 0) for x in blocks[n]]
    assert judged(Loop(times=9, stale=100), said[:160]) is None
    assert judged(Loop(times=9, stale=100), [*said, *again]) == "loop"
    assert judged(Loop(times=9, stale=None), [*said, *again]) is None


def test_a_warning_comes_once_where_a_sentence_ends(bpe: Tokenizer) -> None:
    ids = bpe.encode("Soon.", add_special=False)
    dot, line = bpe.encode(".", add_special=False)[0], bpe.encode("\n", add_special=False)[0]
    three = bpe.encode("3", add_special=False)[0]

    def rules(bound: Bound, answer: list[int]) -> list[int | None]:
        return forced(told(bound.of(bpe, len(PROMPT)), PROMPT, answer))

    bound = Bound(20, opened=True, warning="Soon.", warn_at=3)
    for end in (dot, line):
        asked = [A, dot, A, B, end, *ids, A, end]
        assert rules(bound, asked) == [None] * 5 + [*ids] + [None] * 3
        whole = bound.of(bpe, len(PROMPT)).outcome([*PROMPT, *asked])
        assert (whole.spent, whole.put_in) == (7 + len(ids), len(ids)), "it counts"
        due = bound.of(bpe, len(PROMPT))
        for near in (CLOSE, line, None):  # of which the last is not known
            likeliest = None if near is None else (lambda near=near: near)
            assert due.at([*PROMPT, *asked[:5]], [], likeliest) == (OneHot(ids[0]) if near is None else None)
        assert due.at([*PROMPT, *asked[:5]], [], lambda: A) == OneHot(ids[0])
        assert due.at([*PROMPT, *asked[:6]], [], lambda: CLOSE) == OneHot(ids[1]), "it was begun"
        assert due.ahead([*PROMPT, *asked[:6]]) == tuple(ids[1:])
        blank = Bound(20, opened=True, warning="\nSoon.", warn_at=3).of(bpe, len(PROMPT))
        said = [*PROMPT, A, dot, A, B, end, line]
        assert blank.at(said, [], lambda: A) == OneHot(ids[0]), "the warning's or the model's own"
        assert blank.at(said, [], lambda: CLOSE) is None, "of which it closes the thought next"
        again = bound.of(bpe, len(PROMPT))
        free = [*PROMPT, *asked[:5], A, end]
        assert not again.ahead(free[:-2]), "it may not come"
        assert again.at(free, [], lambda: A) == OneHot(ids[0]), "it went on: so at the next end"
    assert rules(bound, [A, B, three, dot, A]) == [None] * 6, "a point in a number ends nothing"
    late = Bound(2 + len(ids), opened=True, warning="Soon.", warn_at=2)
    assert rules(late, [A, dot, A]) == [None] * 4, "the budget has no room for it"
    tight = Bound(20, opened=True, warning="Soon.", warn_at=1, ends_at=4 + len(ids))
    assert ids[0] not in rules(tight, [A, B, dot, A]), "it must leave the answer its room"


def test_a_thought_is_closed_while_there_is_room_for_an_answer(bpe: Tokenizer) -> None:
    so = bpe.encode("so", add_special=False)
    bound = Bound(opened=True, closing="so", ends_at=8, room=10)
    first = 8 - len(so) - 1
    answer = [*[A] * first, *so, CLOSE]
    assert len(answer) == 8
    assert forced(told(bound.of(bpe, len(PROMPT)), PROMPT, answer)) == [*[None] * first, *so, CLOSE, None]
    assert outcome(bound, bpe, answer) == (first, "room")
    bare = Bound(opened=True, closing="so" * 9, ends_at=0, room=6)
    assert forced(told(bare.of(bpe, 3), PROMPT, [CLOSE])) == [CLOSE, None], "no room for the phrase"
    assert outcome(Bound(ends_at=5, room=9), bpe, [A] * 6 + [OPEN, CLOSE]) == (0, "room"), "closed as it opens"
    begun = bpe.encode("</reason>", add_special=False)
    tagged = Bound(opened=True, tags=REASON, closing="so", ends_at=len(so) + len(begun) + 3)
    text = [A, A, *begun[:2]]
    rule = tagged.of(bpe, 3).at([*PROMPT, *text], [])
    assert rule == OneHot(begun[2]), "the tag that was begun is finished while the phrase would fit"


def test_an_end_token_closes_a_thought_and_comes_after_an_answer(bpe: Tokenizer) -> None:
    ends = frozenset({2})
    thinking = Bound(ends=ends, opened=True, tags=REASON).of(bpe, 3)
    close, line = (bpe.encode(text, add_special=False) for text in ("</reason>", "\n"))
    assert thinking.no_end([*PROMPT, A], []) == (ends, close[0])
    assert thinking.no_end([*PROMPT, A], [close[0]]) == (ends, close[1])
    assert thinking.no_end([*PROMPT, A, *close], []) == (ends, None), "nothing was answered"
    assert thinking.no_end([*PROMPT, A, *close], [*line]) == (ends, None)
    assert thinking.no_end([*PROMPT, A, *close], [*line, A]) == (frozenset(), None)
    assert Bound(ends=ends).of(bpe, 3).no_end([*PROMPT], []) == (frozenset(), None)
    few = Bound(ends_at=9, room=10).of(bpe, 3)
    assert few.no_end([*PROMPT, *[A] * 7], []) == (frozenset(), None)
    assert few.no_end([*PROMPT, *[A] * 7], [A]) == (frozenset({OPEN}), None)
    *begun, last = bpe.encode("<reason>", add_special=False)
    split = Bound(ends_at=9, room=10, tags=REASON).of(bpe, 3)
    assert last in split.no_end([*PROMPT, A, *begun], [])[0]
    assert split.no_end([*PROMPT, *[A] * 9], [begun[0]]) == (frozenset(), None)
    assert Bound(opened=True).of(bpe, 3).no_end([*PROMPT, A], []) == (frozenset(), None)


def test_no_thought_opens_that_would_be_closed_at_once(bpe: Tokenizer) -> None:
    """Else its tags use up what is kept for the answer."""

    def barred(bound: Bound, answer: list[int]) -> frozenset[int]:
        return bound.of(bpe, len(PROMPT)).no_end([*PROMPT, *answer], [])[0]

    used = Bound(2, opened=True, ends_at=90, room=99)
    assert barred(used, [A, B, CLOSE, A]) == {OPEN, CLOSE}
    assert not barred(used, [A, CLOSE, A]), "it may think one token more"
    late = Bound(opened=True, ends_at=6, room=20)
    assert barred(late, [A, CLOSE, *[B] * 3]) == {OPEN, CLOSE} and not barred(late, [A, CLOSE, B])
    assert not barred(Bound(0, ends_at=90, room=99), [A]), "a first one may be asked for"
    assert not barred(Bound(2, opened=True), [A, B, CLOSE, A]), "no room is kept"


def test_a_text_that_began_inside_a_thought_counts_what_its_model_thought(bpe: Tokenizer) -> None:
    so = bpe.encode("so", add_special=False)
    thinking = Bound(3, closing="so").of(bpe, len(PROMPT))
    text = [*PROMPT, A, B, A, B, CLOSE, C, OPEN, A, A, A, *so, CLOSE, C]
    assert thinking.outcome(text, strayed=True) == (7, "budget", False, len(so) + 1)
    assert thinking.outcome(text[:-1], strayed=True).spent == 7, "before what was read"
    assert thinking.outcome([*PROMPT, A, CLOSE, C], strayed=True) == (1, "model", False, 0)
    tagged = Bound(3, tags=REASON).of(bpe, len(PROMPT))
    assert tagged.outcome([*PROMPT, A, B, *bpe.encode("</reason>", add_special=False), C], strayed=True).spent == 2


def test_what_was_closed_from_outside_is_read_again_at_its_place(bpe: Tokenizer) -> None:
    """In the middle of a phrase, a warning, a thought; what a later engine makes of it is the same."""
    so, hm = bpe.encode("so long.", add_special=False), bpe.encode("Hm.", add_special=False)
    dot = bpe.encode(".", add_special=False)[0]
    bound = Bound(20, closing="so long.", warning="Hm.", warn_at=2, opened=True)
    warned = [A, dot, *hm[:1]]
    for first, then, by in (
        ([A] * 20 + so[:2], [*so[2:], CLOSE, C], "budget"),
        (warned, [*so, CLOSE, C], "caller"),
        ([A], [*so, CLOSE, C], "caller"),
    ):
        thinking, again = (bound.of(bpe, len(PROMPT)) for _ in range(2))
        assert thinking.close([*PROMPT, *first]) and thinking.stopped == len(first)
        assert list(thinking.ahead([*PROMPT, *first])) == then[:-1]
        again.close_at(len(first), "caller")
        assert again.outcome([*PROMPT, *first, *then]) == thinking.outcome([*PROMPT, *first, *then])
        assert again.outcome([*PROMPT, *first, *then]).ended == by
        assert again.outcome([*PROMPT, *first]).ended is None, "read from its beginning"
    waiting = bound.of(bpe, len(PROMPT))
    assert waiting.close(PROMPT, unread=warned) and waiting.stopped == 3, "which it is yet to read"
    assert waiting.ahead([*PROMPT, A]) == () and list(waiting.ahead([*PROMPT, *warned])) == [*so, CLOSE]


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
    assert tags.spell(OPEN) == b"<think>" and tags.spell(2) == b"" and TagTokens(bpe, REASON).spell(OPEN) == b""
