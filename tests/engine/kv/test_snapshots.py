"""Snapshots of running states: which turns of which chats begin with one, without a model."""

from __future__ import annotations

from random import Random

import pytest
import torch

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.layout import RowState, RunningState, StateLayout

ROW, STATE = RowState(1, 1, 1), RunningState(((1,),), ((1,),))
PAGE = 16
OPENING = [3, 7]  # <|im_start|>assistant, and in thinking chats what opens a thought
THOUGHT = [8, 9]


def made(snapshots: int, places: int = 1, *, running: bool = True) -> KVCache:
    kind = {"page_size": PAGE, "dtype": torch.float32, "device": "cpu", "places": places}
    layout = StateLayout((STATE if running else ROW, ROW))
    return KVCache(layout=layout, pages=8000, snapshots=snapshots, **kind)  # type: ignore[arg-type]


def ask(kv: KVCache, prompt: list[int], answer: list[int], request: int = 0) -> int:
    """Read a prompt in chunks and answer one token at a time; returns how many tokens of the prompt were read."""
    text = [*prompt]
    valid = cached = kv.open(request, text, None, len(text) - 1)
    assert kv.reserve(request, len(text) + len(answer))
    while valid < len(text):
        stop = min(valid + 512, len(text))
        kv.running(request, range(valid, stop), stop - (stop == len(text)))
        kv.advance(request, stop, text)
        valid = stop
    for token in answer:
        if len(text) > len(prompt):
            kv.running(request, range(len(text) - 1, len(text)), len(text) - 1)
            kv.advance(request, len(text), text)
        text.append(token)
    kv.close(request)
    kv.check_integrity()
    return len(prompt) - cached


class Chat:
    """One whose template leaves old thoughts out, if it thinks. size: tokens of a turn."""

    def __init__(self, seed: int, system: list[int], size: int, *, thinks: bool) -> None:
        self._random, self._size, self.thinks = Random(seed), size, thinks
        self.past, self.old = [*system], 0  # tokens that the next turn has in common with this one

    def _text(self, most: int) -> list[int]:
        return [self._random.randrange(10, 10**6) for _ in range(self._random.randint(most // 4, most))]

    def turn(self, kv: KVCache) -> tuple[int, int]:
        """Tokens of the prompt that were read, and those that are new."""
        asked = [*self.past, 3, 4, *self._text(self._size // 2), 5, 6]
        prompt = asked + OPENING + THOUGHT * self.thinks
        said, thought = [*self._text(self._size), 5], self._text(self._size) * self.thinks
        read, new = ask(kv, prompt, thought + said), len(prompt) - self.old
        self.past = [*asked, *OPENING, *said, 6]
        self.old = len(asked + OPENING) if self.thinks else len(asked + OPENING + said)
        return read, new


def turns(kv: KVCache, chats: int, rounds: int, size: int, *, thinks: bool) -> tuple[list[int], list[int]]:
    """Of turns 2 and later of chats that take turns: the tokens that each read, and the new ones."""
    each = [Chat(n, [*range(300)], size, thinks=thinks) for n in range(chats)]
    found = [chat.turn(kv) for n in range(rounds) for chat in each][chats:]
    return [read for read, _ in found], [new for _, new in found]


@pytest.mark.parametrize("thinks", [False, True])
def test_a_turn_reads_what_is_new_and_a_page(thinks: bool) -> None:
    """20 turns to 8,000 tokens, with few snapshots, beside a model without running states."""
    read, new = turns(made(4), 1, 20, 600, thinks=thinks)
    plain, _ = turns(made(0, running=False), 1, 20, 600, thinks=thinks)
    assert sum(new) > 3000
    # the template's opening is left out, or the answer's last token may not be folded in yet
    assert max(a - b for a, b in zip(read, new, strict=True)) < PAGE + 8
    assert max(a - b for a, b in zip(read, plain, strict=True)) <= PAGE
    assert sum(read) < 1.05 * sum(plain)


def test_many_chats_have_a_snapshot_each() -> None:
    """One for the prompt and one for the answer, and one more for what all of them begin with."""
    for snapshots, thinks in ((13, True), (25, False)):
        read, new = turns(made(snapshots), 12, 6, 160, thinks=thinks)
        assert max(a - b for a, b in zip(read, new, strict=True)) < PAGE + 8, (snapshots, thinks)
    read, new = turns(made(13), 12, 6, 160, thinks=False)
    assert sum(read) < sum(new) + len(read) * 160, "the answers are read again, the prompts are not"


def test_one_text_does_not_take_all_snapshots() -> None:
    kv, slow = made(6), Chat(0, [*range(300)], 160, thinks=False)
    quick = Chat(1, [*range(300)], 160, thinks=False)
    slow.turn(kv)
    for _ in range(20):
        quick.turn(kv)
    read, new = slow.turn(kv)
    assert read < new + PAGE + 8
    assert ask(kv, [*range(300), 1, 2], [1]) < 48, "what both begin with"
    ask(kv, [*range(10**6, 10**6 + 9000)], [1])
    read, new = quick.turn(kv)
    assert read < new + 160 + PAGE + 8, "a long text took what its last answer left, and no more"
    places = kv._ranks[0].places
    assert places is not None and len(places.snapshots) == 6


def test_a_preempted_answer_goes_on_from_its_last_page() -> None:
    kv, prompt = made(3), [*range(1000)]
    answer = [*range(5000, 5100)]
    ask(kv, prompt, answer)
    assert kv.open(0, prompt + answer, None, 1099) == 1088
    assert kv.reserve(0, 1100)
    kv.running(0, range(1088, 1100), 1099)
    kv.advance(0, 1100, prompt + answer)
    kv.close(0)
    assert ask(kv, prompt, answer) == 1000 - 992, "as often as it is asked again"


def test_places_that_no_request_has_are_lent_to_snapshots() -> None:
    """One makes room where a request begins, and is the request's without a copy where that begins with it."""
    kv, texts = made(2, 3), [[*range(n, n + 40)] for n in range(0, 500, 100)]
    for text in texts[:4]:
        ask(kv, text, [1])
    places = kv._ranks[0].places
    assert places is not None and len(places.snapshots) == 4 and len(places.free) == 1
    copied = []
    places.states.copy = lambda *pair: copied.append(pair)  # type: ignore[method-assign]
    assert [kv.open(n, texts[n], None, 39) for n in (0, 3)] == [32, 32], "the first had a place of its own"
    assert len(places.snapshots) == 3 and copied == [(4, 2)]
    assert kv.open(1, texts[1], None, 39) == 32 and copied[1:] == [(3, 1)]
    assert kv.open(2, texts[2], None, 39) == 0 and not kv.reserve(2, 40), "all three are in use"
    kv.check_integrity()
    for request in range(4):
        kv.close(request)
    for text in texts:
        ask(kv, text, [1])
    assert kv.pins.add(0, texts[4], None, 10) == 32
    assert all(place >= 3 for page, place in places.snapshots.items() if page in places.kept)
    for request, text in enumerate(texts[:3]):
        kv.open(request, text, None, 39)
        assert kv.reserve(request, 40), "what is pinned is in no request's way"
    kv.check_integrity()


def test_a_prompt_that_finds_no_pages_copies_no_state() -> None:
    """It is opened and closed again in each step in which it waits."""
    kv, text = made(2, 2), [*range(1000)]
    ask(kv, text, [1])
    written: list[object] = []
    places = kv._ranks[0].places
    assert places is not None
    places.states.copy = lambda *given: written.append(given)  # type: ignore[method-assign]
    places.states.clear = lambda *given: written.append(given)  # type: ignore[method-assign]
    assert kv.open(0, [5], None, 0) == 0 and kv.reserve(0, 16 * 7900) and len(written) == 1
    assert kv.open(1, [*range(1000), *range(5000, 6000)], None, 1999) == 0 and len(written) == 1
    assert not kv.reserve(1, 2000)
    kv.close(1)
    kv.close(0)
    kv.check_integrity()
    assert kv.open(2, text, None, 999) > 900 and len(written) == 2
