"""Thought and answer, with the tags cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslow.engine.text.thought import ThoughtSplitter, ThoughtTags, tags_for
from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer

TAGS = ThoughtTags("<think>", "</think>")

CASES = [
    ("", False, ("", "")),
    ("just an answer", False, ("", "just an answer")),
    ("<think>a</think>b", False, ("a", "b")),
    ("<think>a\n</think>\n\nb\n", False, ("a\n", "b\n")),
    ("<think></think>\n\n", False, ("", "")),
    ("a</think>\nb", True, ("a", "b")),
    ("<think>a</think>b", True, ("a", "b")),
    ("a</think>\nb", False, ("", "a\nb")),
    ("<think>never closed", False, ("never closed", "")),
    ("never closed", True, ("never closed", "")),
    ("<think>a</think>b<think>c</think>d", False, ("ac", "bd")),
    ("<think>a<think>b</think>c</think>d", False, ("ab", "cd")),
    ("1 <2 </thin", False, ("", "1 <2 </thin")),
    ("<think>x</think", False, ("x</think", "")),
    ("<<think>a<</think>", False, ("a<", "<")),
]


def split(pieces: list[str], tags: ThoughtTags | None, opened: bool) -> tuple[str, str]:
    splitter = ThoughtSplitter(tags, opened)
    parts = [*map(splitter.push, pieces), splitter.finish()]
    assert splitter.finish() == ("", "")
    return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize("text, opened, expected", CASES)
def test_split(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split([text], TAGS, opened) == expected
    assert split(list(text), TAGS, opened) == expected


@given(
    parts=st.lists(st.sampled_from([*TAGS, "<", "</th", "ink>", "\n", "word", "🙂"]), max_size=10),
    opened=st.booleans(),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_cuts_make_no_difference_and_nothing_is_lost(
    parts: list[str], opened: bool, cuts: list[int]
) -> None:
    text = "".join(parts)
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(ends)]
    whole = split([text], TAGS, opened)
    assert split(pieces, TAGS, opened) == whole
    bare = text.replace(TAGS.open, "").replace(TAGS.close, "") if "\n" not in text else None
    assert bare is None or len(bare) <= sum(map(len, whole))
    assert split(pieces, None, opened) == ("", text)


def test_text_is_held_back_only_while_it_may_become_a_tag() -> None:
    splitter = ThoughtSplitter(TAGS)
    assert splitter.push("a<thi") == ("", "a")
    assert splitter.push("s is") == ("", "<this is")
    assert splitter.push("<think>why</") == ("why", "")
    assert splitter.push("think>\n") == ("", "")
    assert splitter.push("\nso") == ("", "so")
    assert splitter.finish() == ("", "")


def test_opened_by() -> None:
    assert TAGS.opened_by("<|im_start|>assistant\n<think>\n")
    assert not TAGS.opened_by("<think>\n\n</think>\n\n")
    assert not TAGS.opened_by("")
    assert ThoughtTags("<r>\n", "</r>").opened_by("a <r>\n")


def test_tags_without_an_opening_one() -> None:
    tags = ThoughtTags("", "</think>")
    assert split(list("a</think>\n\nb"), tags, True) == ("a", "b")
    assert split(["a</think>b"], tags, False) == ("", "ab")
    assert not tags.opened_by("") and not tags.opened_by("a")


def test_a_prompt_that_opened_a_thought_is_shut() -> None:
    assert TAGS.shut("user: hi\n<think>\n") == "user: hi\n<think>\n\n</think>\n\n"
    assert TAGS.shut("[a]<think>") == "[a]<think></think>"
    assert not TAGS.opened_by(TAGS.shut("<think>"))


@pytest.mark.parametrize(
    ("text", "strayed"),
    [
        ("a</think>b", True),
        ("</think>", True),
        ("a</think>b<think>c", True),
        ("<think>a</think>b", False),
        ("a", False),
        ("a<think>b", False),
    ],
)
def test_an_answer_that_began_inside_a_thought(text: str, strayed: bool) -> None:
    assert TAGS.strayed(text) == strayed


def test_special_tags_through_detokenizer_and_splitter(spm: Tokenizer) -> None:
    tags = tags_for(spm)
    assert tags is not None
    detokenizer = Detokenizer(spm, keep=tags.ids(spm))
    splitter = ThoughtSplitter(tags)
    ids = spm.encode("[unused16]hm[unused17]\n\nso[unused10]", add_special=False)
    parts = [splitter.push(detokenizer.push([token])) for token in ids]
    parts += [splitter.push(detokenizer.finish()), splitter.finish()]
    assert "".join(reasoning for reasoning, _ in parts) == "hm"
    assert "".join(answer for _, answer in parts) == "so"


@pytest.mark.parametrize("tags", [["a", "b" * 257], ["\u0000", "\ud800"]])
def test_tags_are_short_unicode(tags: list[str]) -> None:
    with pytest.raises(ValueError, match="^here=.* valid Unicode, of at most 256 ") as caught:
        ThoughtTags.read(tags, "here")
    assert not isinstance(caught.value, UnicodeError) and len(str(caught.value)) < 200
