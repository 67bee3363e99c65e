"""The end of an answer, and what a stream may tell before it is sure."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslow.engine.params import SamplingParams
from fastslow.engine.sampling.stop import Stopper, StopStrings
from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer, hold_back

END = 2  # <|im_end|>


def bytes_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of one byte each: every stop string then spans tokens."""
    single = {tokenizer.token_bytes(i): i for i in range(5, 261)}
    return [single[bytes([b])] for b in text.encode()]


def stopper(tokenizer: Tokenizer | None, room: int = 1000, **fields: Any) -> Stopper:
    params = SamplingParams(max_tokens=room, **fields)
    return Stopper(params, frozenset({END}), room, Detokenizer(tokenizer) if tokenizer else None)


def told(s: Stopper, runs: Sequence[Sequence[int]]) -> list[str]:
    pieces = []
    for run in runs:
        kept = s.scan(run)
        pieces.append(s.news())
        if s.reason is not None:
            break
        assert kept == len(run)
    return pieces


# Wishes, an answer ($ is the end token), how many of its tokens count, its text, why it ended and by what.
ENDS: list[tuple[dict[str, Any], str, int, str, str | None, str | int | None]] = [
    ({"stop": "STOP"}, "one two STOP three", 12, "one two ", "stop", "STOP"),
    ({"stop": "!"}, "ab!cd", 3, "ab", "stop", "!"),
    ({}, "ab$!cd", 3, "ab", "stop", END),
    ({"room": 4}, "ab!cd", 4, "ab!c", "length", None),
    ({}, "ab!cd", 5, "ab!cd", None, None),
    ({"room": 5, "stop": "##"}, "abc##", 5, "abc", "stop", "##"),  # wins over the length
    ({"stop": ["abcd", "bc"]}, "xxabcd", 5, "xxa", "stop", "bc"),  # the first one complete
    ({"stop": ["abc", "bc", "c"]}, "xxabc", 5, "xx", "stop", "abc"),  # the first to begin
    ({"stop": ["ab", "abc"]}, "xxab", 4, "xx", "stop", "ab"),
    ({"stop": ["aab"]}, "aaab", 4, "a", "stop", "aab"),  # a false start inside it
    ({"stop": ["abac"]}, "ababac", 6, "ab", "stop", "abac"),
    ({"stop": ["\n\n"]}, "x\n\ny", 3, "x", "stop", "\n\n"),
    ({"stop": ["語"]}, "日本語です", 9, "日本", "stop", "語"),
    ({"min_tokens": 3, "stop": "!"}, "!$xx!x", 5, "!xx", "stop", "!"),
    ({"min_tokens": 2}, "$$$x", 3, "", "stop", END),
    ({"min_tokens": 3, "stop": "abc"}, "abcd", 3, "", "stop", "abc"),  # begun before
]


@pytest.mark.parametrize(("wishes", "said", "count", "text", "reason", "matched"), ENDS)
def test_where_an_answer_ends(
    bpe: Tokenizer,
    wishes: dict[str, Any],
    said: str,
    count: int,
    text: str,
    reason: str | None,
    matched: str | int | None,
) -> None:
    tokens = [token for part in [bytes_of(bpe, part) for part in said.split("$")] for token in (*part, END)][:-1]
    assert stopper(bpe, **wishes).scan(tokens) == count
    for run in (1, 2, 3, 100):  # every stop string spans tokens
        s = stopper(bpe, **wishes)
        pieces = told(s, [tokens[i : i + run] for i in range(0, len(tokens), run)])
        assert (s.text, s.reason, s.matched) == (text, reason, matched) and "".join(pieces) == text


def test_what_is_half_at_the_end_is_told_in_the_end(bpe: Tokenizer) -> None:
    s = stopper(bpe, room=4, stop="##")
    assert told(s, [[t] for t in bytes_of(bpe, "abc#")]) == ["a", "b", "c", "#"]
    assert (s.text, s.reason, s.matched) == ("abc#", "length", None)
    s = stopper(bpe, stop="##")
    assert told(s, [bytes_of(bpe, "abc#"), [END]]) == ["abc", "#"]
    assert (s.reason, s.matched) == ("stop", END)
    longer = next(i for i in range(261, 320) if bpe.token_bytes(i).decode().strip().isalpha())
    piece = bpe.token_bytes(longer).decode()
    assert len(piece) > 1
    s = stopper(bpe, stop=piece[1])
    assert s.scan([longer]) == 1 and (s.text, s.matched) == (piece[0], piece[1])
    tokens = bytes_of(bpe, "aé日")
    s = stopper(bpe, room=5)
    assert told(s, [[t] for t in tokens]) == ["a", "", "é", "", "\ufffd"] and s.text == "aé\ufffd"
    s = stopper(bpe)
    assert told(s, [tokens[:2], [END]]) == ["a", "\ufffd"]


def test_an_end_from_outside_tells_what_was_held_and_without_a_tokenizer_nothing(bpe: Tokenizer) -> None:
    s = stopper(bpe, stop="##")
    s.scan(bytes_of(bpe, "ab#"))
    assert s.news() == "ab"
    s.finish("cancelled")
    assert (s.news(), s.text, s.reason) == ("#", "ab#", "cancelled")
    s.finish("error")
    assert s.reason == "cancelled", "the first end counts"
    s = stopper(None, room=3)
    assert s.scan([7, 8, 9, 10]) == 3 and (s.text, s.news(), s.reason) == ("", "", "length")
    assert stopper(None).scan([7, END, 9]) == 2


@given(data=st.data())
def test_however_it_is_cut_the_answer_is_the_same(bpe: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text("ab日", max_size=12))
    stops = data.draw(st.lists(st.text("ab日", min_size=1, max_size=3), max_size=3))
    least = data.draw(st.integers(0, 4))
    tokens = [*bytes_of(bpe, text), END]
    whole = stopper(bpe, stop=stops, min_tokens=least)
    kept = whole.scan(tokens)
    cut = stopper(bpe, stop=stops, min_tokens=least)
    pieces, taken = [], 0
    while cut.reason is None and taken < len(tokens):
        taken += cut.scan(tokens[taken : taken + data.draw(st.integers(1, 4))])
        pieces.append(cut.news())
    if whole.reason is None:  # min_tokens held off the end token
        whole.finish("cancelled")
        cut.finish("cancelled")
        pieces.append(cut.news())
    assert taken == kept and (cut.text, cut.reason, cut.matched) == (whole.text, whole.reason, whole.matched)
    assert "".join(pieces) == whole.text
    if not least and whole.reason == "stop" and isinstance(whole.matched, str):
        assert text.startswith(whole.text + whole.matched) and not any(stop in whole.text for stop in stops)


@given(data=st.data())
def test_strings_are_found_as_by_a_plain_search(data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=6))
    text = data.draw(st.text("ab", max_size=20))
    strings, state = StopStrings(stops), 0
    for end, letter in enumerate(text, 1):
        state, seen = strings.step(state, letter), text[:end]
        whole = max((s for s in stops if seen.endswith(s)), key=len, default=None)
        assert strings.found.get(state) == whole and strings.held[state] == hold_back(seen, stops)


@pytest.mark.parametrize("key", [True, 1.0])
def test_a_bias_is_for_token_ids(key: Any) -> None:
    with pytest.raises(ValueError, match="is no token id$"):
        SamplingParams(logit_bias={key: 1.0})
