"""Running states: whatever steps a text comes in, each row has the bits of plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_tools import RandomDraft, answer
from recurrent_model import EOS, LAYOUT, NO_TEXT, VOCAB, RecurrentModel
from schedule_tools import request as new_request

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.router import DrafterRouter
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.integrity import IntegrityError
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.state import running
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.rows import ALL_GROUPS
from fastslow.engine.sampling.probs import probs_at
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.types import Drafter
from fastslow.policies.speculation.planner import FixedLength

DRAFTERS = ("off", "random", "self", "self tree", "model", "model tree")


def hybrid(pages: int, places: int, snapshots: int, **fields: Any) -> KVCache:
    kind: dict[str, Any] = {"layout": LAYOUT, "dtype": torch.float32, "device": "cpu", "page_size": 4}
    return KVCache(**kind, pages=pages, places=places, snapshots=snapshots, **fields)


class Engine:
    """A core with a recurrent target, and a drafting model of the same kind."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        draw = self.random.choice
        self.model, self.small = RecurrentModel(), RecurrentModel()
        self.kv = hybrid(draw([36, 60]), draw([3, 6]), draw([2, 20]), prefix_caching=seed % 5 > 0)
        self.small_kv = hybrid(80, 3, 3)
        target, small, own = self.model, self.small, OwnKV(self.small_kv)
        made: dict[str, Drafter] = {
            "random": RandomDraft(),
            "self": ModelDraft(target, BorrowedKV(self.kv), probs_at, 0),
            "self tree": ModelDraft(target, BorrowedKV(self.kv), probs_at, 1, width=2),
            "model": ModelDraft(small, own, probs_at),
            "model tree": ModelDraft(small, own, probs_at, width=3),
        }
        drafters = DrafterRouter({Speculation(drafter=name): d for name, d in made.items()})
        self.core = EngineCore(target, self.kv, drafters, draw([5, 9, 64]), draw([3, 6]))
        self.core._masks.unfollowed = self.unfollowed  # type: ignore[assignment,method-assign]
        self.asked: list[Request] = []
        self.stories = [[self.random.randrange(3, VOCAB) for _ in range(70)] for _ in range(2)]
        self.pinned = 0

    def unfollowed(self, ready: Sequence[Request], *_: object) -> set[Request]:
        """Some run their last token again."""
        return {request for request in ready if self.random.random() < 0.1}

    def add(self) -> None:
        shared, room = self.random.choice([0, 20, 33, 70, 70]), self.random.randint(8, 40)
        own = [self.random.randrange(3, VOCAB) for _ in range(self.random.randint(1, 16))]
        tokens, name = [*self.random.choice(self.stories)[:shared], *own], self.random.choice(DRAFTERS)
        stopper = Stopper(SamplingParams(max_tokens=room), frozenset({EOS}), room, None)
        nodes = 0 if name == "off" else self.random.choice([3, 9, 60])
        request = new_request(
            len(self.asked), len(tokens), room, tokens=tokens, end_ids=frozenset({EOS}), stopper=stopper,
            speculation=Speculation(drafter=name), policy=FixedLength(nodes),
            groups=self.random.choice([None, None, 1]),
        )  # fmt: skip
        self.asked.append(request)
        self.core.add(request)

    def step(self) -> None:
        if self.random.random() < 0.1:
            self.kv.pins.remove(self.pinned)
            self.pinned += 1
            roots = [(r.tokens, r.root) for r in self.asked if r.id in self.kv.requests]
            for tokens, root in self.random.sample(roots, min(1, len(roots))):
                with suppress(ValueError):  # too many pages
                    self.kv.pins.add(self.pinned, tokens, root, 32)
        if self.random.random() < 0.005:
            self.core.forget_prompts()
        elif self.random.random() < 0.01:
            self.core.end(self.core.scheduler.running[:1], "cancelled", None)
        self.core.step()
        for kv in (self.kv, self.small_kv):
            kv.check_integrity()


def plain(request: Request, size: int) -> list[int]:
    """The first tokens of its answer, from the text alone."""
    groups, text = ALL_GROUPS if request.groups is None else request.groups, NO_TEXT
    tokens = request.tokens[: request.prompt_length]
    for place in range(request.prompt_length + size - 1):
        text = text.after((tokens[place], place, groups))
        if place + 1 == len(tokens):
            tokens.append(text.best)
    return tokens[request.prompt_length :]


@pytest.mark.parametrize("seeds", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_each_row_of_any_schedule_has_the_bits_of_plain_decoding(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    """Trees, chunks, probes, rows that run again, prefix hits, preemption, pins and too few places."""
    monkeypatch.setattr(running, "EVERY", 8)
    probes = [SimpleNamespace(rows=[4] * n, sure=0, draft=[]) for n in (0, 1, 5)]
    asks = property(lambda r: probes[len(r.tokens) % 3] if (r.id + len(r.tokens)) % 4 == 0 else None)
    monkeypatch.setattr(Request, "answer_probe", asks)
    rows = hits = preempted = accepted = 0
    for seed in range(seeds):
        engine = Engine(seed)
        while len(engine.asked) < 15 or not engine.core.idle:
            if len(engine.asked) < 15 and engine.random.random() < 0.6:
                engine.add()
            engine.step()
        assert not (engine.model.wrong or engine.small.wrong), seed
        for request in engine.asked:
            got = answer(request)
            assert request.error is None and got == plain(request, len(got)), (seed, request.id)
        for kv in (engine.kv, engine.small_kv):
            kv.clear_prefix()
            places = kv._ranks[0].places
            assert places is not None and not kv.requests and kv.empty_pages == kv.pages
            assert (len(places.free), len(places.spare)) == (places.states.places, places.states.snapshots)
        rows += engine.model.run + engine.small.run
        hits += sum(r.spec_stats.cached for r in engine.asked)
        preempted += sum(r.spec_stats.preemptions for r in engine.asked)
        accepted += sum(r.spec_stats.accepted for r in engine.asked)
    counts = rows, hits, preempted, accepted
    assert all(count > least * seeds for count, least in zip(counts, (1600, 25, 1, 80), strict=True)), counts


def test_a_prompt_begins_with_the_deepest_snapshot() -> None:
    """Of its pages: that is where another text of the same beginning ended, or a multiple of 256 tokens."""
    cache, text = hybrid(200, 1, 3), [*range(300)]
    with pytest.raises(
        ValueError, match=r"^0 prefixes are pinned already, and of 1 snapshots of running states at most half"
    ):
        hybrid(200, 2, 1).pins.check(4, 10)

    def read(request: int, tokens: list[int], chunk: int = 300) -> tuple[int, list[tuple[int, int]]]:
        cached = valid = cache.open(request, tokens, None, len(tokens) - 1)
        assert cache.reserve(request, len(tokens))
        found = []
        while valid < len(tokens):
            stop = min(valid + chunk, len(tokens))
            rows = cache.running(request, range(valid, stop), stop - (stop == len(tokens)))
            assert rows is not None and rows.place == 0
            found += [(valid - len(rows.before) + n, to) for n, to in rows.snapshots]
            cache.advance(request, stop, tokens)
            valid = stop
            cache.check_integrity()
        cache.close(request)
        return cached, found

    assert read(0, text) == (0, [(256, 2), (292, 3)])
    assert read(1, text[:298], 100) == (292, [])
    assert read(2, [*text[:280], 7, 8, *range(900, 910)]) == (256, [(280, 1), (284, 2)]), "256 made room: it was passed"
    assert read(3, text[:291]) == (280, [(288, 3)])
    assert cache.pins.add(1, text, None, 10) == 288
    assert read(4, [5] * 20) == (0, [(12, 2)])
    assert read(5, text[:280]) == (0, [(272, 1)]), "the least recently used made room, not the pinned one"
    assert read(6, text) == (288, [(292, 1)])
    assert read(7, text[:282]) == (0, [(272, 1), (280, 2)]), "none is cheap: none each 256 tokens"


def test_texts_of_one_beginning_share_it_once_they_parted() -> None:
    """A second text that leaves the first marks the place for a third. Of a long text the latest snapshots stay."""
    cache = hybrid(2000, 1, 40)
    story = [*range(4000)]
    for request, (tokens, found) in enumerate((
        (story, 0), ([*story[:1002], 1, 2, 3, 4, 5], 0), ([*story[:1002], 9, 9, 9, 9], 1000),
        (story, 3992), (story[:3600], 3584), (story[:2000], 1000),
    )):  # fmt: skip
        assert cache.open(request, tokens, None, len(tokens) - 1) == found
        assert cache.reserve(request, len(tokens))
        for stop in (*range(found + 500, len(tokens), 500), len(tokens)):
            cache.running(request, range(cache.valid(request), stop), stop - (stop == len(tokens)))
            cache.advance(request, stop, tokens)
            cache.check_integrity()
        cache.close(request)
    places = cache._ranks[0].places
    assert places is not None and len(places.snapshots) < 20


def test_drafts_copy_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is written where a request begins and at snapshots: at most one for each page of a text. Of drafted rows
    what each of them adds is moved, where a branch was accepted past another."""
    begun, moved, kept = [0], [0], [0]
    states, plan = running.RunningStates, running.StatePlaces.rows
    clear, copy, move = states.clear, states.copy, states.move

    def counted(count: list[int], size: Callable[..., int], call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*given: Any) -> Any:
            found = call(*given)
            count[0] += size(found, *given)
            return found

        return made

    state, request = hybrid(4, 1, 1).storage.running.bytes  # type: ignore[union-attr]
    row = (request - state) // UNFOLDED
    monkeypatch.setattr(states, "clear", counted(begun, lambda *_: state, clear))
    monkeypatch.setattr(states, "copy", counted(begun, lambda *_: state, copy))
    monkeypatch.setattr(states, "move", counted(moved, lambda _, __, place, src, dst: len(src) * row, move))
    passed = counted(kept, lambda found, *_: state * len(found.snapshots), plan)
    monkeypatch.setattr(running.StatePlaces, "rows", passed)
    engine = Engine(1)
    for number in range(4):
        tokens = [engine.random.randrange(3, VOCAB) for _ in range(30)]
        stopper = Stopper(SamplingParams(max_tokens=40), frozenset({EOS}), 40, None)
        engine.asked.append(new_request(
            number, 30, 40, tokens=tokens, stopper=stopper, speculation=Speculation(drafter="self tree"),
            policy=FixedLength(9), end_ids=frozenset({EOS}),
        ))  # fmt: skip
        engine.core.add(engine.asked[-1])
    while not engine.core.idle:
        engine.core.step()
    spec = [request.spec_stats for request in engine.asked]
    accepted, answered = sum(one.accepted for one in spec), sum(len(one.tokens) - 30 for one in engine.asked)
    assert sum(one.drafted for one in spec) > 200 and accepted > 20
    assert begun[0] == state * (len(spec) + sum(one.preemptions for one in spec))
    assert 0 < moved[0] <= accepted * row and moved[0] % row == 0
    assert 0 < kept[0] <= state * ((30 * len(spec) + answered) // 4 + len(spec))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("^of 2 places of running states requests have", lambda kv: kv._ranks[0].places.free.append(0)),
        ("; snapshots are at", lambda kv: kv._ranks[0].places.spare.pop()),
        ("has a snapshot, but is not published$", lambda kv: kv._ranks[0].places.snapshots.update({9: kv._ranks[0].places.spare.pop()})),
        ("^request 0: 9 rows are folded in, 8 are valid$", lambda kv: setattr(kv._tables[0], "folded", 9)),
    ],
)  # fmt: skip
def test_seeded_faults_are_seen(said: str, fault: Callable[[Any], object]) -> None:
    cache = hybrid(10, 2, 3)
    cache.open(0, [1] * 9, None, 8)
    assert cache.reserve(0, 9) and cache.running(0, range(8), 8)
    cache.advance(0, 8, [1] * 9)
    cache.check_integrity()
    fault(cache)
    with pytest.raises(IntegrityError, match=said):
        cache.check_integrity()


def test_what_cannot_have_running_states_says_so(tmp_path: Any) -> None:
    cache = hybrid(8, 1, 1)
    with pytest.raises(ValueError, match="^kv_spill keeps no running states, and layer 0 has one: leave it out$"):
        PageFile(cache.storage, 4, 1 << 20, tmp_path)
    cache.open(0, [1] * 9, None, 8)
    assert cache.reserve(0, 16) and cache.room(0) == 16
    cache.open(1, [1] * 9, None, 8)
    assert not cache.reserve(1, 8), "there is one place"
    assert cache.running(0, range(8), 8) is not None
    with pytest.raises(ValueError, match=r"^rows of positions 7\.\.9 run where 8 rows are folded in"):
        cache.running(0, range(7, 10), 7)
    with pytest.raises(ValueError, match=r"at most 48 may not be folded in yet$"):
        cache.running(0, range(8, 57), 8)
    cache.close(0)
    assert cache.reserve(1, 8)
