"""gpt-oss's channels: reasoning and answer with headers cut anywhere, and budgets among them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from chat_templates import GPT_OSS, write_marked
from chat_templates import HARMONY as MARKS
from hypothesis import given
from hypothesis import strategies as st
from thoughts import Bound, told

from fastslow.engine.text.thought import (
    HARMONY,
    ChannelSplitter,
    ThoughtSplitter,
    ThoughtTags,
    splitter,
)
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer
from fastslow.engine.types import OneHot

ANALYSIS, COMMENTARY, FINAL = (
    f"<|channel|>{name}<|message|>" for name in ("analysis", "commentary", "final")
)
NEXT = "<|end|><|start|>assistant"
CLOSE = NEXT + FINAL
CALL = "<|channel|>commentary to=functions.look <|constrain|>json<|message|>"

CASES = [
    ("", ("", "")),
    (f"{ANALYSIS}why{CLOSE}so", ("why", "so")),
    (f"{ANALYSIS}why\n{CLOSE}\nso\n", ("why\n", "\nso\n")),
    (f"{FINAL}so", ("", "so")),
    (f"{ANALYSIS}cut off", ("cut off", "")),
    (f"{ANALYSIS}cut off{NEXT}<|chan", ("cut off", "")),
    (f"{ANALYSIS}cut <|en", ("cut <|en", "")),
    (f"{ANALYSIS}a{NEXT}{ANALYSIS}b{CLOSE}so", ("a\n\nb", "so")),
    (f"{ANALYSIS}a{NEXT}{COMMENTARY}I look.{CLOSE}so", ("a\n\nI look.", "so")),
    (f"{COMMENTARY}I look.{CLOSE}so", ("I look.", "so")),
    (f'{ANALYSIS}a{NEXT}{CALL}{{"x": 1}}', ('a\n\n{"x": 1}', "")),
    (f"{ANALYSIS}a<|end|><|start|>assistant to=functions.f{COMMENTARY}{{}}", ("a\n\n{}", "")),
    (f"{ANALYSIS}a{NEXT}<|channel|>final <|constrain|>json<|message|>{{}}", ("a", "{}")),
    (f"{FINAL}so{NEXT}{ANALYSIS}more{CLOSE}that", ("more", "sothat")),
    ("a model that was never told", ("", "a model that was never told")),
    ("<|start|>assistant<|message|>bare", ("", "bare")),
    (f"{ANALYSIS}1 <| 2 <|end of", ("1 <| 2 <|end of", "")),
    (f"{ANALYSIS}<|message|>twice", ("twice", "")),
]


def split(pieces: list[str], opened: bool = False, calls: bool = False) -> tuple[str, str]:
    whole = ChannelSplitter(opened, calls)
    parts = [*map(whole.push, pieces), whole.finish()]
    assert whole.finish() == ("", "")
    return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)


BEGUN = "<|start|>assistant" + CALL
CALLED = [
    (f"{CALL}{{}}", ("", f"{BEGUN}{{}}")),
    (f"{ANALYSIS}a{NEXT}{CALL}{{}}<|call|>", ("a", f"{BEGUN}{{}}<|call|>")),
    (
        f"{ANALYSIS}a{NEXT}{COMMENTARY}I look.{NEXT}{CALL}{{}}<|call|>",
        ("a\n\nI look.", f"{BEGUN}{{}}<|call|>"),
    ),
    (
        f"{ANALYSIS}a<|end|><|start|>assistant to=functions.f{COMMENTARY}{{}}{CLOSE}so",
        ("a", f"<|start|>assistant to=functions.f{COMMENTARY}{{}}<|end|>so"),
    ),
    (f"{ANALYSIS}a{NEXT}{COMMENTARY}to=functions.f", ("a\n\nto=functions.f", "")),
    (f"{ANALYSIS}a{NEXT}<|channel|>analysis to=python<|message|>1+1", ("a\n\n1+1", "")),
    (f"{FINAL}so<|call|>", ("", "so")),
]


@pytest.mark.parametrize(("text", "expected"), CALLED)
def test_calls_are_answer_where_tools_are_offered(text: str, expected: tuple[str, str]) -> None:
    assert split([text], calls=True) == split(list(text), calls=True) == expected
    assert BEGUN not in split([text])[1]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_split(text: str, expected: tuple[str, str]) -> None:
    assert split([text]) == expected
    assert split(list(text)) == expected


def test_an_answer_that_begins_inside_the_analysis() -> None:
    assert split(list(f"why{CLOSE}so"), opened=True) == ("why", "so")
    assert HARMONY.opened_by(f"<|start|>assistant{ANALYSIS}")
    assert not HARMONY.opened_by("<|start|>assistant")


PIECES = ["analysis", "final", "commentary", "assistant", " to=f", "<|", "|>", "\n", "wörd", "<|e"]


@given(
    parts=st.lists(st.sampled_from([*MARKS, *PIECES]), max_size=14),
    opened=st.booleans(),
    cuts=st.lists(st.integers(0, 120), max_size=8),
)
def test_cuts_make_no_difference(parts: list[str], opened: bool, cuts: list[int]) -> None:
    text = "".join(parts)
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    whole = split([text], opened)
    assert split([text[a:b] for a, b in pairwise(ends)], opened) == whole
    assert split(list(text), opened) == whole
    assert not any(mark in part for mark in MARKS[:4] for part in whole)


def test_text_is_held_back_only_while_it_may_become_a_mark() -> None:
    whole = ChannelSplitter()
    assert whole.push(f"{ANALYSIS}why <") == ("why ", "")
    assert whole.push("b> <|") == ("<b> ", "")
    assert whole.push("end|><|start|>assistant") == ("", "")
    assert whole.push("<|channel|>final<|message|>so") == ("", "so")


def test_which_splitter() -> None:
    assert type(splitter(HARMONY, False)) is ChannelSplitter
    assert type(splitter(ThoughtTags(*HARMONY), False)) is ChannelSplitter  # a caller's
    assert type(splitter(ThoughtTags("<think>", "</think>"), False)) is ThoughtSplitter
    assert type(splitter(None, False)) is ThoughtSplitter


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("harmony")
    write_marked(folder, GPT_OSS, MARKS, "<|return|>")
    return load_tokenizer(folder)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=False)


def test_marks_are_shown_to_the_splitter_and_the_end_is_not(bpe: Tokenizer) -> None:
    shown = Detokenizer(bpe, keep=HARMONY.ids(bpe))
    text = f"{ANALYSIS}why{CLOSE}so<|return|><|im_end|>"
    pieces = [shown.push([token]) for token in ids(bpe, text)]
    assert "".join(pieces) == f"{ANALYSIS}why{CLOSE}so"
    assert split(pieces) == ("why", "so")
    assert [bpe.piece(token) for token in bpe.eos_ids] == ["<|return|>"]


@pytest.mark.parametrize(
    ("most", "opened", "phrase"),
    [(0, False, ""), (1, True, ""), (3, False, "\nSo:"), (9, True, "\nSo:")],
)
def test_a_budget_ends_the_analysis_and_begins_the_answer(
    bpe: Tokenizer, most: int, opened: bool, phrase: str
) -> None:
    opens = [] if opened else ids(bpe, ANALYSIS)
    ends = [*ids(bpe, phrase), *ids(bpe, CLOSE)]
    bound = Bound(most, closing=phrase, opened=opened, tags=HARMONY)
    thought = (ids(bpe, "abcdefghi") * 9)[:most]
    answer = [*opens, *thought, *ends, *ids(bpe, "so it is")]
    rules = told(bound.of(bpe, 0), [], answer)
    first = len(opens) + most
    assert [rule.token for rule in rules if isinstance(rule, OneHot)] == ends
    assert all(isinstance(rule, OneHot) for rule in rules[first : first + len(ends)])
    thinking = bound.of(bpe, 0)
    assert thinking.outcome(answer) == (most, "budget", False)
    assert list(bound.of(bpe, 0).ahead(answer[:first])) == ends, "drafted without a drafter"


def test_commentary_counts_among_the_thought(bpe: Tokenizer) -> None:
    between = ids(bpe, f"{NEXT}{COMMENTARY}")
    said = [*ids(bpe, ANALYSIS), *ids(bpe, "ab"), *between, *ids(bpe, "cd")]
    free = Bound(99, tags=HARMONY).of(bpe, 0)
    assert free.outcome([*said, *ids(bpe, CLOSE)]) == (2 + len(between) + 2, "model", False)
    assert Bound(99, tags=HARMONY).of(bpe, 0).outcome(ids(bpe, f"{FINAL}so")) == (0, None, False)
