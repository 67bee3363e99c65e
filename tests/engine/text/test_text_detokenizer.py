"""Text as it comes equals text decoded at once, for any ids and any split."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastslow.engine.text.vocabulary import Detokenizer, Tokenizer, hold_back

TEXTS = ["Hello there", "你好，世界。", "🙂 👩‍👩‍👧 e\u0301 ﷽", "   spaces", "\ufffd real", "\x00\n"]


@pytest.fixture(scope="module", params=["bpe", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of one byte each, whatever the bytes are."""
    table = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    for i in range(tokenizer.vocab_size):  # the byte pieces themselves, where there are any
        if (tokenizer.piece(i) or "").startswith("<0x"):
            table[tokenizer.token_bytes(i)] = i
    return [table[bytes([byte])] for byte in data]


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    anything = st.lists(st.integers(-1, tokenizer.vocab_size), max_size=20)
    broken = st.binary(max_size=12).map(lambda data: byte_ids(tokenizer, data))
    text = st.sampled_from(TEXTS).map(tokenizer.encode)
    return st.lists(anything | broken | text, max_size=4).map(lambda p: list(chain(*p)))


@given(data=st.data())
def test_any_split_joins_to_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(ids_of(tokenizer))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    detokenizer = Detokenizer(tokenizer)
    pushed = [detokenizer.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)])]
    assert "".join(pushed) + detokenizer.finish() == tokenizer.decode(ids)


def test_characters_come_with_their_last_byte_and_broken_bytes_at_once(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    ids = byte_ids(tokenizer, "🙂".encode())
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "🙂"]
    assert detokenizer.push(byte_ids(tokenizer, b"\xff\x80\xe4\xbd")) == "\ufffd\ufffd"
    assert detokenizer.push(byte_ids(tokenizer, b"A\xe4")) == "\ufffdA"
    assert (detokenizer.finish(), detokenizer.finish()) == ("\ufffd", "")


def test_text_that_continues_keeps_its_space(spm: Tokenizer) -> None:
    prompt, answer = spm.encode("Hello"), spm.encode("there", add_special=False)
    assert Detokenizer(spm).push(answer) == "there" and Detokenizer(spm, after=prompt).push(answer) == " there"


def test_the_state_stays_small(tokenizer: Tokenizer) -> None:
    detokenizer, text = Detokenizer(tokenizer), ""
    for token in byte_ids(tokenizer, bytes(range(256)) * 40):  # mostly broken: nothing may pile up
        text += detokenizer.push([token])
        assert len(detokenizer._pending) < 4
    assert len(text) > 5000


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_hold_back_is_the_longest_beginning(text: str, stops: list[str]) -> None:
    ends = [k for k in range(len(text) + 1) for stop in stops if len(stop) > k
            if text.endswith(stop[:k])]  # fmt: skip
    assert hold_back(text, stops) == max(ends, default=0)
