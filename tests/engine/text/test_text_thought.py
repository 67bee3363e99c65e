"""Thought and answer, with tags and headers of channels cut anywhere; and budgets among channels."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from chat_templates import GPT_OSS, write_marked
from chat_templates import HARMONY as MARKS
from hypothesis import given
from hypothesis import strategies as st
from thoughts import THINK, Bound, told

from fastslow.engine.text.thought import (
    HARMONY,
    ChannelSplitter,
    ThoughtSplitter,
    ThoughtTags,
    answer_tags,
    splitter,
    tags_for,
)
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer
from fastslow.engine.types import OneHot

ANALYSIS, COMMENTARY, FINAL = (f"<|channel|>{name}<|message|>" for name in ("analysis", "commentary", "final"))
NEXT = "<|end|><|start|>assistant"
CLOSE = NEXT + FINAL
CALL = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
BEGUN = "<|start|>assistant" + CALL
LOOK, NAMED = f"{ANALYSIS}a{NEXT}{COMMENTARY}I look.", f"{NEXT} to=functions.f{COMMENTARY}{{}}"
JSON = "<|channel|>final <|constrain|>json<|message|>{}"

tagged, opened = partial(ThoughtSplitter, THINK), partial(ThoughtSplitter, THINK, True)
endless = partial(ThoughtSplitter, ThoughtTags("", "</think>"))  # tags without an opening one
calling = partial(ChannelSplitter, calls=True)  # tools are offered: calls are answer
CASES: list[tuple[Callable[[], Any], str, str, str]] = [
    (tagged, "", "", ""), (tagged, "just an answer", "", "just an answer"), (tagged, "<think>a</think>b", "a", "b"),
    (tagged, "<think>a\n</think>\n\nb\n", "a\n", "b\n"), (tagged, "<think></think>\n\n", "", ""),
    (opened, "a</think>\nb", "a", "b"), (opened, "<think>a</think>b", "a", "b"), (tagged, "a</think>\nb", "", "a\nb"),
    (tagged, "<think>never closed", "never closed", ""), (opened, "never closed", "never closed", ""),
    (tagged, "<think>a</think>b<think>c</think>d", "ac", "bd"),
    (tagged, "<think>a<think>b</think>c</think>d", "ab", "cd"), (tagged, "1 <2 </thin", "", "1 <2 </thin"),
    (tagged, "<think>x</think", "x</think", ""), (tagged, "<<think>a<</think>", "a<", "<"),
    (partial(endless, True), "a</think>\n\nb", "a", "b"), (endless, "a</think>b", "", "ab"),
    (ChannelSplitter, "", "", ""), (ChannelSplitter, f"{ANALYSIS}why{CLOSE}so", "why", "so"),
    (partial(ChannelSplitter, True), f"why{CLOSE}so", "why", "so"),
    (ChannelSplitter, f"{ANALYSIS}why\n{CLOSE}\nso\n", "why\n", "\nso\n"), (ChannelSplitter, f"{FINAL}so", "", "so"),
    (ChannelSplitter, f"{ANALYSIS}cut off", "cut off", ""),
    (ChannelSplitter, f"{ANALYSIS}cut off{NEXT}<|chan", "cut off", ""),
    (ChannelSplitter, f"{ANALYSIS}cut <|en", "cut <|en", ""),
    (ChannelSplitter, f"{ANALYSIS}a{NEXT}{ANALYSIS}b{CLOSE}so", "a\n\nb", "so"),
    (ChannelSplitter, f"{LOOK}{CLOSE}so", "a\n\nI look.", "so"),
    (ChannelSplitter, f"{COMMENTARY}I look.{CLOSE}so", "I look.", "so"),
    (ChannelSplitter, f'{ANALYSIS}a{NEXT}{CALL}{{"x": 1}}', 'a\n\n{"x": 1}', ""),
    (ChannelSplitter, f"{ANALYSIS}a{NAMED}", "a\n\n{}", ""), (ChannelSplitter, f"{ANALYSIS}a{NEXT}{JSON}", "a", "{}"),
    (ChannelSplitter, f"{FINAL}so{NEXT}{ANALYSIS}more{CLOSE}that", "more", "sothat"),
    (ChannelSplitter, "a model that was never told", "", "a model that was never told"),
    (ChannelSplitter, "<|start|>assistant<|message|>bare", "", "bare"),
    (ChannelSplitter, f"{ANALYSIS}1 <| 2 <|end of", "1 <| 2 <|end of", ""),
    (ChannelSplitter, f"{ANALYSIS}<|message|>twice", "twice", ""), (calling, f"{CALL}{{}}", "", f"{BEGUN}{{}}"),
    (calling, f"{ANALYSIS}a{NEXT}{CALL}{{}}<|call|>", "a", f"{BEGUN}{{}}<|call|>"),
    (calling, f"{LOOK}{NEXT}{CALL}{{}}<|call|>", "a\n\nI look.", f"{BEGUN}{{}}<|call|>"),
    (calling, f"{ANALYSIS}a{NAMED}{CLOSE}so", "a", f"{NAMED.removeprefix('<|end|>')}<|end|>so"),
    (calling, f"{ANALYSIS}a{NEXT}{COMMENTARY}to=functions.f", "a\n\nto=functions.f", ""),
    (calling, f"{ANALYSIS}a{NEXT}<|channel|>analysis to=python<|message|>1+1", "a\n\n1+1", ""),
    (calling, f"{FINAL}so<|call|>", "", "so"),
]  # fmt: skip


ANSWERED = answer_tags("a <answer> b </answer>")
wrapped = partial(ThoughtSplitter, THINK, around=ANSWERED)
CASES += [
    (wrapped, "<think>\na\n</think>\n<answer>\nso\n</answer>", "\na\n", "so"), (wrapped, "<answer>so</answer>\n\n", "", "so"),
    (wrapped, "so <answer>x</answer>", "", "so <answer>x</answer>"), (wrapped, "x</answer>", "", "x</answer>"),
    (wrapped, "<think><answer></think>a\n<answer>", "<answer>", "a\n<answer>"), (wrapped, "<answer>\na", "", "a"),
    (wrapped, "<answer>a\n</answer>\n<answer>", "", "a<answer>"),
]  # fmt: skip


def split(made: Callable[[], Any], pieces: list[str]) -> tuple[str, ...]:
    whole = made()
    parts = [*map(whole.push, pieces), whole.finish()]
    assert whole.finish() == ("", "")
    return tuple("".join(side) for side in zip(*parts))


@pytest.mark.parametrize(("made", "text", "thought", "said"), CASES)
def test_split(made: Callable[[], Any], text: str, thought: str, said: str) -> None:
    assert split(made, [text]) == split(made, list(text)) == (thought, said)


WORDS = ["analysis", "final", "commentary", "assistant", " to=f", "<|", "|>", "\n", "wörd", "<|e"]
PIECES = {
    ThoughtSplitter: [*THINK, *ANSWERED, "<", "</th", "ink>", "\n", "word", "🙂"],
    ChannelSplitter: [*MARKS, *WORDS],
}


@pytest.mark.parametrize("kind", PIECES)
@given(data=st.data(), opened=st.booleans(), cuts=st.lists(st.integers(0, 120), max_size=8))
def test_cuts_make_no_difference(kind: Any, data: st.DataObject, opened: bool, cuts: list[int]) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES[kind]), max_size=14)))
    made = partial(kind, opened) if kind is ChannelSplitter else partial(kind, THINK, opened, around=ANSWERED)
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(ends)]
    whole = split(made, [text])
    assert split(made, pieces) == split(made, list(text)) == whole
    assert split(partial(ThoughtSplitter, None), pieces) == ("", text), "without tags all is answer"
    if kind is ChannelSplitter:
        assert not any(mark in part for mark in MARKS[:4] for part in whole)
    elif "\n" not in text:
        for tag in (*THINK, *ANSWERED):
            text = text.replace(tag, "")
        assert len(text) <= sum(map(len, whole)), "nothing is lost"


TAG_STREAM = {
    "a<thi": ("", "a"), "s is": ("", "<this is"), "<think>why</": ("why", ""), "think>\n": ("", ""),
    "\nso": ("", "so"),
}  # fmt: skip
CHANNEL_STREAM = {
    f"{ANALYSIS}why <": ("why ", ""), "b> <|": ("<b> ", ""), "end|><|start|>assistant": ("", ""),
    FINAL + "so": ("", "so"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("whole", "stream"), [(tagged(), TAG_STREAM), (ChannelSplitter(), CHANNEL_STREAM)], ids=["tags", "channels"]
)
def test_text_is_held_back_only_while_it_may_become_a_mark(whole: Any, stream: dict[str, tuple[str, str]]) -> None:
    assert [whole.push(text) for text in stream] == [*stream.values()] and whole.finish() == ("", "")


def test_a_thought_is_opened_by_a_prompt_and_shut_again() -> None:
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<think>\n\n</think>\n\n") and not THINK.opened_by("")
    assert ThoughtTags("<r>\n", "</r>").opened_by("a <r>\n") and not ThoughtTags("", "</think>").opened_by("a")
    assert HARMONY.opened_by(f"<|start|>assistant{ANALYSIS}") and not HARMONY.opened_by("<|start|>assistant")
    assert THINK.shut("user: hi\n<think>\n") == "user: hi\n<think>\n\n</think>\n\n"
    assert THINK.shut("[a]<think>") == "[a]<think></think>" and not THINK.opened_by(THINK.shut("<think>"))
    assert all(map(THINK.strayed, ("a</think>b", "</think>", "a</think>b<think>c")))
    assert not any(map(THINK.strayed, ("<think>a</think>b", "a", "a<think>b")))


@pytest.mark.parametrize("tags", [["a", "b" * 257], ["\u0000", "\ud800"]])
def test_tags_are_short_unicode(tags: list[str]) -> None:
    with pytest.raises(ValueError, match="^here=.* valid Unicode, of at most 256 ") as caught:
        ThoughtTags.read(tags, "here")
    assert not isinstance(caught.value, UnicodeError) and len(str(caught.value)) < 200


def test_which_splitter() -> None:
    assert type(splitter(HARMONY, False)) is ChannelSplitter
    assert type(splitter(ThoughtTags(*HARMONY), False)) is ChannelSplitter  # a caller's
    assert type(splitter(THINK, False)) is type(splitter(None, False)) is ThoughtSplitter


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("harmony")
    write_marked(folder, GPT_OSS, MARKS, "<|return|>")
    return load_tokenizer(folder)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False)


def test_marks_are_shown_to_the_splitter_and_the_end_is_not(spm: Tokenizer, harmony: Tokenizer) -> None:
    channels = f"{ANALYSIS}hm{CLOSE}so<|return|><|im_end|>"
    for tokenizer, text in ((spm, "[unused16]hm[unused17]\n\nso[unused10]"), (harmony, channels)):
        tags = tags_for(tokenizer)
        assert tags is not None
        shown = Detokenizer(tokenizer, keep=tags.ids(tokenizer))
        pieces = [*(shown.push([token]) for token in ids(tokenizer, text)), shown.finish()]
        assert split(partial(splitter, tags, False), pieces) == ("hm", "so")
    assert [harmony.piece(token) for token in harmony.eos_ids] == ["<|return|>"]


@pytest.mark.parametrize(
    ("most", "opened", "phrase"), [(0, False, ""), (1, True, ""), (3, False, "\nSo:"), (9, True, "\nSo:")]
)
def test_a_budget_ends_the_analysis_and_begins_the_answer(
    harmony: Tokenizer, most: int, opened: bool, phrase: str
) -> None:
    opens = [] if opened else ids(harmony, ANALYSIS)
    ends = [*ids(harmony, phrase), *ids(harmony, CLOSE)]
    bound = Bound(most, closing=phrase, opened=opened, tags=HARMONY)
    answer = [*opens, *(ids(harmony, "abcdefghi") * 9)[:most], *ends, *ids(harmony, "so it is")]
    rules = told(bound.of(harmony, 0), [], answer)
    first = len(opens) + most
    assert [rule.token for rule in rules if isinstance(rule, OneHot)] == ends
    assert all(isinstance(rule, OneHot) for rule in rules[first : first + len(ends)])
    assert bound.of(harmony, 0).outcome(answer)[:3] == (most, "budget", False)
    assert list(bound.of(harmony, 0).ahead(answer[:first])) == ends, "drafted without a drafter"


def test_commentary_counts_among_the_thought(harmony: Tokenizer) -> None:
    between = ids(harmony, f"{NEXT}{COMMENTARY}")
    said = [*ids(harmony, ANALYSIS), *ids(harmony, "ab"), *between, *ids(harmony, "cd")]
    free = Bound(99, tags=HARMONY)
    assert free.of(harmony, 0).outcome([*said, *ids(harmony, CLOSE)])[:3] == (2 + len(between) + 2, "model", False)
    assert free.of(harmony, 0).outcome(ids(harmony, f"{FINAL}so"))[:3] == (0, None, False)
